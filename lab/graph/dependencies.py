"""The nodes of a compiled graph as tasks: the files and folders that each depends on, and what it leaves."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lab.graph.compile import Graph, GraphNode
from lab.graph.node import REPOSITORY
from lab.graph.task import Task


def tasks_of(graph: Graph) -> dict[str, Task]:
    """Every node, and the comparison, as a task; each after those that it needs."""
    folder = graph.folder.resolve()

    def task(name: str, file: Path, deps: list[str], outs: list[str], parents: Iterable[str]) -> Task:
        command = f"lab stage {name}"
        return Task(name, command, folder, file, tuple(deps), tuple(outs), frozenset(parents), folder)

    tasks = {
        node.name: task(
            node.name,
            folder / "nodes" / node.label / "dvc.yaml",
            dependencies_of(graph, node),
            [node.output, *([node.metrics] if node.metrics else [])],
            node.inputs.values(),
        )
        for node in graph.nodes.values()
    }
    outs = ["output/compare", "metrics/comparison.json"]
    compared = [node.name for node in graph.nodes.values() if node.stage not in ("data", "judge")]
    return tasks | {
        "compare": task("compare", folder / "dvc.yaml", dependencies_of_comparison(graph), outs, compared)
    }


def dependencies_of(graph: Graph, node: GraphNode) -> list[str]:
    """All that a node reads, relative to the ablation's folder."""
    taken = [graph.nodes[name].output for name in node.inputs.values()]
    numbers = [graph.nodes[node.inputs[word]].metrics for word in node.numbers]
    code = [_relative(graph, place) for place in node.code]
    data = [_place_of(graph, entry) for key, entry in node.reads.items() if key.startswith("datasets.")]
    return [f"nodes/{node.label}/{node.stage}.yaml", *taken, *filter(None, numbers), *data, *code]


def dependencies_of_comparison(graph: Graph) -> list[str]:
    """All that the comparison reads, likewise."""
    taken: dict[str, None] = {"compare.yaml": None}
    for by_seed in graph.evaluations.values():
        for name in by_seed.values():
            taken |= {
                f"metrics/{name.replace('@', '/')}.json": None,
                f"output/{name.replace('@', '/')}": None,
            }
    for node in graph.nodes.values():
        if node.metrics and node.stage not in ("judge", "evaluate"):
            taken[node.metrics] = None
    code = (_relative(graph, place) for place in ("lab/reports", "lab/evaluation/statistics.py"))
    return [*sorted(taken), *code]


def _place_of(graph: Graph, entry: Mapping[str, Any]) -> str:
    """The folder of a data set, relative to the ablation's."""
    above = (place / entry["path"] for place in (graph.folder, *graph.folder.parents))
    found = next((place for place in above if place.is_dir()), REPOSITORY / entry["path"])
    return Path(os.path.relpath(found, graph.folder)).as_posix()


def _relative(graph: Graph, place: str) -> str:
    if Path(place).is_absolute():  # a component of one's own, outside the repository
        return place
    return Path(os.path.relpath(REPOSITORY / place, graph.folder)).as_posix()
