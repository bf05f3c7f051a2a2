"""Pictures of data mixes: surfaces, laws, synergies, the best mix and fronts. A setting keeps its colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lab.evaluation.curves import Array
from lab.evaluation.statistics import t_interval
from lab.reports.look import COLOURS, INK, MARKERS, PALE, QUIET, Plot, save, styled
from lab.reports.measures import Measure
from lab.reports.mix.fits import Fit
from lab.reports.mix.optimum import SHARES, Optimum, preferred, within
from lab.reports.mix.study import Study
from lab.reports.mix.synergy import UNDECIDED
from lab.reports.mix.trials import GENERATION, UNDERSTANDING, Trial

_COLUMNS = 4  # panels side by side
_LABELLED = 12  # arms of a setting that all get their label


def draw(study: Study, folder: Path) -> dict[str, Plot]:
    """Draws what there are numbers for: name -> picture. Removes those of an earlier report.

    Args:
        study: What to show.
        folder: Where the PNGs go.
    """
    wanted: list[tuple[str, str, str, Callable[[Study], Figure | None]]] = [
        (
            "surfaces",
            "Each metric over both amounts of data",
            "Dots are the measured mixes, their colour and number the mean over seeds. Behind them the "
            "fitted "
            "law; where there is none, straight lines between dots. Nothing is coloured beyond the measured "
            "range. Axes are stretched at the lower end.",
            surfaces,
        ),
        (
            "laws",
            "Laws",
            "Against the samples of the metric's own task; a colour is an amount of the other task's. Dots "
            "are "
            "means over seeds with 95% intervals (Student's t), lines the law, shades its 95% confidence "
            "band.",
            laws,
        ),
        (
            "synergy",
            "Does one task's data help the other?",
            "Change of each metric from the fewest to the most samples of the other task, with the samples "
            "of its "
            "own task fixed; 95% intervals over seeds. Filled: significant at 5% after Holm's correction.",
            synergy,
        ),
        (
            "best",
            "The best mix",
            "What the laws predict along all mixes of the budget, with 95% bands; dots are measured mixes of "
            "this "
            "total, seed by seed. The vertical line is the predicted best, the grey span its 95% interval.",
            best,
        ),
        (
            "fronts",
            "Pareto fronts",
            "A point is an arm, its label the samples of understanding and generation in thousands; crosses "
            "are 95% "
            "intervals over seeds. Filled: no other arm of the same colour is better in both.",
            fronts,
        ),
    ]
    drawn = {}
    for name, title, caption, figure_of in wanted:
        path = folder / f"{name}.png"
        with styled():
            figure = figure_of(study)
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            save(figure, path)
        drawn[name] = Plot(path, title, caption)
    return drawn


def surfaces(study: Study) -> Figure | None:
    """Metrics over the plane of amounts: a row a setting with cells that span it."""
    rows = [setting for setting in study.settings if _spans(study.of(setting))]
    if not rows or not study.measures:
        return None
    columns = min(_COLUMNS, len(study.measures))
    lines = -(-len(study.measures) // columns)
    figure, grid = plt.subplots(
        len(rows) * lines,
        columns,
        figsize=(3.5 * columns, 3.3 * len(rows) * lines),
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat:
        axes.set_visible(False)
    for row, setting in enumerate(rows):
        for number, measure in enumerate(study.measures):
            axes = grid[row * lines + number // columns][number % columns]
            axes.set_visible(True)
            _surface(axes, study.of(setting), measure, study.fit(setting, measure.name))
            axes.set_title(f"{measure.axis}, {setting}" if setting else measure.axis)
            if number % columns == 0:
                axes.set_ylabel("samples of generation")
            axes.set_xlabel("samples of understanding")
    return figure


def laws(study: Study) -> Figure | None:
    """Every metric against its own samples, with law and band: a panel a metric and setting."""
    panels = [
        (setting, measure)
        for setting in study.settings
        for measure in study.measures
        if (one := study.fit(setting, measure.name)) is not None and one.known
    ]
    if not panels:
        return None
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.5 * columns, 3.3 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (setting, measure) in zip(grid.flat, panels, strict=False):
        found = study.fit(setting, measure.name)
        assert found is not None
        _law(axes, study.of(setting), found)
        axes.set_title(f"{measure.axis}, {setting}" if setting else measure.axis)
    return figure


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


def best(study: Study) -> Figure | None:
    """Preference and its metrics along the mixes of the budget: a panel a setting with laws."""
    shown = [one for one in study.optima if one.known]
    if not shown:
        return None
    figure, row = plt.subplots(
        1, len(shown), figsize=(6.4 * len(shown), 3.8), squeeze=False, sharey=True, layout="constrained"
    )
    for axes, one in zip(row[0], shown, strict=True):
        _along(axes, study, one)
        axes.set_title(_titled(study, one.setting))
    row[0][0].set_ylabel("%")
    row[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
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
                xerr=_half(x),
                yerr=_half(y),
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
                f"{_short(amounts.understanding)} / {_short(amounts.generation)}",
                points[name],
                xytext=(6, 6),
                textcoords="offset points",
                fontsize=8,
                color=INK,
            )
        axes.plot([], [], marker, color=colour, label=setting or study.name)
    axes.set_xlabel(f"understanding: {across.axis}")
    axes.set_ylabel(f"generation: {up.axis}")
    axes.grid()
    axes.margins(0.08)
    if len(study.settings) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def _surface(axes: Axes, trials: Sequence[Trial], measure: Measure, found: Fit | None) -> None:
    cells = _cells(trials, measure)
    places = np.array(list(cells))
    values = np.array([float(np.mean(own)) for own in cells.values()]) * measure.factor
    low, high = float(values.min()), float(values.max())
    high = high if high > low else low + 1e-6
    ends = places.max(axis=0)
    steps = [np.linspace(0, 1, 60) ** 2 * end for end in ends]
    x, y = np.meshgrid(*steps)
    if found is not None and found.known:
        shown = found.value(x, y) * measure.factor
    else:
        shown = _between(places, values, x, y)
    shown = np.where(_inside(places, x, y), shown, np.nan)
    colours = plt.get_cmap("viridis" if measure.rising else "viridis_r")
    axes.contourf(x, y, shown, levels=np.linspace(low, high, 13), cmap=colours, extend="both", alpha=0.75)
    axes.scatter(
        places[:, 0],
        places[:, 1],
        c=values,
        cmap=colours,
        vmin=low,
        vmax=high,
        s=70,
        edgecolors="white",
        zorder=3,
    )
    for (u, g), value in zip(places, values, strict=True):
        text = measure.show(value / measure.factor)
        axes.annotate(
            text,
            (u, g),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            zorder=4,
        )
    axes.set_xscale("function", functions=(_root, _square))
    axes.set_yscale("function", functions=(_root, _square))
    _amounts(axes.xaxis, places[:, 0])
    _amounts(axes.yaxis, places[:, 1])
    axes.set_xlim(-0.012 * ends[0], ends[0] * 1.2)
    axes.set_ylim(-0.004 * ends[1], ends[1] * 1.25)


def _law(axes: Axes, trials: Sequence[Trial], found: Fit) -> None:
    measure, group = found.measure, found.group
    others = sorted({trial.amounts.other(group) for trial in trials})
    most = max(trial.amounts.of(group) for trial in trials)
    line = np.linspace(0, 1, 80) ** 2 * most
    tints = plt.get_cmap("plasma")(np.linspace(0.1, 0.8, len(others)))
    for other, tint in zip(others, tints, strict=True):
        known = sorted({t.amounts.of(group) for t in trials if t.amounts.other(group) == other})
        path = line[(line >= known[0]) & (line <= known[-1])]
        beside = np.full_like(path, other)
        sides = (path, beside) if group == UNDERSTANDING else (beside, path)
        low, high = found.band(*sides)
        axes.fill_between(
            path, low * measure.factor, high * measure.factor, color=tint, alpha=0.18, linewidth=0
        )
        axes.plot(
            path, found.value(*sides) * measure.factor, color=tint, linewidth=1.6, label=f"{other:,.0f}"
        )
        for own in known:
            values = _values(trials, measure, group, own, other)
            if values.size:
                axes.errorbar(
                    own,
                    values.mean(),
                    yerr=_half(values),
                    color=tint,
                    marker="o",
                    markersize=5,
                    elinewidth=0.9,
                )
    axes.set_xscale("function", functions=(_root, _square))
    _amounts(axes.xaxis, np.array([trial.amounts.of(group) for trial in trials]))
    axes.set_xlim(-0.002 * most, most * 1.06)
    shown = np.array([trial.metrics[measure.name] for trial in trials if measure.name in trial.metrics])
    room = 0.25 * (shown.max() - shown.min()) * measure.factor
    axes.set_ylim(
        max(0.0, shown.min() * measure.factor - room),
        min(shown.max() * measure.factor + room, 101 if measure.rate else np.inf),
    )
    axes.set_xlabel(f"samples of {group}")
    rest = GENERATION if group == UNDERSTANDING else UNDERSTANDING
    axes.legend(title=f"of {rest}", fontsize=8, title_fontsize=8)
    axes.grid(axis="y")


def _along(axes: Axes, study: Study, one: Optimum) -> None:
    covered = one.path.covered if one.path.covered.any() else np.ones(len(SHARES), dtype=bool)
    shares = SHARES[covered] * 100
    axes.axvspan(one.interval[0] * 100, one.interval[1] * 100, color=PALE, alpha=0.4, linewidth=0)
    axes.axvline(one.share * 100, color=INK, linewidth=1.2)
    totals = one.path.understanding + one.path.generation
    measured = [
        trial
        for trial in study.of(one.setting)
        if abs(
            (trial.amounts.understanding + trial.amounts.generation) / totals[int(_share(trial) * 100)] - 1
        )
        < 0.02
    ]
    places = [_share(trial) * 100 for trial in measured]
    for number, name in enumerate(study.weights):
        found = study.fits[one.setting, name]
        low, high = found.band(one.path.understanding[covered], one.path.generation[covered])
        colour = COLOURS[number % len(COLOURS)]
        axes.fill_between(shares, low * 100, high * 100, color=colour, alpha=0.15, linewidth=0)
        values = found.value(one.path.understanding[covered], one.path.generation[covered]) * 100
        axes.plot(shares, values, color=colour, linewidth=1.4, label=found.measure.label)
        points = [trial.metrics[name] * 100 for trial in measured]
        axes.scatter(places, points, color=colour, s=22, zorder=3)
    axes.fill_between(
        shares, one.low[covered] * 100, one.high[covered] * 100, color=INK, alpha=0.12, linewidth=0
    )
    axes.plot(shares, one.mean[covered] * 100, color=INK, linewidth=2.2, label="preferred mean")
    points = [preferred(trial, study.weights) * 100 for trial in measured]
    axes.scatter(places, points, color=INK, s=22, zorder=3)
    axes.set_xlabel("share of understanding in the mix (%)")
    axes.set_xlim(-2, 102)
    axes.grid(axis="y")


def _titled(study: Study, setting: str) -> str:
    unit = "samples" if study.budget.unit == "samples" else "seconds of training"
    return f"{study.budget.amount:,.0f} {unit}" + (f", {setting}" if setting else "")


def _share(trial: Trial) -> float:
    both = trial.amounts.understanding + trial.amounts.generation
    return trial.amounts.understanding / both if both else 0.0


def _spans(trials: Sequence[Trial]) -> bool:
    """Whether mixes lie on no single line."""
    places = np.array([[1.0, trial.amounts.understanding, trial.amounts.generation] for trial in trials])
    return bool(np.linalg.matrix_rank(places) == 3)


def _cells(trials: Sequence[Trial], measure: Measure) -> dict[tuple[float, float], list[float]]:
    found: dict[tuple[float, float], list[float]] = {}
    for trial in trials:
        if measure.name in trial.metrics:
            place = (trial.amounts.understanding, trial.amounts.generation)
            found.setdefault(place, []).append(trial.metrics[measure.name])
    return found


def _values(trials: Sequence[Trial], measure: Measure, group: str, own: float, other: float) -> Array:
    """A cell's values in the shown unit."""
    return np.array(
        [
            trial.metrics[measure.name] * measure.factor
            for trial in trials
            if (trial.amounts.of(group), trial.amounts.other(group)) == (own, other)
            and measure.name in trial.metrics
        ]
    )


def _by_arm(trials: Sequence[Trial], measures: Sequence[Measure]) -> dict[str, list[Array]]:
    """Arm -> values of each metric over seeds, in the shown unit."""
    names = list(dict.fromkeys(trial.name for trial in trials))
    return {
        name: [np.array([t.metrics[m.name] * m.factor for t in trials if t.name == name]) for m in measures]
        for name in names
    }


def _half(values: Array) -> float:
    """Half of a 95% interval over seeds; 0 with one."""
    return (t_interval(values)[1] - float(values.mean())) if values.size > 1 else 0.0


def _beats(first: tuple[float, float], second: tuple[float, float]) -> bool:
    return first != second and first[0] >= second[0] and first[1] >= second[1]


def _between(places: Array, values: Array, x: Array, y: Array) -> Array:
    """Straight lines between measured mixes (on the stretched axes)."""
    from scipy.interpolate import LinearNDInterpolator

    return np.asarray(LinearNDInterpolator(np.sqrt(places), values)(np.sqrt(x), np.sqrt(y)))


def _inside(places: Array, x: Array, y: Array) -> Array:
    """Whether points lie within the measured range."""
    cells = {(float(u), float(g)) for u, g in places}
    flat = [within(cells, float(a), float(b)) for a, b in zip(x.ravel(), y.ravel(), strict=True)]
    return np.array(flat).reshape(x.shape)


def _root(values: Array) -> Array:
    return np.sign(values) * np.sqrt(np.abs(values))


def _square(values: Array) -> Array:
    return np.sign(values) * np.square(values)


def _amounts(axis: object, amounts: Array) -> None:
    """Ticks at the measured amounts."""
    ticks = sorted(set(amounts.tolist()))
    if len(ticks) > 7:
        ticks = list(np.linspace(ticks[0], ticks[-1], 5).round())
    axis.set_ticks(ticks, [_short(tick) for tick in ticks])  # type: ignore[attr-defined]
    axis.set_minor_locator(NullLocator())  # type: ignore[attr-defined]


def _short(amount: float) -> str:
    """`1.3k`."""
    return f"{amount / 1000:.3g}k" if amount >= 1000 else f"{amount:.0f}"
