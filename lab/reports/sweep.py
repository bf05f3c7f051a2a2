"""A sweep's table of trials, its pictures, and its page."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lab.reports.measures import measure_of
from lab.search.results import Record, Sweep, importances


def print_sweep(sweep: Sweep) -> None:
    """Prints a row a trial, also while the study runs."""
    console = Console()
    if not sys.stdout.isatty():
        console.width = 180  # a log file has no edge to wrap at
    measures = [measure_of(name) for name in sweep.objectives]
    title = f"{sweep.study}: {_counts(sweep)}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in ("trial", *map(short, sweep.keys), *(m.axis for m in measures), "seconds", ""):
        table.add_column(column, justify="left" if column == "" else "right")
    best = sweep.best
    mark = "best" if len(sweep.objectives) == 1 else "on the front"
    for record in sweep.records:
        chosen = [_word(record.chosen.get(key)) for key in sweep.keys]
        values = [m.show(value) for m, value in zip(measures, record.values, strict=False)]
        values = values or ["-"] * len(measures)
        seconds = "-" if record.seconds is None else f"{record.seconds:.0f}"
        style = "bold" if record in best else "" if record.values else "dim"
        note = mark if record in best else record.note
        table.add_row(str(record.number), *chosen, *values, seconds, note, style=style)
    console.print(table)


def write_sweep(sweep: Sweep, output: Path) -> list[Path]:
    """Writes the table of trials, the pictures and the page.

    Args:
        sweep: at least one trial is complete.
        output: folder to write to.

    Returns:
        The files that were written.
    """
    from lab.reports.sweep_page import write_page
    from lab.reports.sweep_plots import draw

    output.mkdir(parents=True, exist_ok=True)
    explained = importances(sweep)
    plots = draw(sweep, explained, output)
    written = [_table(sweep, output / "trials.csv"), *(plot.path for plot in plots)]
    return [*written, write_page(sweep, explained, output / "sweep.html")]


def short(key: str) -> str:
    """`stages.instruct.learning_rate.text_decoder` on two short lines."""
    parts = key.removeprefix("stages.").split(".")
    return key if len(parts) < 3 else f"{'.'.join(parts[:-2])}\n{'.'.join(parts[-2:])}"


def _counts(sweep: Sweep) -> str:
    states = [record.state for record in sweep.records]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _table(sweep: Sweep, path: Path) -> Path:
    """All that is known of every trial, as CSV."""
    keys = list(dict.fromkeys(key for record in sweep.records for key in record.chosen))
    metrics = sorted({name for record in sweep.records for name in record.metrics})
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with open(draft, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "state", *keys, *metrics, "seconds", "reason"])
        for record in sweep.records:
            writer.writerow([record.number, record.state, *_row(record, keys, metrics)])
    os.replace(draft, path)
    return path


def _row(record: Record, keys: list[str], metrics: list[str]) -> list[Any]:
    chosen = [record.chosen.get(key, "") for key in keys]
    return [*chosen, *(record.metrics.get(name, "") for name in metrics), record.seconds, record.reason]


def _word(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
