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
        return self.understanding + self.generation + self.neither

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


def amounts_of(mix: Mapping[str, float], samples: float) -> Amounts:
    """Sorts samples by what they teach.

    Args:
        mix: Task -> share of the samples; a source behind a task, as in `vqa/SOURCE`, counts as the task.
        samples: In all.
    """
    drawn = both = neither = read = 0.0
    for name, share in mix.items():
        task = name.partition("/")[0]
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
            spent = _last_mix(results.folder, nodes)
            if spent is None:
                continue
            mix = {key.removeprefix("mix/"): share for key, share in spent.items() if key.startswith("mix/")}
            amounts = amounts_of(mix, spent.get("cost/samples", 0.0))
            metrics = results.cells[arm.name, seed].metrics
            seconds = spent.get("cost/train_seconds", float("nan"))
            found.append(Trial(arm.name, "", seed, amounts, metrics, seconds))
    found = _levelled(found)
    by_arm = {trial.name: trial.amounts for trial in found}
    arms = [(arm.name, arm.levels) for arm in results.arms if arm.name in by_arm]
    mixing = _mixing(arms, by_arm)
    words = {
        name: " ".join(level for factor, level in levels.items() if factor not in mixing)
        for name, levels in arms
    }
    if len(set(words.values())) == 1:
        words = dict.fromkeys(words, "")
    return [replace(trial, setting=words[trial.name]) for trial in found]


def varies(trials: Sequence[Trial]) -> bool:
    """Whether trials differ in their amounts of understanding or generation."""
    return len({(trial.amounts.understanding, trial.amounts.generation) for trial in trials}) > 1


def settings_of(trials: Sequence[Trial]) -> list[str]:
    """The settings beside the mix, in order."""
    return list(dict.fromkeys(trial.setting for trial in trials))


def earlier_mix(results: Results) -> Amounts | None:
    """What an arm has learned from before its own mix, on average; None if nothing."""
    found = []
    for arm in results.arms:
        for seed, nodes in arm.cost.items():
            if (arm.name, seed) in results.cells:
                found += [amounts for node in nodes[:-1] if (amounts := _node(results.folder, node))]
    arms = len(results.cells)
    if not found or not arms:
        return None
    return Amounts(*(sum(part) / arms for part in zip(*map(_parts, found), strict=True)))


def _parts(amounts: Amounts) -> tuple[float, float, float]:
    return amounts.understanding, amounts.generation, amounts.neither


def _node(folder: Path, node: str) -> Amounts | None:
    """What a node trained on, if it is one of those before the last that mixes tasks."""
    spent = _last_mix(folder, [node])
    if spent is None or node.startswith("instruct@"):
        return None
    mix = {key.removeprefix("mix/"): share for key, share in spent.items() if key.startswith("mix/")}
    return amounts_of(mix, spent.get("cost/samples", 0.0))


def _last_mix(folder: Path, nodes: Sequence[str]) -> dict[str, float] | None:
    """The numbers of the last node that mixed tasks."""
    for node in reversed(nodes):
        stage, _, label = node.partition("@")
        path = folder / "metrics" / stage / f"{label}.json"
        if path.exists():
            found = numbers(read_json(path))
            if any(key.startswith("mix/") for key in found):
                return found
    return None


def _levelled(trials: Sequence[Trial]) -> list[Trial]:
    """Amounts that differ by rounding alone become one number, so that they can be compared."""
    understanding = _clusters([trial.amounts.understanding for trial in trials])
    generation = _clusters([trial.amounts.generation for trial in trials])
    return [
        replace(trial, amounts=replace(trial.amounts, understanding=float(u), generation=float(g)))
        for trial, u, g in zip(trials, understanding, generation, strict=True)
    ]


def _clusters(values: Sequence[float]) -> list[float]:
    """Each value's cluster mean, rounded to whole samples; 0 stays 0."""
    if not values:
        return []
    order = np.argsort(values)
    near = _NEAR * max(values)
    found = [0.0] * len(values)
    group: list[int] = []
    for place in [*order, None]:
        if place is not None and (not group or values[place] - values[group[-1]] <= near):
            group.append(int(place))
            continue
        middle = float(round(np.mean([values[member] for member in group])))
        for member in group:
            found[member] = middle
        group = [] if place is None else [int(place)]
    return found


def _mixing(arms: Sequence[tuple[str, Mapping[str, str]]], amounts: Mapping[str, Amounts]) -> set[str]:
    """Factors of which some level changes the amounts where all other factors are the same."""
    found = set()
    for factor in {factor for _, levels in arms for factor in levels}:
        alike: dict[tuple[tuple[str, str], ...], set[tuple[float, float]]] = {}
        for name, levels in arms:
            others = tuple(sorted((key, level) for key, level in levels.items() if key != factor))
            alike.setdefault(others, set()).add((amounts[name].understanding, amounts[name].generation))
        if any(len(pairs) > 1 for pairs in alike.values()):
            found.add(factor)
    return found
