"""What was trained on how many samples of understanding and of generation, and what came of it.

A sample counts for understanding if the model reads images and writes words (captions, inventories,
questions, boxes), for generation if it draws (text-to-image, edits), half for each if it does both
(interleaved documents), and for neither if it is plain text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from lab.reports.ablation.results import Results
from lab.reports.arms import numbers, read_json

UNDERSTANDING, GENERATION = "understanding", "generation"
GROUPS = (UNDERSTANDING, GENERATION)
DRAWN = ("text_to_image", "edit", "draw")
BOTH = ("interleaved",)
NEITHER = ("text",)
_NEAR = 0.01  # share of the largest amount within which amounts count as equal: shares are exact to 1/256


@dataclass(frozen=True)
class Amounts:
    """Samples of instruction tuning, by what they teach."""

    understanding: float
    generation: float
    neither: float = 0.0

    @property
    def total(self) -> float:
        """Of both groups: what a budget of samples counts."""
        return self.understanding + self.generation

    @property
    def share(self) -> float:
        """Of understanding in the total; 0 of nothing."""
        return self.understanding / self.total if self.total else 0.0

    def of(self, group: str) -> float:
        return self.understanding if group == UNDERSTANDING else self.generation

    def other(self, group: str) -> float:
        """Samples of the other of the two groups."""
        return self.generation if group == UNDERSTANDING else self.understanding


@dataclass(frozen=True)
class Trial:
    """One training with its numbers.

    Attributes:
        name: Of the arm, or of a sweep's trial.
        setting: What it is beside its mix, such as "linear"; "" where trials differ in nothing else.
        seed: Trials of one seed share what was trained before.
        amounts: That it was trained on.
        metrics: By name.
        seconds: That its instruction tuning took; nan where it is not known.
    """

    name: str
    setting: str
    seed: int
    amounts: Amounts
    metrics: Mapping[str, float]
    seconds: float


def amounts_of(mix: Mapping[str, float], samples: float, sets: Mapping[str, str] | None = None) -> Amounts:
    """Sorts samples by what they teach.

    Args:
        mix: Task or data set -> share of the samples.
        samples: In all.
        sets: Data set -> the task that it is like.
    """
    drawn = both = neither = read = 0.0
    for name, share in mix.items():
        task = (sets or {}).get(name, name)
        if task in DRAWN:
            drawn += share
        elif task in BOTH:
            both += share
        elif task in NEITHER:
            neither += share
        else:
            read += share
    return Amounts((read + both / 2) * samples, (drawn + both / 2) * samples, neither * samples)


def trials_of(results: Results) -> list[Trial]:
    """The trials of an ablation whose instruction tuning recorded its mix; equal amounts are made equal.

    Args:
        results: Of the ablation.
    """
    found: list[Trial] = []
    for arm in results.arms:
        for seed, nodes in arm.cost.items():
            if (arm.name, seed) not in results.cells:
                continue
            mixed = [amounts for node in nodes if (amounts := _trained_on(results.folder, node))]
            if mixed:
                seconds = results.spent.get(nodes[-1], {}).get("seconds", float("nan"))
                metrics = results.cells[arm.name, seed].metrics
                found.append(Trial(arm.name, "", seed, mixed[-1], metrics, seconds))
    found = levelled(found)
    by_arm = {trial.name: trial.amounts for trial in found}
    arms = [(arm.name, arm.levels) for arm in results.arms if arm.name in by_arm]
    beside = _beside(arms, by_arm)
    words = {
        name: " ".join(level for factor, level in levels.items() if factor in beside) for name, levels in arms
    }
    return [replace(trial, setting=words[trial.name]) for trial in found]


def varies(trials: Sequence[Trial]) -> bool:
    """Whether trials differ in their amounts of understanding or generation."""
    return len({(trial.amounts.understanding, trial.amounts.generation) for trial in trials}) > 1


def settings_of(trials: Sequence[Trial]) -> list[str]:
    """The settings beside the mix, in order."""
    return list(dict.fromkeys(trial.setting for trial in trials))


def earlier_mix(results: Results) -> Amounts | None:
    """What an arm has learned from before its own mix, on average; None if nothing."""
    found = [
        amounts
        for arm in results.arms
        for seed, nodes in arm.cost.items()
        if (arm.name, seed) in results.cells
        for node in nodes[:-1]
        if (amounts := _trained_on(results.folder, node))
    ]
    if not found:
        return None
    arms = len(results.cells)
    return Amounts(
        sum(one.understanding for one in found) / arms,
        sum(one.generation for one in found) / arms,
        sum(one.neither for one in found) / arms,
    )


def _trained_on(folder: Path, node: str) -> Amounts | None:
    """The samples of a node; None where it mixed no tasks."""
    stage, _, label = node.partition("@")
    path = folder / "metrics" / stage / f"{label}.json"
    if not path.exists():
        return None
    found = numbers(read_json(path))
    mix = {key.removeprefix("mix/"): share for key, share in found.items() if key.startswith("mix/")}
    return amounts_of(mix, found.get("cost/samples", 0.0), _data_sets(folder, node)) if mix else None


def _data_sets(folder: Path, node: str) -> dict[str, str]:
    """Data set -> the task that it is like, of those that a node's parameters name."""
    stage, _, label = node.partition("@")
    path = folder / "nodes" / label / f"{stage}.yaml"
    if not path.exists():
        return {}
    params = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("params") or {}
    like = {"edits": "edit", "interleaved": "interleaved"}
    return {
        name: entry.get("task") or like.get(entry.get("format", ""), "vqa")
        for name, entry in (params.get("datasets") or {}).items()
    }


def levelled(trials: Sequence[Trial]) -> list[Trial]:
    """Amounts that differ by rounding alone become one number, so that they can be compared.

    None is never some: an amount of 0 stays what it is.
    """
    understanding = _clusters([trial.amounts.understanding for trial in trials])
    generation = _clusters([trial.amounts.generation for trial in trials])
    return [
        replace(trial, amounts=replace(trial.amounts, understanding=float(u), generation=float(g)))
        for trial, u, g in zip(trials, understanding, generation, strict=True)
    ]


def _clusters(values: Sequence[float]) -> list[float]:
    """Each value's cluster median, in whole samples; no cluster is wider than rounding makes it."""
    if not values:
        return []
    order = np.argsort(values)
    near = _NEAR * max(values)
    found = [0.0] * len(values)
    group: list[int] = []
    for place in [*order, None]:
        if place is not None and (not group or _close(values[group[0]], values[place], near)):
            group.append(int(place))
            continue
        middle = float(round(values[group[(len(group) - 1) // 2]]))
        for member in group:
            found[member] = middle
        group = [] if place is None else [int(place)]
    return found


def _close(least: float, value: float, near: float) -> bool:
    return value == least or (least > 0 and value - least <= near)


def _beside(arms: Sequence[tuple[str, Mapping[str, str]]], amounts: Mapping[str, Amounts]) -> set[str]:
    """Factors beside the mix: those that take several levels among arms of equal amounts."""
    found: dict[tuple[str, float, float], set[str]] = {}
    for name, levels in arms:
        for factor, level in levels.items():
            place = factor, amounts[name].understanding, amounts[name].generation
            found.setdefault(place, set()).add(level)
    return {factor for (factor, *_), levels in found.items() if len(levels) > 1}
