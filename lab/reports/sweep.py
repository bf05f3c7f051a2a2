"""A finished sweep: its table of trials and three pictures."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from rich import box
from rich.console import Console
from rich.table import Table

from lab.reports.look import COLOURS, INK, PALE, QUIET, save, styled


@dataclass(frozen=True)
class Record:
    """One trial.

    Attributes:
        number: Optuna's.
        state: complete, pruned or fail.
        value: The objective, where it was reached.
        params: What was chosen.
        seconds: How long it took.
        curve: Intermediate values by step.
        reason: Why it failed.
    """

    number: int
    state: str
    value: float | None
    params: Mapping[str, Any]
    seconds: float | None = None
    curve: Mapping[int, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def note(self) -> str:
        """Why it has no value."""
        if self.value is not None:
            return ""
        return self.reason[:60] or f"pruned at step {max(self.curve, default=0)}"


@dataclass(frozen=True)
class Sweep:
    """All trials of a study, in order, and how much each setting mattered."""

    name: str
    objective: str
    direction: str
    records: tuple[Record, ...]
    importances: Mapping[str, float]

    @property
    def best(self) -> Record:
        complete = [record for record in self.records if record.value is not None]
        sign = 1 if self.direction == "maximize" else -1
        return max(complete, key=lambda record: sign * (record.value or 0))

    @property
    def keys(self) -> list[str]:
        """Everything that any trial chose."""
        return list(dict.fromkeys(key for record in self.records for key in record.params))


def report(sweep: Sweep, output: Path) -> list[Path]:
    """Prints the table of trials, writes it and the pictures.

    Args:
        sweep: What to show; at least one trial is complete.
        output: Folder to write to.

    Returns:
        The files that were written.
    """
    output.mkdir(parents=True, exist_ok=True)
    _show(sweep)
    written = [_table(sweep, output / "trials.csv")]
    with styled():
        for name, figure in (
            ("history.png", history(sweep)),
            ("slice.png", slices(sweep)),
            ("importance.png", importance(sweep)),
        ):
            if figure is None:
                (output / name).unlink(missing_ok=True)
                continue
            save(figure, output / name)
            written.append(output / name)
    return written


def history(sweep: Sweep) -> Figure:
    """Every trial's value and the best so far."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    best, steps = None, []
    for place, record in enumerate(sweep.records, start=1):
        if record.value is not None:
            better = best is None or (record.value > best) == (sweep.direction == "maximize")
            best = record.value if better else best
        if best is not None:
            steps.append((place, best))
    axes.step(*zip(*steps, strict=True), where="post", color=PALE, linewidth=4, label="best so far", zorder=1)
    _points(axes, sweep, list(range(1, len(sweep.records) + 1)))
    axes.set_xticks(_whole(len(sweep.records)))
    axes.set_xlabel("trial")
    axes.set_ylabel(sweep.objective)
    axes.grid(axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def slices(sweep: Sweep) -> Figure | None:
    """The value against each setting alone."""
    keys = [key for key in sweep.keys if len({str(r.params.get(key)) for r in sweep.records}) > 1]
    if not keys:
        return None
    size = (0.6 + 2.9 * len(keys), 3.4)
    figure, row = plt.subplots(1, len(keys), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, key in zip(row[0], keys, strict=True):
        chosen = [record.params.get(key) for record in sweep.records]
        if all(
            isinstance(value, int | float) and not isinstance(value, bool)
            for value in chosen
            if value is not None
        ):
            _points(axes, sweep, chosen)
            _scale(axes, [float(value) for value in chosen if value is not None])
        else:
            words = list(dict.fromkeys(str(value) for value in chosen if value is not None))
            _points(axes, sweep, [None if value is None else words.index(str(value)) for value in chosen])
            axes.set_xticks(range(len(words)), words)
            axes.set_xlim(-0.6, len(words) - 0.4)
        axes.set_xlabel(_short(key))
        axes.grid(axis="y")
    row[0][0].set_ylabel(sweep.objective)
    marks: dict[str, Any] = {}
    for axes in row[0]:
        handles, labels = axes.get_legend_handles_labels()
        marks |= dict(zip(labels, handles, strict=True))
    row[0][-1].legend(marks.values(), marks, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def importance(sweep: Sweep) -> Figure | None:
    """How much of the values' differences each setting explains."""
    ranked = sorted(sweep.importances.items(), key=lambda item: item[1])
    if not ranked:
        return None
    figure, axes = plt.subplots(figsize=(6.0, 0.9 + 0.42 * len(ranked)))
    bars = axes.barh(
        [_short(key) for key, _ in ranked], [value for _, value in ranked], 0.62, color=COLOURS[0]
    )
    axes.bar_label(bars, fmt="%.2f", padding=4)
    axes.set_xlim(0, 1.1)
    axes.set_xlabel(f"share of the differences in {sweep.objective} (PED-ANOVA)")
    axes.tick_params(axis="y", length=0)
    return figure


def _scale(axes: Axes, numbers: list[float]) -> None:
    """A range that shows pruned trials too; logarithmic where the numbers span it."""
    low, high = min(numbers), max(numbers)
    if low <= 0 or high / low < 5:
        margin = 0.06 * (high - low) or 0.5
        axes.set_xlim(low - margin, high + margin)
        return
    axes.set_xscale("log")
    axes.set_xlim(low / 1.15, high * 1.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _points(axes: Axes, sweep: Sweep, places: list[Any]) -> None:
    shown = [(place, r) for place, r in zip(places, sweep.records, strict=True) if place is not None]
    if complete := [(place, record.value) for place, record in shown if record.value is not None]:
        x, y = zip(*complete, strict=True)
        axes.scatter(x, y, s=44, color=COLOURS[0], label="complete", zorder=3)
    if stopped := [place for place, record in shown if record.value is None]:
        edge = axes.get_xaxis_transform()  # no value of theirs is comparable: marks on the lower edge
        axes.scatter(
            stopped,
            [0.02] * len(stopped),
            s=40,
            marker="x",
            color=QUIET,
            label="pruned or failed",
            transform=edge,
        )
    if best := [(place, record.value) for place, record in shown if record is sweep.best]:
        x, y = zip(*best, strict=True)
        axes.scatter(x, y, s=150, facecolors="none", edgecolors=INK, linewidths=1.4, label="best", zorder=4)


def _show(sweep: Sweep) -> None:
    console = Console()
    if not sys.stdout.isatty():
        console.width = 160  # a log file has no edge to wrap at
    table = Table(box=box.SIMPLE_HEAD, title=f"{sweep.name}: {sweep.objective}", title_justify="left")
    for column in ("trial", *map(_short, sweep.keys), sweep.objective, "seconds", ""):
        table.add_column(column, justify="left" if column == "" else "right")
    for record in sweep.records:
        style = "bold" if record is sweep.best else "dim" if record.value is None else ""
        value = "-" if record.value is None else f"{record.value:.4g}"
        note = "best" if record is sweep.best else record.note
        chosen = [_word(record.params.get(key)) for key in sweep.keys]
        seconds = "-" if record.seconds is None else f"{record.seconds:.0f}"
        table.add_row(str(record.number), *chosen, value, seconds, note, style=style)
    console.print(table)


def _table(sweep: Sweep, path: Path) -> Path:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with open(draft, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "state", *sweep.keys, sweep.objective, "seconds", "reason"])
        for record in sweep.records:
            chosen = [record.params.get(key, "") for key in sweep.keys]
            value = "" if record.value is None else record.value
            writer.writerow([record.number, record.state, *chosen, value, record.seconds, record.reason])
    os.replace(draft, path)
    return path


def _word(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _short(key: str) -> str:
    """`stages.instruct.learning_rate.text_decoder` on two short lines."""
    parts = key.removeprefix("stages.").split(".")
    return key if len(parts) < 3 else f"{'.'.join(parts[:-2])}\n{'.'.join(parts[-2:])}"


def _whole(count: int) -> range:
    return range(1, count + 1, max(1, count // 10))
