"""Pictures of an ablation. The first factor keeps its colours through all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lab.reports.ablation.analysis import Analysis, Column
from lab.reports.ablation.effects import TIMES, Effect, change_of
from lab.reports.ablation.estimates import Ends
from lab.reports.look import COLOURS, INK, MARKERS, PALE, QUIET, Plot, draw_each, pick, save, styled
from lab.reports.measures import GENERATION, UNDERSTANDING
from lab.reports.samples import Samples, grid

_DASHES = (0, (4, 2))
_ROWS = 24  # effects that a picture holds
_PAIRS = 4  # pairs of factors likewise
_ARMS = 10  # arms in a grid of samples


def draw(analysis: Analysis, samples: Samples | None, folder: Path) -> list[Plot]:
    """Draws all pictures for which there are numbers, and removes those of an earlier comparison.

    Args:
        analysis: What to show.
        samples: Samples of all arms, where they were kept.
        folder: Where the PNGs go.
    """
    wanted: list[tuple[str, str, str, Callable[[Analysis], Figure | None]]] = [
        (
            "claim",
            "The claim, seed by seed",
            "Points are seeds: the better side of the claim less the worse, averaged over matched arms. "
            "Lines are 95% intervals: over seeds by Student's t, over seeds and samples by bootstrap.",
            claim,
        ),
        (
            "arms",
            "Arms",
            "Means with 95% intervals as in the table; pale points are seeds, dashes chance.",
            arms,
        ),
        (
            "effects",
            "Effects of the factors",
            "Change from a factor's first level, with 95% interval; of an interaction the change of that "
            "change. Filled: significant at 5% after Holm's correction over all effects on the metric."
            + (
                f" The {_ROWS} with main effects and the smallest p are shown, all are in the tables."
                if any(len(column.effects) > _ROWS for column in analysis.leading)
                else ""
            ),
            effects,
        ),
        (
            "interactions",
            "Interactions",
            "Means over the arms that have both levels, with 95% intervals. Parallel lines: no interaction.",
            interactions,
        ),
        (
            "front",
            "Understanding against generation",
            "Crosses are 95% intervals. Filled: no other arm is better in both.",
            front,
        ),
    ]
    return [*draw_each(wanted, analysis, folder), *_samples(samples, folder)]


def claim(analysis: Analysis) -> Figure | None:
    """The claim's contrast at every seed, with both intervals."""
    verdict = analysis.verdict
    if verdict is None or verdict.estimate is None:
        return None
    estimate, factor = verdict.estimate, verdict.measure.factor
    figure, axes = plt.subplots(figsize=(7.2, 1.9))
    axes.axvline(0, color=QUIET, linewidth=1)
    if verdict.claim.margin:
        axes.axvline(verdict.claim.margin * factor, color=INK, linewidth=1.2, linestyle=_DASHES)
        place = (verdict.claim.margin * factor, 1.02)
        axes.text(*place, "margin", transform=axes.get_xaxis_transform(), ha="center", fontsize=9)
    for height, ends in ((0.34, estimate.over_seeds), (-0.34, estimate.joint)):
        if ends is not None:
            axes.plot([end * factor for end in ends], [height, height], color=COLOURS[0], linewidth=2.2)
    values = [value * factor for value in estimate.by_seed.values()]
    axes.plot(values, [0] * len(values), "o", color=PALE, markersize=8, markeredgecolor=QUIET)
    axes.plot([estimate.value * factor] * 2, [-0.55, 0.55], color=COLOURS[0], linewidth=2.2)
    known = [(0.34, "over seeds")] * bool(estimate.over_seeds) + [(0.0, "seeds")]
    over = "over seeds and samples" if len(values) > 1 else "over samples"
    known += [(-0.34, over)] * bool(estimate.joint)
    axes.set_yticks([height for height, _ in known], [word for _, word in known])
    axes.set_ylim(-0.75, 0.75)
    axes.margins(x=0.12)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    higher, lower = (" ".join(side.values()) for side in (verdict.claim.higher, verdict.claim.lower))
    unit = "points" if verdict.measure.rate else "positive is better"
    axes.set_xlabel(f"{verdict.measure.name}: {higher} less {lower} ({unit})")
    return figure


def arms(analysis: Analysis) -> Figure | None:
    """Every arm's mean, interval and seeds, a panel a metric."""
    columns = analysis.leading
    if not columns:
        return None
    names = analysis.arms
    size = (1.6 + 3.0 * len(columns), 0.9 + 0.34 * len(names))
    figure, row = plt.subplots(
        1, len(columns), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, column in zip(row[0], columns, strict=True):
        factor = column.measure.factor
        for height, arm in enumerate(names):
            if arm not in column.means:
                continue
            colour, mean = _colour(analysis, arm), column.means[arm]
            values = column.measured.values[column.measured.arms.index(arm)] * factor
            heights = np.full(len(values), height)
            axes.plot(values, heights, "o", color=colour, alpha=0.3, markersize=5, zorder=2)
            axes.plot([mean.low * factor, mean.high * factor], [height] * 2, color=colour, linewidth=1.6)
            marker = _marker(analysis, arm)
            axes.plot(mean.value * factor, height, marker, color=colour, markersize=8, zorder=3)
        if (level := analysis.chance(column.measure.name)) is not None:
            axes.axvline(level * factor, color=INK, linestyle=_DASHES, linewidth=1)
        axes.set_title(column.measure.axis + ("" if column.measure.rising else ", less is better"))
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
    row[0][0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def effects(analysis: Analysis) -> Figure | None:
    """A forest: every effect with its interval, a panel a metric."""
    columns = [column for column in analysis.leading if column.effects]
    if not columns:
        return None
    rows = _chosen(columns)
    size = (3.0 + 2.9 * len(columns), 1.0 + 0.42 * len(rows))
    figure, panels = plt.subplots(
        1, len(columns), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, column in zip(panels[0], columns, strict=True):
        axes.axvline(0, color=QUIET, linewidth=1)
        found = {(effect.factors, effect.levels): effect for effect in column.effects}
        for height, key in enumerate(rows):
            if key not in found:
                continue
            effect, factor = found[key], column.measure.factor
            colour = COLOURS[0] if len(effect.factors) == 1 else COLOURS[4]
            if effect.interval:
                axes.plot(
                    [end * factor for end in effect.interval], [height] * 2, color=colour, linewidth=1.8
                )
            face = colour if effect.significant else "white"
            axes.plot(
                effect.value * factor, height, "o", color=colour, markerfacecolor=face, markeredgewidth=1.6
            )
        unit = "points" if column.measure.rate else "" if column.measure.rising else "less is better"
        axes.set_title(column.measure.label + (f" ({unit})" if unit else ""))
        axes.set_yticks(range(len(rows)), [_label(*key) for key in rows], fontsize=9)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
    panels[0][0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def interactions(analysis: Analysis) -> Figure | None:
    """Means by the levels of two factors: a row a pair of factors, a column a metric."""
    columns = analysis.leading[:2]
    pairs = _pairs(analysis, columns)
    if not columns or not pairs:
        return None
    size = (1.4 + 3.6 * len(columns), 2.8 * len(pairs))
    figure, panels = plt.subplots(
        len(pairs), len(columns), figsize=size, sharey="col", squeeze=False, layout="constrained"
    )
    for row, (first, second) in zip(panels, pairs, strict=True):
        for axes, column in zip(row, columns, strict=True):
            _interaction(axes, analysis, column, first, second)
            axes.set_ylabel(column.measure.axis)
        row[-1].legend(title=first, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def front(analysis: Analysis) -> Figure | None:
    """Understanding against generation, with the arms that nothing beats joined by a line."""
    # The main table may lack either metric: an ablation of prompts need not show what it draws.
    across, up = analysis.column(UNDERSTANDING.name), analysis.column(GENERATION.name)
    if across is None or up is None:
        return None
    shown = [arm for arm in analysis.arms if arm in across.means and arm in up.means]
    if not shown:
        return None
    figure, axes = plt.subplots(figsize=(6.6, 4.6))
    corners = [(across.means[arm].value * 100, up.means[arm].value * 100) for arm in analysis.front]
    # Stairs, not a slope: nothing promises an arm between two arms.
    axes.step(*zip(*corners, strict=True), where="pre", color=PALE, linewidth=4, zorder=1)
    for arm in shown:
        colour, best = _colour(analysis, arm), arm in analysis.front
        x, y = across.means[arm], up.means[arm]
        axes.errorbar(
            x.value * 100,
            y.value * 100,
            xerr=[[(x.value - x.low) * 100], [(x.high - x.value) * 100]],
            yerr=[[(y.value - y.low) * 100], [(y.high - y.value) * 100]],
            color=colour,
            marker=_marker(analysis, arm),
            markersize=9 if best else 7,
            markerfacecolor=colour if best else "white",
            markeredgewidth=1.6,
            linewidth=1.0,
            zorder=3,
        )
    axes.set_xlabel("understanding: VQA (%)")
    axes.set_ylabel("generation: whole scenes right (%)")
    axes.set_xlim(*_room([across.means[arm].value * 100 for arm in shown]))
    axes.set_ylim(*_room([up.means[arm].value * 100 for arm in shown]))
    axes.grid()
    _legend(axes, analysis)
    return figure


def _room(values: Sequence[float]) -> Ends:
    """Limits that leave room for crosses, but not for those of two seeds, which may span the whole axis."""
    margin = max(4.0, 0.4 * (max(values) - min(values)))
    return max(-2.0, min(values) - margin), min(102.0, max(values) + margin)


def _samples(samples: Samples | None, folder: Path) -> list[Plot]:
    for old in folder.glob("samples*.png"):
        old.unlink()
    if samples is None:
        return []
    names = list(samples.generated)
    plots = []
    for start in range(0, len(names), _ARMS):
        shown = {name: samples.generated[name] for name in names[start : start + _ARMS]}
        part = replace(samples, generated=shown)
        path = folder / f"samples{'' if start == 0 else f'_{start // _ARMS + 1}'}.png"
        with styled():
            save(grid(part), path)
        caption = "Held-out prompts, not chosen. Reconstructed: the image decoder given the real tokens."
        plots.append(Plot(path, "Samples" if start == 0 else "Samples, continued", caption))
    return plots


def _interaction(axes: Axes, analysis: Analysis, column: Column, first: str, second: str) -> None:
    varied, measured = analysis.varied, column.measured
    levels = {arm.name: arm.levels for arm in analysis.results.arms}
    lines, across = varied[first], varied[second]
    for number, line in enumerate(lines):
        points: list[tuple[float, float, Ends]] = []
        for x, level in enumerate(across):
            having = [
                a
                for a, arm in enumerate(measured.arms)
                if levels[arm].get(first) == line and levels[arm].get(second) == level
            ]
            weights = np.zeros(len(measured.arms))
            weights[having] = 1 / max(1, len(having))
            estimate = measured.estimate(weights) if having else None
            if estimate is not None:
                ends = estimate.interval or (estimate.value, estimate.value)
                points.append((x + 0.06 * (number - (len(lines) - 1) / 2), estimate.value, ends))
        if points:
            places, y, whiskers = zip(*points, strict=True)
            factor = column.measure.factor
            values = np.array(y) * factor
            low, high = np.array(whiskers).T * factor
            axes.errorbar(
                places,
                values,
                yerr=np.array([values - low, high - values]).clip(0),
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                linewidth=1.6,
                elinewidth=0.9,
                label=line,
            )
    axes.set_xticks(range(len(across)), across)
    axes.set_xlim(-0.4, len(across) - 0.6)
    axes.set_xlabel(second)
    axes.grid(axis="y")


def _pairs(analysis: Analysis, columns: Sequence[Column]) -> list[tuple[str, str]]:
    """Pairs of factors to draw: those whose interaction is least likely chance, in declared order."""
    varied = list(combinations(analysis.varied, 2))
    smallest = {
        pair: min((e.p for column in columns for e in column.effects if e.factors == pair), default=2.0)
        for pair in varied
        if any(all(factor in arm.levels for factor in pair) for arm in analysis.results.arms)
    }
    chosen = sorted(smallest, key=lambda pair: (smallest[pair], varied.index(pair)))[:_PAIRS]
    return sorted(chosen, key=varied.index)


Key = tuple[tuple[str, ...], tuple[tuple[str, str], ...]]


def _chosen(columns: Sequence[Column]) -> list[Key]:
    """Effects to draw: main effects and, while there is room, the interactions of smallest p; in order."""
    smallest: dict[Key, float] = {}
    for column in columns:
        for effect in column.effects:
            key = effect.factors, effect.levels
            smallest[key] = min(smallest.get(key, 2.0), _rank(effect))
    order = list(smallest)
    return sorted(sorted(order, key=lambda key: smallest[key])[:_ROWS], key=order.index)


def _rank(effect: Effect) -> float:
    return -1.0 if len(effect.factors) == 1 else float(np.nan_to_num(effect.p, nan=2.0))


def _label(factors: tuple[str, ...], levels: tuple[tuple[str, str], ...]) -> str:
    return f"{TIMES.join(factors)}\n{change_of(levels)}"


def _legend(axes: Axes, analysis: Analysis) -> None:
    handles: list[Line2D] = []
    titles = list(analysis.varied)[:2]
    for number, factor in enumerate(titles):
        handles.append(Line2D([], [], linestyle="", label=factor))
        for level in analysis.varied[factor]:
            if number == 0:
                colour = pick(COLOURS, analysis.varied[factor], level)
                handles.append(Line2D([], [], color=colour, linewidth=6, label=level))
            else:
                marker = pick(MARKERS, analysis.varied[factor], level)
                handles.append(Line2D([], [], color=INK, linestyle="", marker=marker, label=level))
    handles.append(Line2D([], [], color=PALE, linewidth=4, label="Pareto front"))
    legend = axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=1.4)
    for text in legend.get_texts():
        if text.get_text() in titles:
            text.set_color(QUIET)


def _colour(analysis: Analysis, arm: str) -> str:
    return _of(analysis, arm, 0, COLOURS)


def _marker(analysis: Analysis, arm: str) -> str:
    return _of(analysis, arm, 1, MARKERS)


def _of(analysis: Analysis, arm: str, number: int, palette: Sequence[str]) -> str:
    """By the level of the arm's first or second factor that varies."""
    levels = next(one.levels for one in analysis.results.arms if one.name == arm)
    factors = list(analysis.varied)
    if number >= len(factors) or factors[number] not in levels:
        return palette[-1] if number < len(factors) else palette[0]
    return pick(palette, analysis.varied[factors[number]], levels[factors[number]])
