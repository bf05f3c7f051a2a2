"""Metrics over both amounts of data: as surfaces, and as curves with their laws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.evaluation.curves import Array
from lab.reports.look import INK
from lab.reports.measures import Measure
from lab.reports.mix.fits import Fit
from lab.reports.mix.optimum import within
from lab.reports.mix.scales import half_width, stretch
from lab.reports.mix.study import Study
from lab.reports.mix.trials import GENERATION, UNDERSTANDING, Trial

_COLUMNS = 4  # panels side by side
_LISTED = 6  # amounts of the other task that a legend names


def surfaces(study: Study) -> Figure | None:
    """Metrics over the plane of amounts: a row a setting with cells that span it."""
    rows = [
        setting
        for setting in study.settings
        if any(_spans(study.of(setting), measure) for measure in study.measures)
    ]
    if not rows:
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
            if not _spans(study.of(setting), measure):
                continue
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
    stretch(axes, "x", places[:, 0])
    stretch(axes, "y", places[:, 1])
    axes.set_xlim(-0.012 * ends[0], ends[0] * 1.2)
    axes.set_ylim(-0.004 * ends[1], ends[1] * 1.25)


def _law(axes: Axes, trials: Sequence[Trial], found: Fit) -> None:
    measure, group = found.measure, found.group
    others = sorted({trial.amounts.other(group) for trial in trials})
    tints = plt.get_cmap("plasma")(np.linspace(0.1, 0.8, len(others)))
    everywhere = sorted({trial.amounts.of(group) for trial in trials})
    apart = found.law.chosen.startswith("transfer")
    if not apart:  # the other task's samples do nothing: one curve
        _curve(axes, found, everywhere, others[0], INK, "")
    for other, tint in zip(others, tints, strict=True):
        known = [own for own in everywhere if _values(trials, measure, group, own, other).size]
        label = f"{other:,.0f}" if len(others) <= _LISTED else ""
        if apart and len(known) > 1:
            _curve(axes, found, known, other, tint, label)
            label = ""
        for own in known:
            values = _values(trials, measure, group, own, other)
            spread = half_width(values)
            axes.errorbar(own, values.mean(), yerr=spread, color=tint, fmt="o", markersize=5, elinewidth=0.9)
        if label:
            axes.plot([], [], "o", color=tint, markersize=5, label=label)
    stretch(axes, "x", np.array(everywhere))
    axes.set_xlim(-0.002 * everywhere[-1], everywhere[-1] * 1.06)
    shown = np.array([trial.metrics[measure.name] for trial in trials if measure.name in trial.metrics])
    room = 0.25 * (shown.max() - shown.min()) * measure.factor
    axes.set_ylim(
        max(0.0, shown.min() * measure.factor - room),
        min(shown.max() * measure.factor + room, 101 if measure.rate else np.inf),
    )
    axes.set_xlabel(f"samples of {group}")
    if axes.get_legend_handles_labels()[1]:
        rest = GENERATION if group == UNDERSTANDING else UNDERSTANDING
        axes.legend(title=f"of {rest}", fontsize=8, title_fontsize=8)
    axes.grid(axis="y")


def _curve(axes: Axes, found: Fit, known: Sequence[float], other: float, colour: Any, label: str) -> None:
    """The law between the fewest and the most own samples that were measured, with its band."""
    path = known[0] + np.linspace(0, 1, 80) ** 2 * (known[-1] - known[0])
    beside = np.full_like(path, other)
    sides = (path, beside) if found.group == UNDERSTANDING else (beside, path)
    low, high = found.band(*sides)
    factor = found.measure.factor
    axes.fill_between(path, low * factor, high * factor, color=colour, alpha=0.18, linewidth=0)
    axes.plot(path, found.value(*sides) * factor, color=colour, linewidth=1.6, label=label or None)


def _spans(trials: Sequence[Trial], measure: Measure) -> bool:
    """Whether the mixes that have a metric lie on no single line."""
    places = np.array([[1.0, *cell] for cell in _cells(trials, measure)])
    return bool(places.size and np.linalg.matrix_rank(places) == 3)


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


def _between(places: Array, values: Array, x: Array, y: Array) -> Array:
    """Straight lines between measured mixes (on the stretched axes)."""
    from scipy.interpolate import LinearNDInterpolator

    return np.asarray(LinearNDInterpolator(np.sqrt(places), values)(np.sqrt(x), np.sqrt(y)))


def _inside(places: Array, x: Array, y: Array) -> Array:
    """Whether points lie within the measured range."""
    cells = {(float(u), float(g)) for u, g in places}
    flat = [within(cells, float(a), float(b)) for a, b in zip(x.ravel(), y.ravel(), strict=True)]
    return np.array(flat).reshape(x.shape)
