"""`compare.yaml`: what a comparison of an ablation reads, compiled from the declaration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab.errors import LabError, nearest

FILE = "compare.yaml"
UNITS = ("samples", "tokens", "steps", "flops", "seconds")


@dataclass(frozen=True)
class Claim:
    """What the ablation is to decide.

    Attributes:
        text: In the author's words.
        metric: The metric that decides.
        higher: Factor -> the level said to be better.
        lower: Factor -> the level said to be worse.
        margin: The smallest difference that matters, in the metric's unit.
    """

    text: str
    metric: str
    higher: Mapping[str, str]
    lower: Mapping[str, str]
    margin: float = 0.0


@dataclass(frozen=True)
class Budget:
    """What every arm may spend: this amount in each of the stages."""

    unit: str
    amount: float
    stages: tuple[str, ...]


@dataclass(frozen=True)
class DesignedArm:
    """An arm as declared.

    Attributes:
        name: Its levels, joined by hyphens.
        levels: Factor -> level; conditional factors that it lacks are absent.
        evaluate: Seed -> label of the evaluation.
        cost: Seed -> the nodes that train it, also those that it shares with other arms.
    """

    name: str
    levels: Mapping[str, str]
    evaluate: Mapping[int, str]
    cost: Mapping[int, tuple[str, ...]]


@dataclass(frozen=True)
class Design:
    """A whole `compare.yaml`.

    Attributes:
        name: Of the ablation; the MLflow experiment.
        claim: None where nothing is claimed.
        metrics: Of the main table; all that are known where empty.
        factors: Factor -> its levels, in the order of the declaration.
        seeds: All that were declared.
        budget: None where none is declared.
        arms: In the order of the declaration.
        aliases: What a fraction of a factorial cannot tell apart, a sentence each.
    """

    name: str
    claim: Claim | None
    metrics: tuple[str, ...]
    factors: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    budget: Budget | None
    arms: tuple[DesignedArm, ...]
    aliases: tuple[str, ...] = ()


def read_design(folder: Path) -> Design:
    """Reads and checks the compiled description of an ablation.

    Args:
        folder: Of the ablation.

    Raises:
        LabError: The file is missing or is not what the compiler writes.
    """
    path = folder / FILE
    again = f"compile it again: lab graph compile {folder.resolve().name}"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LabError(f"{path}: no such file; {again}") from error
    except yaml.YAMLError as error:
        raise LabError(f"{path}: not YAML ({' '.join(str(error).split())}); {again}") from error
    try:
        design = _design(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LabError(
            f"{path}: not as the compiler writes it ({type(error).__name__}: {error}); {again}"
        ) from error
    _check(design, path)
    return design


def _design(content: Mapping[str, Any]) -> Design:
    claim, budget = content.get("claim"), content.get("budget")
    return Design(
        name=str(content["name"]),
        claim=Claim(
            text=str(claim.get("text") or ""),
            metric=str(claim["metric"]),
            higher=_words(claim["higher"]),
            lower=_words(claim["lower"]),
            margin=float(claim.get("margin") or 0.0),
        )
        if claim
        else None,
        metrics=tuple(map(str, content.get("metrics") or ())),
        factors={str(name): tuple(map(str, levels)) for name, levels in content["factors"].items()},
        seeds=tuple(map(int, content["seeds"])),
        budget=Budget(str(budget["unit"]), float(budget["amount"]), tuple(budget["stages"]))
        if budget
        else None,
        arms=tuple(
            DesignedArm(
                name=str(name),
                levels=_words(arm["levels"]),
                evaluate={int(seed): str(label) for seed, label in arm["evaluate"].items()},
                cost={int(seed): tuple(nodes) for seed, nodes in (arm.get("cost") or {}).items()},
            )
            for name, arm in content["arms"].items()
        ),
        aliases=tuple(map(str, content.get("aliases") or ())),
    )


def _words(levels: Mapping[Any, Any]) -> dict[str, str]:
    return {str(factor): str(level) for factor, level in levels.items()}


def _check(design: Design, path: Path) -> None:
    named = [(f"arms.{arm.name}.levels", arm.levels) for arm in design.arms]
    if design.claim:
        named += [("claim.higher", design.claim.higher), ("claim.lower", design.claim.lower)]
    for where, levels in named:
        for factor, level in levels.items():
            if factor not in design.factors:
                raise LabError(f"{path}: {where}: no factor '{factor}'{nearest(factor, design.factors)}")
            if level not in design.factors[factor]:
                known = nearest(level, design.factors[factor])
                raise LabError(f"{path}: {where}.{factor}: no level '{level}'{known}")
    if design.budget and design.budget.unit not in UNITS:
        raise LabError(
            f"{path}: budget.unit: no unit '{design.budget.unit}'{nearest(design.budget.unit, UNITS)}"
        )
