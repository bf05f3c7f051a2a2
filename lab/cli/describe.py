"""`lab describe`: what a system weighs and what its training costs, part by part."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lab.errors import LabError

if TYPE_CHECKING:
    from lab.graph.description import Part


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("system", metavar="SYSTEM", help="a name that `lab systems` lists, or a YAML file")
    parser.add_argument("--size", choices=("full", "small"), default="full", help="full is the paper's")


def run(args: argparse.Namespace) -> None:
    # read when the libraries are imported: nothing is fetched, and no word on configurations
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from lab.graph.system import find, read_system

    path = find(args.system)
    system = read_system(path)
    if args.size == "full" and system.full is None:
        raise LabError(f"{path}: there is no full size")
    from lab.graph.description import MEMORY, OPERATIONS, beside, describe, shape_of
    from lab.graph.small import small_params

    small = args.size == "small"
    parts, costs = describe(shape_of(small_params(system, path, [])) if small else system.full or {})
    print(f"{system.name}: {system.title}, arXiv:{system.paper}; {args.size} size\n")
    rows = [["role", "word", "parameters", *(f"train in {cost.stage}" for cost in costs)]]
    for part in parts:
        trained = [_trained(part.trainable.get(cost.stage), part.parameters) for cost in costs]
        rows.append([part.role, part.word, _count(part.parameters), *trained])
    total = sum(part.parameters for part in parts)
    rows.append(["all", "", _count(total), *(_count(_sum(parts, cost.stage)) for cost in costs)])
    _print(rows)
    if not small and system.published:
        rows = [["published", "", "here", "published", "difference"]]
        for roles, here, there, difference in beside(parts, system.published):
            rows.append([roles, "", _count(here), _count(there), f"{difference:+.1%}"])
        _print(rows)
    rows = [["stage", "samples a step", "weights", "gradients", "optimizer", "together", "operations a step"]]
    for cost in costs:
        bytes_ = [cost.weights, cost.gradients, cost.optimizer]
        sizes = [_bytes(size) for size in (*bytes_, sum(bytes_))]
        batch = str(cost.batch_size or "1 (not stated)")
        rows.append([cost.stage, batch, *sizes, f"{cost.operations:.2e}"])
    _print(rows)
    print(f"{MEMORY}\n{OPERATIONS}")


def _trained(parameters: int | None, of: int) -> str:
    """A cell of a stage: how many parameters train; empty where the stage does not run the part."""
    if parameters is None or not of:
        return ""
    return {0: "none", of: "all"}.get(parameters) or _count(parameters)


def _sum(parts: Iterable[Part], stage: str) -> int:
    return sum(part.trainable.get(stage, 0) for part in parts)


def _count(number: int) -> str:
    """A number of parameters in three digits or four: 6.738B, 303.5M, 21.0M, 0."""
    for unit, size, digits in (("B", 1e9, 3), ("M", 1e6, 2), ("K", 1e3, 1)):
        if number >= size:
            return f"{number / size:.{digits}f}{unit}"
    return str(number)


def _bytes(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**27 else f"{number / 2**20:.2f} MiB"


def _print(rows: list[list[str]]) -> None:
    """Columns, the first two to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        print("  ".join(left + right).rstrip())
    print()
