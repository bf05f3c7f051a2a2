"""Where the nodes of a graph stand in a picture, and which of them are drawn as one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.graph.compile import Graph

_SEED = re.compile(r"-?\bs\d+$")


@dataclass(frozen=True)
class Unit:
    """Nodes that are drawn as one.

    Attributes:
        title: what stands on it.
        stage: of all of them.
        nodes: their names.
        needs: titles of the units whose outputs it takes.
    """

    title: str
    stage: str
    nodes: tuple[str, ...]
    needs: tuple[str, ...]


def units_of(graph: Graph, merged: bool) -> list[Unit]:
    """What is drawn of a graph, in order, with the edges that do not follow from others.

    Args:
        graph: compiled.
        merged: nodes that differ in their seed alone are one.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for name, node in graph.nodes.items():
        groups.setdefault((node.stage, seedless(node.label) if merged else node.label), []).append(name)
    titles = {name: title_of(graph, names) for names in groups.values() for name in names}
    above: dict[str, set[str]] = {}
    units = []
    for (stage, _), names in groups.items():
        needs = {titles[other]: None for name in names for other in graph.nodes[name].inputs.values()}
        title = titles[names[0]]
        above[title] = set(needs).union(*(above[need] for need in needs))
        indirect = set().union(*(above[need] for need in needs))
        units.append(Unit(title, stage, tuple(names), tuple(need for need in needs if need not in indirect)))
    return units


def title_of(graph: Graph, names: Sequence[str]) -> str:
    """What to call some nodes of one stage."""
    first = graph.nodes[names[0]]
    labels = {seedless(graph.nodes[name].label) for name in names}
    if len(names) == 1:
        return names[0]
    if len(labels) > 1:
        return f"{first.stage}, {len(names)} nodes"
    label = labels.pop()
    return f"{first.stage}@{label}{'-' if label else ''}s* ({len(names)} seeds)"


def seedless(label: str) -> str:
    return _SEED.sub("", label)


def columns_of(units: Sequence[Unit]) -> list[list[Unit]]:
    """Units by stage: each stage just before those that need it, units of one arm side by side."""
    stage = {unit.title: unit.stage for unit in units}
    before_end: dict[str, int] = {}
    for unit in reversed(units):
        here = before_end.setdefault(unit.stage, 0)
        for need in unit.needs:
            before_end[stage[need]] = max(before_end.get(stage[need], 0), here + 1)
    columns: list[list[Unit]] = [[] for _ in range(max(before_end.values()) + 1)]
    order: dict[str, tuple[int, ...]] = {}
    for index, unit in enumerate(units):
        last = max((order[need] for need in unit.needs), key=lambda way: way[-1], default=())
        order[unit.title] = (*last, index)
        columns[-1 - before_end[unit.stage]].append(unit)
    return [sorted(column, key=lambda unit: order[unit.title]) for column in columns]


def heights_of(columns: Sequence[Sequence[Unit]]) -> dict[str, float]:
    """Rows of all units: each beside the middle of what needs it, none on another."""
    needed_by: dict[str, list[str]] = {}
    for unit in (unit for column in columns for unit in column):
        for need in unit.needs:
            needed_by.setdefault(need, []).append(unit.title)
    heights: dict[str, float] = {}
    for column in reversed(columns):
        wished = {}
        for index, unit in enumerate(column):
            rows = [heights[other] for other in needed_by.get(unit.title, ())]
            wished[unit.title] = sum(rows) / len(rows) if rows else float(index)
        heights |= _apart(wished)
    return heights


def _apart(wished: Mapping[str, float]) -> dict[str, float]:
    """Rows at least one apart that are as near to those wished for as their order allows."""
    blocks: list[tuple[list[str], float]] = []  # each in rows that follow one another, with its first row
    for title in sorted(wished, key=wished.__getitem__):
        blocks.append(([title], wished[title]))
        while len(blocks) > 1 and blocks[-2][1] + len(blocks[-2][0]) > blocks[-1][1]:
            members = blocks[-2][0] + blocks[-1][0]
            first = sum(wished[one] - offset for offset, one in enumerate(members)) / len(members)
            blocks[-2:] = [(members, first)]
    return {title: first + offset for members, first in blocks for offset, title in enumerate(members)}
