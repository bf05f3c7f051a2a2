"""What a declaration says once it is found sound: arms, claim, budget, resources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lab.config import BUDGETS, Params
from lab.graph.design import Factor

UNITS = ("samples", "steps", *BUDGETS)


@dataclass(frozen=True)
class Claim:
    """A sentence to test, and what would support it.

    Attributes:
        text: the sentence.
        metric: a metric of the evaluation.
        higher, lower: factor -> level of the arms said to be better, and of those they are compared with;
            other factors are averaged over.
        margin: smallest difference that would matter, in the metric's unit.
    """

    text: str
    metric: str
    higher: Mapping[str, str]
    lower: Mapping[str, str]
    margin: float


@dataclass(frozen=True)
class Budget:
    """What training may cost, the same for every arm.

    Attributes:
        unit: one of UNITS.
        amount: for each of the stages.
        stages: that have it, of those that an arm's recipe holds.
    """

    unit: str
    amount: float
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Resources:
    """What a stage asks of a machine or a cluster.

    Attributes:
        cpus: a process.
        gpus: a node.
        memory: a node, such as "2G"; "" for the cluster's default.
        time: at most, in SLURM's notation (minutes, "1:00:00", "1-00:00:00"); "" likewise.
        nodes: machines.
        tasks: processes a node.
        strategy: how processes train together, one of STRATEGIES.
        layout: how samples share a step, one of LAYOUTS.
        preflight: what faults in samples lead to, one of PREFLIGHT.
        partition: of the cluster; "" for its default.
    """

    cpus: int = 1
    gpus: int = 0
    memory: str = ""
    time: str = ""
    nodes: int = 1
    tasks: int = 1
    strategy: str = "auto"
    layout: str = "auto"
    preflight: str = "error"
    partition: str = ""


@dataclass(frozen=True)
class Arm:
    """One setting of all factors.

    Attributes:
        name: its levels joined by "-", or the one that was given to it.
        levels: factor -> level, in the order of factors; without those whose condition does not hold.
        params: checked, with one connector and one mix, and the base's seed.
        touched: factor -> dotted keys that its level sets: a role for a word, `settings.ROLE.WORD.NAME` for a
            setting of a part, `mix` for anything about the mix, else the key of params.yaml.
    """

    name: str
    levels: Mapping[str, str]
    params: Params
    touched: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Ablation:
    """A checked declaration.

    Attributes:
        name: of its folder.
        folder: that holds it.
        claim: None if there is none.
        factors, arms: in the order of declaration.
        seeds: of the replicates of every arm.
        replicate_from: the first stage that a replicate's seed changes.
        budget: None if every stage trains as long as its `steps` say.
        metrics: of the main table; empty to leave the choice to the comparison.
        resources: stage -> what it asks for; "default" for all others.
        aliases: effects that a fractional design cannot tell apart, a line each.
    """

    name: str
    folder: Path
    claim: Claim | None
    factors: tuple[Factor, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    replicate_from: str
    budget: Budget | None
    metrics: tuple[str, ...]
    resources: Mapping[str, Resources] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    def resources_of(self, stage: str) -> Resources:
        """What a stage asks for."""
        return self.resources.get(stage, self.resources.get("default", Resources()))


class Draft(NamedTuple):
    """An arm before it has been found sound."""

    name: str
    levels: dict[str, str]
    recipe: list[str]
    params: Params | None
    touched: dict[str, frozenset[str]]
