"""The table of `lab eval`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def evaluation_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Results of protocols as one table: a row a figure, a column a number of shots, "-" where not measured.

    Args:
        results: as `lab.graph.evaluations.evaluate_run` returns them.
    """
    chosen: dict[str, list[str]] = {}  # how shots were chosen, where that was a choice
    for result in results:
        choices = chosen.setdefault(result["protocol"], [])
        if result["choice"] and result["choice"] not in choices:
            choices.append(result["choice"])
    columns = sorted({result["shots"] for result in results if result["figures"]})
    cells: dict[str, dict[int, str]] = {}
    for protocol, choices in chosen.items():
        for choice in choices or [""]:
            for result in results:
                if result["protocol"] != protocol or result["choice"] not in ("", choice):
                    continue  # without shots there was nothing to choose: that result belongs to each choice
                for name, figure in result["figures"].items():
                    row = f"{protocol}/{name}" + (f" ({choice} shots)" if choice else "")
                    cells.setdefault(row, {})[result["shots"]] = _shown(figure)
    heads = ["metric", *(_head(shots, len(columns)) for shots in columns)]
    rows = [heads, *([name, *(of.get(shots, "-") for shots in columns)] for name, of in cells.items())]
    widths = [max(len(row[place]) for row in rows) for place in range(len(heads))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def _head(shots: int, columns: int) -> str:
    if not shots and columns == 1:
        return "value [95% interval]"
    return f"{shots} shot{'' if shots == 1 else 's'}"


def _shown(figure: Mapping[str, Any]) -> str:
    value, low, high = (
        math.nan if figure[part] is None else figure[part] for part in ("value", "low", "high")
    )
    return "undefined" if math.isnan(value) else f"{value:.3f} [{low:.3f}, {high:.3f}]"
