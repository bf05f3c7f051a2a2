"""Pictures of data mixes: surfaces, laws, synergies, the best mix and fronts. A setting keeps its colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.evaluation.curves import Array
from lab.reports.look import COLOURS, INK, MARKERS, QUIET, Plot, draw_each
from lab.reports.measures import Measure
from lab.reports.mix.prediction import best
from lab.reports.mix.scales import half_width, short
from lab.reports.mix.study import Study
from lab.reports.mix.surfaces import laws, surfaces
from lab.reports.mix.synergy import UNDECIDED
from lab.reports.mix.trials import Trial

_LABELLED = 12  # arms of a setting that all get their label


def draw(study: Study, folder: Path) -> dict[str, Plot]:
    """Draws what there are numbers for: name -> picture. Removes those of an earlier report.

    Args:
        study: What to show.
        folder: Where the PNGs go.
    """
    predicted = any(one.known for one in study.optima)
    wanted: list[tuple[str, str, str, Callable[[Study], Figure | None]]] = [
        (
            "surfaces",
            "Each metric over both amounts of data",
            "Dots are the measured mixes, their colour and number the mean over seeds. Behind them the "
            "fitted law; where there is none, straight lines between dots. Nothing is coloured beyond the "
            "measured range. Axes are stretched at the lower end.",
            surfaces,
        ),
        (
            "laws",
            "Laws",
            "Against the samples of the metric's own task; a colour is an amount of the other task's. Dots "
            "are means over seeds with 95% intervals (Student's t), lines the law, shades its 95% confidence "
            "band.",
            laws,
        ),
        (
            "synergy",
            "Does one task's data help the other?",
            "Change of each metric from the fewest to the most samples of the other task, with the samples "
            "of its own task fixed; 95% intervals over seeds. Filled: significant at 5% after Holm's "
            "correction.",
            synergy,
        ),
        (
            "best",
            "The best mix",
            "What the laws predict along all mixes of the budget, with 95% bands; dots are measured mixes of "
            "this total, seed by seed. The vertical line is the predicted best, the grey span its 95% "
            "interval.",
            best,
        ),
        (
            "fronts",
            "Pareto fronts",
            "A point is an arm, its label the samples of understanding and of generation; crosses are 95% "
            "intervals over seeds. Filled: no other arm of the same colour is better in both."
            + (" Dashes: what the laws predict for all mixes of the budget." if predicted else ""),
            fronts,
        ),
    ]
    return {plot.path.stem: plot for plot in draw_each(wanted, study, folder)}


def synergy(study: Study) -> Figure | None:
    """Effects of the other task's data: a row a metric and amount of its own task's."""
    if not study.synergies:
        return None
    rows = [(one, own) for one in study.synergies for own in (None, *one.by_own)]
    figure, axes = plt.subplots(figsize=(7.6, 0.7 + 0.3 * len(rows)))
    labels = []
    for place, (one, own) in enumerate(rows):
        estimate = one.overall if own is None else one.by_own[own]
        sign = 1 if one.measure.rising else -1
        factor = sign * one.measure.factor
        value = estimate.value * factor
        colour = COLOURS[study.settings.index(one.setting) % len(COLOURS)] if own is None else QUIET
        low, high = (end * factor for end in estimate.interval or (estimate.value,) * 2)
        axes.plot([low, high], [-place] * 2, color=colour, linewidth=2.4 if own is None else 1.2)
        filled = own is None and one.word != UNDECIDED
        axes.plot(
            value, -place, "o", color=colour, markerfacecolor=colour if filled else "white", markersize=7
        )
        where = f", {one.setting}" if one.setting else ""
        labels.append(f"{one.measure.label}{where}" if own is None else f"at {own:,.0f} own samples")
        axes.text(
            1.02,
            -place,
            f"{value:+.1f}" + (f"  {one.word}" if own is None else ""),
            transform=axes.get_yaxis_transform(),
            va="center",
            color=INK if own is None else QUIET,
            fontweight="bold" if own is None else "normal",
        )
    axes.axvline(0, color=QUIET, linewidth=1)
    axes.set_yticks([-place for place in range(len(rows))], labels)
    for tick, (_, own) in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(INK if own is None else QUIET)
        tick.set_fontweight("bold" if own is None else "normal")
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("change by the other task's samples (points of rates; positive is better)")
    axes.grid(axis="x")
    return figure


def fronts(study: Study) -> Figure | None:
    """Understanding against generation, with a front for every setting."""
    if len(study.leading) < 2:
        return None
    across, up = study.leading.values()
    figure, axes = plt.subplots(figsize=(7.2, 4.8))
    for number, setting in enumerate(study.settings):
        arms = _by_arm(study.of(setting), [across, up])
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        points = {name: (x.mean(), y.mean()) for name, (x, y) in arms.items()}
        kept = [n for n, p in points.items() if not any(_beats(q, p) for q in points.values())]
        corners = sorted(points[name] for name in kept)
        if corners:
            axes.step(
                *zip(*corners, strict=True), where="pre", color=colour, alpha=0.25, linewidth=4, zorder=1
            )
        for name, (x, y) in arms.items():
            axes.errorbar(
                x.mean(),
                y.mean(),
                xerr=half_width(x),
                yerr=half_width(y),
                color=colour,
                marker=marker,
                markersize=8,
                markerfacecolor=colour if name in kept else "white",
                elinewidth=0.8,
                zorder=3,
            )
            if name not in kept and len(arms) > _LABELLED:
                continue
            amounts = next(trial.amounts for trial in study.trials if trial.name == name)
            axes.annotate(
                f"{short(amounts.understanding)} / {short(amounts.generation)}",
                points[name],
                xytext=(6, 6) if name in kept else (6, -12),
                textcoords="offset points",
                fontsize=8,
                color=INK,
            )
        axes.plot([], [], marker, color=colour, label=setting or study.name)
        _predicted(axes, study, setting, colour)
    axes.set_xlabel(f"understanding: {across.axis}")
    axes.set_ylabel(f"generation: {up.axis}")
    axes.grid()
    axes.margins(0.08)
    axes.set_xlim(max(-4.0, axes.get_xlim()[0]), min(104.0, axes.get_xlim()[1]))
    axes.set_ylim(max(-4.0, axes.get_ylim()[0]), min(104.0, axes.get_ylim()[1]))
    if axes.get_legend_handles_labels()[1][1:]:
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def _predicted(axes: Axes, study: Study, setting: str, colour: str) -> None:
    """What the laws say of all mixes of the budget, where there are laws for both."""
    across, up = (study.fit(setting, measure.name) for measure in study.leading.values())
    path = next((one.path for one in study.optima if one.setting == setting), None)
    if path is None or across is None or up is None or not across.known or not up.known:
        return
    amounts = path.understanding[path.covered], path.generation[path.covered]
    axes.plot(
        across.value(*amounts) * 100,
        up.value(*amounts) * 100,
        color=colour,
        linewidth=1.2,
        linestyle=(0, (2, 2)),
        label=f"law, {study.budget.said}",
    )


def _by_arm(trials: Sequence[Trial], measures: Sequence[Measure]) -> dict[str, list[Array]]:
    """Arm -> values of each metric over seeds, in the shown unit; of trials that have all of the metrics."""
    known = [trial for trial in trials if all(measure.name in trial.metrics for measure in measures)]
    return {
        name: [np.array([t.metrics[m.name] * m.factor for t in known if t.name == name]) for m in measures]
        for name in dict.fromkeys(trial.name for trial in known)
    }


def _beats(first: tuple[float, float], second: tuple[float, float]) -> bool:
    return first != second and first[0] >= second[0] and first[1] >= second[1]
