"""The comparison as a table: in the terminal, in Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.reports.arms import Arm, Comparison
from lab.reports.measures import GENERATION, MEASURES, UNDERSTANDING, Measure

_STYLES = {"understanding": "cyan", "generation": "magenta"}


def columns(comparison: Comparison) -> list[Measure]:
    """The measures that at least one arm has."""
    return [m for m in MEASURES if any(m.name in arm.metrics for arm in comparison.arms)]


def half_width(arm: Arm, measure: Measure) -> str:
    """Half the width of the 95% interval, as shown behind ±; empty where there is none."""
    if measure.name not in arm.intervals or measure.name not in arm.metrics:
        return ""
    return f"±{sum(arm.errors(measure)) / 2:.{measure.decimals(arm.metrics[measure.name])}f}"


def show(comparison: Comparison) -> None:
    """Prints the table and what is needed to judge it."""
    console = Console()
    if not sys.stdout.isatty():
        console.width = 160  # a log file has no edge to wrap at
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{comparison.name}: {_counted(comparison)}", title_justify="left"
    )
    table.add_column("arm", no_wrap=True)
    for measure in columns(comparison):
        unit = "%" if measure.rate else "" if measure.rising else "↓"
        header = Text(f"{measure.group[:3]}\n{measure.label}\n{unit}", style=_STYLES[measure.group])
        table.add_column(header, justify="right")
    front = comparison.front
    for arm in comparison.arms:
        cells = []
        for measure in columns(comparison):
            value = arm.value(measure)
            bold = "bold" if value is not None and value == comparison.best_value(measure) else ""
            cells.append(
                Text(measure.show(value), style=bold) + Text(f"\n{half_width(arm, measure)}", style="dim")
            )
        name = Text(arm.name, style="bold" if arm is comparison.best else "")
        table.add_row(name + Text("\non the front" if arm in front else "\n", style="dim"), *cells)
    console.print(table)
    for line in notes(comparison):
        console.print(line, soft_wrap=True, highlight=False)


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know beside the table, a sentence each."""
    best = comparison.best
    lines = [
        f"Best on average of VQA and whole scenes: {best.name} "
        f"(VQA {UNDERSTANDING.show(best.value(UNDERSTANDING))}%, "
        f"scenes {GENERATION.show(best.value(GENERATION))}%). "
        f"On the Pareto front: {', '.join(arm.name for arm in comparison.front) or 'none'}.",
        "± is half of a 95% interval over samples of one seed: differences between seeds come on top.",
    ]
    if guessing := [
        f"{m.label} {m.show(level)}%"
        for m in columns(comparison)
        if (level := comparison.chance(m.name)) is not None
    ]:
        lines.append(f"Chance, always the most frequent answer: {', '.join(guessing)}.")
    if judge := comparison.shared.get("judge"):
        rates = [
            f"{name.removeprefix('judge/')} {value:.1%}" for name, value in judge.items() if 0 < value <= 1
        ]
        lines.append(f"The judge itself, on real held-out images: {', '.join(rates)}.")
    if ceiling := _ceiling(comparison):
        lines.append(f"Ceiling, the image decoder given the real tokens: {', '.join(ceiling)}.")
    if comparison.left_out:
        lines.append(f"Left out, no longer in params.yaml: {', '.join(comparison.left_out)}.")
    return lines


def markdown(comparison: Comparison) -> str:
    """The table with its notes, as Markdown."""
    shown = columns(comparison)
    heads = [f"{m.group}: {m.label}{' (%)' if m.rate else ''}{'' if m.rising else ' ↓'}" for m in shown]
    lines = [
        f"# {comparison.name}: {_counted(comparison)}",
        "",
        f"| arm | {' | '.join(heads)} |",
        f"|---|{'---:|' * len(heads)}",
    ]
    for arm in comparison.arms:
        cells = []
        for measure in shown:
            value = arm.value(measure)
            number = measure.show(value)
            if value is not None and value == comparison.best_value(measure):
                number = f"**{number}**"
            cells.append(f"{number} {half_width(arm, measure)}".strip())
        lines.append(f"| {arm.name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(comparison)), ""])


def comma_separated(comparison: Comparison) -> str:
    """Every number of every arm: one line an arm and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = list(dict.fromkeys(key for arm in comparison.arms for key in arm.choices))
    writer.writerow(["arm", *keys, "metric", "value", "low", "high", "chance", "samples"])
    for arm in comparison.arms:
        words = [arm.choices.get(key, "") for key in keys]
        for name, value in arm.metrics.items():
            interval = arm.intervals.get(name, ("", ""))
            writer.writerow([arm.name, *words, name, value, *interval, arm.chance.get(name, ""), arm.samples])
    return text.getvalue()


def _counted(comparison: Comparison) -> str:
    arms, samples = len(comparison.arms), {arm.samples for arm in comparison.arms}
    return f"{arms} arm{'s' if arms > 1 else ''}, {_list(sorted(samples))} scored samples each"


def _ceiling(comparison: Comparison) -> list[str]:
    rates = [
        f"{name} {level:.1%}"
        for name in ("digit", "scene")
        if (level := comparison.ceiling(f"generation/{name}")) is not None
    ]
    noise = comparison.ceiling("generation/psnr")
    return rates + ([] if noise is None else [f"{noise:.1f} dB"])


def _list(numbers: Iterable[int]) -> str:
    return " or ".join(f"{number:,}" for number in numbers)
