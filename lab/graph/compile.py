"""Compiles an ablation: its arms become nodes, and nodes of equal content are one node.

A node is one stage with all that it reads. Its name says which levels it depends on:
`instruct@q_former-even-s0` is the instruction tuning of all arms that agree in these levels and this seed. A
level is named where it sets something that the node, or a node before it, reads; the name therefore does not
change when levels are added or their order changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.graph.ablation import Ablation, Arm
from lab.graph.stages import UNIFIED, Stage, code_of, identified_by, stages_of
from lab.models.caching import FEATURES

_EVERYTHING = "all"  # label of a node that no level and no seed touches


@dataclass(frozen=True)
class GraphNode:
    """One distinct piece of work.

    Attributes:
        stage, label: its name in two parts.
        params: of one of the arms that share it, with the seed.
        connector, mix: of the instance, "" where the stage has none.
        arm: the label without the seed where the node belongs to that arm alone, else "".
        inputs: stage upstream -> name of the node whose output it takes.
        parts: role -> where below `output/` the part lies that an earlier node trained.
        numbers: stages upstream whose metrics it reads.
        code: files and folders of the repository that shape its numbers.
        reads: dotted key -> value of its parameters.
        key: hash of all this but code, and of the nodes upstream.
    """

    stage: str
    label: str
    params: Any
    connector: str
    mix: str
    arm: str
    inputs: Mapping[str, str]
    parts: Mapping[str, str]
    numbers: tuple[str, ...]
    code: tuple[str, ...]
    reads: Mapping[str, Any]
    key: str

    @property
    def name(self) -> str:
        return f"{self.stage}@{self.label}"

    @property
    def output(self) -> str:
        """Its output folder, relative to the ablation's."""
        return f"output/{self.stage}/{self.label}"

    @property
    def metrics(self) -> str | None:
        """Its metrics file, likewise; data has none."""
        return None if self.stage == "data" else f"metrics/{self.stage}/{self.label}.json"


@dataclass(frozen=True)
class Graph:
    """A compiled ablation.

    Attributes:
        ablation: what it was compiled from.
        nodes: by name, each after those that it needs.
        arms: arm -> seed -> names of all the nodes that it needs, in order.
    """

    ablation: Ablation
    nodes: Mapping[str, GraphNode]
    arms: Mapping[str, Mapping[int, tuple[str, ...]]]

    @property
    def folder(self) -> Path:
        return self.ablation.folder

    @cached_property
    def evaluations(self) -> dict[str, dict[int, str]]:
        """Arm -> seed -> name of the node that evaluates it."""
        return {
            arm: {
                seed: next(name for name in names if self.nodes[name].stage == "evaluate")
                for seed, names in by_seed.items()
            }
            for arm, by_seed in self.arms.items()
        }


def compile_graph(ablation: Ablation) -> Graph:
    """Finds the distinct nodes of all arms and names them.

    Raises:
        LabError: two different nodes would get one name.
    """
    known = _Labels(ablation.folder)
    drafts = {
        (arm.name, seed): chain
        for arm in ablation.arms
        for seed, chain in _chains(arm, ablation.seeds, ablation.replicate_from).items()
    }
    for chain in drafts.values():
        for draft in chain:
            known.propose(draft)
    labels = known.choose()
    nodes: dict[str, GraphNode] = {}
    arms: dict[str, dict[int, tuple[str, ...]]] = {}
    for (arm_name, seed), chain in drafts.items():
        names = []
        for draft in chain:
            node = draft.node(labels)
            if nodes.setdefault(node.name, node).key != node.key:
                raise LabError(
                    f"{ablation.folder / 'ablation.yaml'}: two different nodes would be called "
                    f"'{node.name}'; give the levels that tell them apart other names"
                )
            names.append(node.name)
        arms.setdefault(arm_name, {})[seed] = tuple(names)
    order = {stage: index for index, stage in enumerate(_stages_in_order(drafts.values()))}
    ordered = sorted(nodes.values(), key=lambda node: (order[node.stage], node.label))
    return Graph(ablation, {node.name: node for node in ordered}, arms)


@dataclass(frozen=True)
class _Draft:
    """A node before labels are chosen."""

    stage: str
    label: str
    key: str
    params: Any
    given: Mapping[str, str]
    definition: Stage
    reads: Mapping[str, Any]
    upstream: Mapping[str, _Draft]
    arm: str

    def node(self, labels: Mapping[str, str]) -> GraphNode:
        at = {word: labels[draft.key] for word, draft in self.upstream.items()}
        uses_mix = any(key.startswith("mixes.") for key in self.reads)
        return GraphNode(
            stage=self.stage,
            label=labels[self.key],
            params=self.params,
            connector=self.given["connector"] if "connector" in self.definition.roles else "",
            mix=self.given["mix"] if uses_mix else "",
            arm=self.arm,
            inputs={word: f"{word}@{label}" for word, label in at.items()},
            parts={
                role: f"{word}/{at[word]}/{below}".rstrip("/")
                for role, (word, below) in self.definition.parts.items()
            },
            numbers=self.definition.numbers,
            code=tuple(code_of(self.params, self.definition, self.given)),
            reads=self.reads,
            key=self.key,
        )


def _chains(arm: Arm, seeds: Iterable[int], replicate_from: str) -> dict[int, list[_Draft]]:
    """Seed -> the nodes of one arm, in order."""
    stages = stages_of(arm.params)
    given = {"connector": arm.params.connectors[0], "mix": next(iter(arm.params.mixes))}
    reads = {name: identified_by(arm.params, name, given) for name in arm.params.recipe}
    return {seed: _chain(arm, seed, replicate_from, stages, given, reads) for seed in seeds}


def _chain(
    arm: Arm,
    seed: int,
    replicate_from: str,
    stages: Mapping[str, Stage],
    given: Mapping[str, str],
    all_reads: Mapping[str, Mapping[str, Any]],
) -> list[_Draft]:
    recipe = arm.params.recipe
    replicated = set(recipe[recipe.index(replicate_from) :])
    replicated |= {name for name, reader in FEATURES.items() if name in recipe and reader in replicated}
    last_joint = max((recipe.index(stage) for stage in recipe if stage in UNIFIED), default=len(recipe))
    chain: dict[str, _Draft] = {}
    touched: dict[str, set[str]] = {}  # stage -> factors that it, or what it needs, depends on
    seeded: set[str] = set()
    for index, name in enumerate(recipe):
        definition = stages[name]
        # all seeds are evaluated on the same samples, so that they can be paired
        own = replace(arm.params, seed=seed) if name in replicated and name != "evaluate" else arm.params
        reads = {**all_reads[name], "seed": own.seed}
        upstream = {word: chain[word] for word in (text.partition("/")[0] for text in definition.upstream)}
        touched[name] = {
            factor for factor, keys in arm.touched.items() if _meet(keys, reads, given, definition)
        }
        touched[name] |= {factor for word in upstream for factor in touched[word]}
        if name in replicated or seeded & upstream.keys():
            seeded.add(name)
        levels = [level for factor, level in arm.levels.items() if factor in touched[name]]
        words = [*levels, *([f"s{seed}"] if name in seeded else [])]
        content = {
            "stage": name,
            "reads": {_unnamed(key): value for key, value in reads.items()},
            "connector": given["connector"] if "connector" in definition.roles else "",
            "upstream": {word: draft.key for word, draft in upstream.items()},
        }
        chain[name] = _Draft(
            stage=name,
            label="-".join(words) or _EVERYTHING,
            key=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16],
            params=own,
            given=given,
            definition=definition,
            reads=reads,
            upstream=upstream,
            arm="-".join(levels) if index >= last_joint else "",
        )
    return list(chain.values())


def _unnamed(key: str) -> str:
    """The key of a mix without its name, which changes no number."""
    return "mix" if key.startswith("mixes.") else key


def _meet(keys: Iterable[str], reads: Mapping[str, Any], given: Mapping[str, str], definition: Stage) -> bool:
    """Whether a level sets anything that a stage reads."""
    read = {_unnamed(key) for key in reads}
    if "connector" in definition.roles:
        read |= {"connector", f"settings.connector.{given['connector']}"}
    return any(_covers(key, one) or _covers(one, key) for key in keys for one in read)


def _covers(key: str, other: str) -> bool:
    return other == key or other.startswith(f"{key}.")


class _Labels:
    """One label for every content: of several, the one that was compiled before, else the shortest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._proposed: dict[str, set[tuple[str, str]]] = {}

    def propose(self, draft: _Draft) -> None:
        self._proposed.setdefault(draft.key, set()).add((draft.stage, draft.label))

    def choose(self) -> dict[str, str]:
        return {
            key: min(found, key=lambda name: (not self._known(*name), len(name[1]), name[1]))[1]
            for key, found in self._proposed.items()
        }

    def _known(self, stage: str, label: str) -> bool:
        return (self.folder / "nodes" / label / f"{stage}.yaml").exists()


def _stages_in_order(chains: Iterable[list[_Draft]]) -> list[str]:
    """All stages; where recipes differ, each after those that come before it in any of them."""
    from graphlib import TopologicalSorter

    sorter: TopologicalSorter[str] = TopologicalSorter()
    for chain in chains:
        names = [draft.stage for draft in chain]
        for before, after in zip([None, *names], names, strict=False):
            sorter.add(after, *([before] if before else []))
    return list(sorter.static_order())
