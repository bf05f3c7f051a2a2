"""A sweep's pictures: history, slices, importance, parallel coordinates, Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from lab.reports.look import COLOURS, INK, LINES, PALE, QUIET, Plot, draw_each
from lab.reports.measures import measure_of
from lab.reports.sweep import short
from lab.search.results import Record, Sweep

_MAP = "viridis"


def draw(sweep: Sweep, explained: Mapping[str, Mapping[str, float]], folder: Path) -> list[Plot]:
    """Draws all pictures for which there are numbers; earlier ones for which there are none go.

    Args:
        sweep: what to show.
        explained: objective -> setting -> share of the differences that it explains.
        folder: where the PNGs go.
    """
    wanted: list[tuple[str, str, str, Callable[[Sweep], Figure | None]]] = [
        ("front", "Pareto front", "", front),
        ("history", "Optimisation history", "", history),
        ("importance", "What mattered", "", lambda shown: importance(shown, explained)),
        ("slice", "Each setting alone", "", slices),
        ("parallel", "All settings together", "", parallel),
    ]
    return draw_each(wanted, sweep, folder)


def front(sweep: Sweep) -> Figure | None:
    """Two objectives against each other, with the trials that nothing beats joined by stairs."""
    if len(sweep.objectives) < 2 or not sweep.complete:
        return None
    names = list(sweep.objectives)[:2]
    figure, axes = plt.subplots(figsize=(6.6, 4.6))
    best = sorted(_front_of(sweep, names), key=lambda record: _at(sweep, record, names[0]))
    rising = sweep.objectives[names[0]] == "maximize"
    corners = [[_at(sweep, record, name) for name in names] for record in best]
    x, y = zip(*corners, strict=True)
    # stairs, not a slope: nothing promises a trial between two trials
    axes.step(x, y, where="pre" if rising else "post", color=PALE, linewidth=4, zorder=1)
    axes.scatter(x, y, s=150, facecolors="none", edgecolors=INK, linewidths=1.4, zorder=4)
    for record, at in zip(best, corners, strict=True):
        axes.annotate(
            str(record.number), (at[0], at[1]), (7, 7), textcoords="offset points", fontsize=8, color=QUIET
        )
    key = next((key for key in sweep.keys if _numeric(sweep, key)), None)
    x, y = zip(*([_at(sweep, record, name) for name in names] for record in sweep.complete), strict=True)
    if key is None:
        axes.scatter(x, y, s=48, color=COLOURS[0], zorder=3)
    else:
        shades = [record.chosen.get(key, np.nan) for record in sweep.complete]
        norm = "log" if key in sweep.logarithmic else None
        points = axes.scatter(x, y, s=52, c=shades, cmap=_MAP, norm=norm, zorder=3, plotnonfinite=True)
        bar = figure.colorbar(points, ax=axes, pad=0.03)
        bar.set_label(short(key).replace("\n", "."))
        bar.outline.set_visible(False)
    labels = [
        _label(name) + ("" if sweep.objectives[name] == "maximize" else ", less is better") for name in names
    ]
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title("Circles: no other trial is better in both")
    axes.margins(0.1)
    axes.grid()
    return figure


def history(sweep: Sweep) -> Figure:
    """Every trial's values and the best so far."""
    names = list(sweep.objectives)
    size = (6.8, 0.8 + 2.7 * len(names))
    figure, column = plt.subplots(
        len(names), 1, figsize=size, sharex=True, squeeze=False, layout="constrained"
    )
    for axes, name in zip(column[:, 0], names, strict=True):
        sign = 1 if sweep.objectives[name] == "maximize" else -1
        best, steps = None, []
        for record in sweep.records:
            if record.values:
                value = sign * _at(sweep, record, name)
                best = value if best is None else max(best, value)
            if best is not None:
                steps.append((record.number, sign * best))
        if steps:
            x, y = zip(*steps, strict=True)
            axes.step(x, y, where="post", color=PALE, linewidth=4, label="best so far", zorder=1)
        _points(axes, sweep, name, [record.number for record in sweep.records])
        axes.set_ylabel(_label(name))
        axes.grid(axis="y")
    column[-1, 0].xaxis.set_major_locator(MaxNLocator(10, integer=True))
    column[-1, 0].set_xlabel("trial")
    _legend(figure, column)
    return figure


def slices(sweep: Sweep) -> Figure | None:
    """The values against each setting alone: a row an objective, a column a setting."""
    keys = [key for key in sweep.keys if len({str(one.chosen.get(key)) for one in sweep.records}) > 1]
    if not keys:
        return None
    names = list(sweep.objectives)
    size = (1.6 + 2.7 * len(keys), 0.8 + 2.7 * len(names))
    figure, rows = plt.subplots(
        len(names), len(keys), figsize=size, sharey="row", sharex="col", squeeze=False, layout="constrained"
    )
    for row, name in zip(rows, names, strict=True):
        for axes, key in zip(row, keys, strict=True):
            chosen = [record.chosen.get(key) for record in sweep.records]
            if _numeric(sweep, key):
                _points(axes, sweep, name, chosen)
                _scale(
                    axes, [float(value) for value in chosen if value is not None], key in sweep.logarithmic
                )
            else:
                words = list(dict.fromkeys(str(value) for value in chosen if value is not None))
                places = [None if value is None else words.index(str(value)) for value in chosen]
                _points(axes, sweep, name, places)
                axes.set_xticks(range(len(words)), words)
                axes.set_xlim(-0.6, len(words) - 0.4)
            axes.grid(axis="y")
        row[0].set_ylabel(_label(name))
    for axes, key in zip(rows[-1], keys, strict=True):
        axes.set_xlabel(short(key))
    _legend(figure, rows)
    return figure


def importance(sweep: Sweep, explained: Mapping[str, Mapping[str, float]]) -> Figure | None:
    """How much of the values' differences each setting explains."""
    keys = sorted(
        {key for shares in explained.values() for key in shares},
        key=lambda key: sum(shares.get(key, 0.0) for shares in explained.values()),
    )
    if not keys:
        return None
    height = 0.8 / len(explained)
    size = (6.4, 1.1 + (0.25 + 0.3 * len(explained)) * len(keys))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    for place, (name, shares) in enumerate(explained.items()):
        at = [row + 0.4 - height * (place + 0.5) for row in range(len(keys))]
        values = [shares.get(key, 0.0) for key in keys]
        bars = axes.barh(at, values, height * 0.9, color=COLOURS[place % len(COLOURS)], label=_label(name))
        axes.bar_label(bars, fmt="%.2f", padding=4, fontsize=9)
    axes.set_yticks(range(len(keys)), [short(key) for key in keys])
    axes.set_xlim(0, 1.1)
    count = len(sweep.complete)
    axes.set_xlabel(f"share of the differences between {count} trials (PED-ANOVA)")
    axes.tick_params(axis="y", length=0)
    if len(explained) > 1:
        figure.legend(loc="outside lower center", ncols=2)
    else:
        axes.set_title(_label(next(iter(explained))))
    return figure


def parallel(sweep: Sweep) -> Figure | None:
    """A line a trial through all settings and objectives, coloured by the first objective."""
    columns = [*sweep.keys, *sweep.objectives]
    if len(sweep.keys) < 2 or not sweep.complete:
        return None
    figure, axes = plt.subplots(figsize=(1.8 + 2.1 * len(columns), 4.2))
    first = next(iter(sweep.objectives))
    values = [_at(sweep, record, first) for record in sweep.complete]
    norm = plt.Normalize(min(values), max(values) or 1.0)
    colours = plt.get_cmap(_MAP)
    scales = [_ticks(sweep, column) for column in columns]
    for record in sweep.complete:
        best = record in sweep.best
        known = [(_value(sweep, record, column), place) for place, column in enumerate(columns)]
        known = [(value, place) for value, place in known if value is not None]
        axes.plot(
            [place for _, place in known],
            [scales[place][0](value) for value, place in known],
            color=colours(norm(_at(sweep, record, first))),
            linewidth=2.4 if best else 1.1,
            alpha=1.0 if best else 0.65,
            zorder=3 if best else 2,
        )
    for place, (_, ticks) in enumerate(scales):
        axes.axvline(place, color=LINES, linewidth=1.2, zorder=1)
        for height, text in ticks:
            axes.text(place - 0.04, height, text, ha="right", va="center", fontsize=8, color=QUIET)
    labels = [_label(column) if column in sweep.objectives else short(column) for column in columns]
    axes.set_xticks(range(len(columns)), labels)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.4, len(columns) - 0.6)
    bar = figure.colorbar(plt.cm.ScalarMappable(norm, colours), ax=axes, pad=0.02)
    bar.set_label(_label(first))
    bar.outline.set_visible(False)
    axes.set_title("Thick: the best" if len(sweep.objectives) == 1 else "Thick: on the Pareto front")
    return figure


def _ticks(sweep: Sweep, column: str) -> tuple[Any, list[tuple[float, str]]]:
    """Of a column: value -> height in [0, 1], and its ticks."""
    found = [value for one in sweep.complete if (value := _value(sweep, one, column)) is not None]
    if column not in sweep.objectives and not _numeric(sweep, column):
        words = list(dict.fromkeys(map(str, found)))
        step = 1.0 / max(1, len(words) - 1)
        heights = {word: place * step for place, word in enumerate(words)}
        return lambda value: heights[str(value)], [(at, word) for word, at in heights.items()]
    low, high = min(found), max(found)
    log = column in sweep.logarithmic
    bend: Any = np.log if log else float
    width = bend(high) - bend(low) or 1.0
    ends = (low, (low * high) ** 0.5 if log else (low + high) / 2, high)
    ticks = [((bend(end) - bend(low)) / width, f"{end:.3g}") for end in dict.fromkeys(ends)]
    return lambda value: (bend(value) - bend(low)) / width, ticks


def _value(sweep: Sweep, record: Record, column: str) -> Any:
    return _at(sweep, record, column) if column in sweep.objectives else record.chosen.get(column)


def _front_of(sweep: Sweep, names: list[str]) -> list[Record]:
    """Trials that no other beats in two of the objectives."""
    signs = [1 if sweep.objectives[name] == "maximize" else -1 for name in names]

    def beaten(record: Record) -> bool:
        for other in sweep.complete:
            gains = [
                sign * (_at(sweep, other, name) - _at(sweep, record, name))
                for sign, name in zip(signs, names, strict=True)
            ]
            if min(gains) >= 0 and max(gains) > 0:
                return True
        return False

    return [record for record in sweep.complete if not beaten(record)]


def _at(sweep: Sweep, record: Record, name: str) -> float:
    """An objective's value as it is shown."""
    return record.values[list(sweep.objectives).index(name)] * measure_of(name).factor


def _label(name: str) -> str:
    return f"{measure_of(name).group}: {measure_of(name).axis}"


def _numeric(sweep: Sweep, key: str) -> bool:
    found = [record.chosen[key] for record in sweep.records if key in record.chosen]
    return bool(found) and all(type(value) in (int, float) for value in found)


def _scale(axes: Axes, numbers: list[float], log: bool) -> None:
    """A range that shows pruned trials too."""
    low, high = min(numbers), max(numbers)
    if not log:
        margin = 0.06 * (high - low) or 0.5
        axes.set_xlim(low - margin, high + margin)
        return
    axes.set_xscale("log")
    axes.set_xlim(low / 1.15, high * 1.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _points(axes: Axes, sweep: Sweep, name: str, places: list[Any]) -> None:
    shown = [(place, r) for place, r in zip(places, sweep.records, strict=True) if place is not None]
    if complete := [(place, _at(sweep, record, name)) for place, record in shown if record.values]:
        x, y = zip(*complete, strict=True)
        axes.scatter(x, y, s=44, color=COLOURS[0], label="complete", zorder=3)
    if stopped := [place for place, record in shown if not record.values]:
        edge = axes.get_xaxis_transform()  # no value of theirs is comparable: marks on the lower edge
        marks = {"s": 40, "marker": "x", "color": QUIET, "label": "without result", "transform": edge}
        axes.scatter(stopped, [0.02] * len(stopped), **marks)  # type: ignore[arg-type]
    best = sweep.best
    if rings := [(place, _at(sweep, record, name)) for place, record in shown if record in best]:
        x, y = zip(*rings, strict=True)
        label = "best" if len(sweep.objectives) == 1 else "on the front"
        axes.scatter(x, y, s=150, facecolors="none", edgecolors=INK, linewidths=1.4, label=label, zorder=4)


def _legend(figure: Figure, grid: Any) -> None:
    marks: dict[str, Any] = {}
    for axes in grid.flat:
        handles, labels = axes.get_legend_handles_labels()
        marks |= dict(zip(labels, handles, strict=True))
    figure.legend(marks.values(), marks, loc="outside right center")
