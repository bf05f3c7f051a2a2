"""Writes a compiled graph as the files that DVC and the stages read.

nodes/LABEL/STAGE.yaml   all that the node reads: settings, and the nodes whose outputs it takes
nodes/LABEL/dvc.yaml     the DVC stages of one label, few a file: DVC's cost grows with the square of them
dvc.yaml, compare.yaml   the comparison, from which `dvc repro` reaches everything
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import yaml

from lab.graph.compile import Graph, GraphNode
from lab.graph.dependencies import dependencies_of, dependencies_of_comparison

_HEAD = "# Compiled from ablation.yaml by `lab graph compile`; change that, not this.\n"
_UNTRAINED = ("data", "judge", "evaluate")  # stages whose cost is no part of an arm's


def files_of(graph: Graph) -> dict[str, str]:
    """Relative path -> text of every file that the graph compiles to."""
    by_label: dict[str, list[GraphNode]] = {}
    for node in graph.nodes.values():
        by_label.setdefault(node.label, []).append(node)
    files = {"compare.yaml": _compare(graph), "dvc.yaml": _compare_stage(graph)}
    for label, nodes in by_label.items():
        files[f"nodes/{label}/dvc.yaml"] = (
            _HEAD + "stages:\n" + "".join(_stage(graph, node) for node in nodes)
        )
        for node in nodes:
            files[f"nodes/{label}/{node.stage}.yaml"] = _node(node)
    return files


def write(graph: Graph) -> list[str]:
    """Writes the files of a graph and removes those of an earlier one.

    Returns:
        Relative paths of what changed.
    """
    folder, files = graph.folder, files_of(graph)
    changed = []
    for name, text in files.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.{os.getpid()}")
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, path)
            changed.append(name)
    for path in sorted(folder.glob("nodes/*/*.yaml")):
        name = path.relative_to(folder).as_posix()
        if name not in files and path.read_text(encoding="utf-8").startswith(_HEAD):
            path.unlink()
            changed.append(name)
            if path.name == "dvc.yaml":
                path.with_name("dvc.lock").unlink(missing_ok=True)
    for place in folder.glob("nodes/*"):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()
    return changed


def _stage(graph: Graph, node: GraphNode) -> str:
    lines = [
        f"  {node.stage}:",
        f"    foreach: [{node.label}]",
        "    do:",
        "      wdir: ../..",
        f"      cmd: lab stage {node.name}",
        "      deps:",
        *(f"      - {_quoted(place)}" for place in dependencies_of(graph, node)),
        f"      outs: [{node.output}]",
    ]
    if node.metrics:
        lines.append(f"      metrics: [{{{node.metrics}: {{cache: false}}}}]")
    return "\n".join(lines) + "\n"


def _node(node: GraphNode) -> str:
    tree = {
        "stage": node.stage,
        "connector": node.connector,
        "mix": node.mix,
        "arm": node.arm,
        "inputs": {word: name.partition("@")[2] for word, name in node.inputs.items()},
        "parts": dict(node.parts),
        "numbers": list(node.numbers),
        "code": list(node.code),
        "params": _nested(node),
    }
    return _HEAD + _dump(tree)


def _nested(node: GraphNode) -> dict[str, Any]:
    tree: dict[str, Any] = {"connectors": [node.connector]} if node.connector else {}
    for key, value in node.reads.items():
        place, parts = tree, key.split(".")
        for part in parts[:-1]:
            place = place.setdefault(part, {})
        place[parts[-1]] = value
    return tree


def _compare(graph: Graph) -> str:
    ablation = graph.ablation
    tree = {
        "name": ablation.name,
        "claim": None if ablation.claim is None else _plain(ablation.claim),
        "metrics": list(ablation.metrics),
        "factors": {factor.name: list(factor.levels) for factor in ablation.factors},
        "aliases": list(ablation.aliases),
        "seeds": list(ablation.seeds),
        "budget": None if ablation.budget is None else _plain(ablation.budget),
        "arms": {
            arm.name: {
                "levels": dict(arm.levels),
                "evaluate": {
                    seed: name.partition("@")[2] for seed, name in graph.evaluations[arm.name].items()
                },
                "cost": {
                    seed: [name for name in names if graph.nodes[name].stage not in _UNTRAINED]
                    for seed, names in graph.arms[arm.name].items()
                },
            }
            for arm in ablation.arms
        },
    }
    return _HEAD + _dump(tree)


def _plain(value: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        key: list(item) if isinstance(item, tuple) else dict(item) if isinstance(item, Mapping) else item
        for key, item in asdict(value).items()
    }


def _compare_stage(graph: Graph) -> str:
    lines = [
        "stages:",
        "  compare:",
        "    cmd: lab stage compare",
        "    deps:",
        *(f"    - {_quoted(place)}" for place in dependencies_of_comparison(graph)),
        "    outs: [output/compare]",
        "    metrics: [{metrics/comparison.json: {cache: false}}]",
    ]
    return _HEAD + "\n".join(lines) + "\n"


def _quoted(place: str) -> str:
    return place if all(letter.isalnum() or letter in "./_-" for letter in place) else json.dumps(place)


def _dump(tree: Mapping[str, Any]) -> str:
    return yaml.dump(
        tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None
    )


class _Dumper(yaml.CSafeDumper):
    """Writes equal parts twice instead of pointing from one to the other."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
