"""What an ablation's arms reached, seed by seed, as far as they are evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lab.errors import LabError
from lab.reports.ablation.design import Design, DesignedArm, read_design
from lab.reports.arms import numbers, read_json, read_scores


@dataclass(frozen=True)
class Cell:
    """One arm at one seed.

    Attributes:
        metrics: Numbers by name.
        intervals: 95% intervals of some of them, over samples.
        chance: What guessing gives, for some of them.
        words: Component words, mix and the like.
        scores: Per-sample scores by name, (n,) each; empty where they are not at hand.
    """

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)

    def strata(self, name: str) -> list[np.ndarray] | None:
        """The scores that a metric is the mean of; of an average over kinds those of each kind.

        None where there are none, or where they belong to another evaluation than the metrics.
        """
        if name in self.scores:
            found = [self.scores[name]]
        else:
            found = [self.scores[key] for key in sorted(self.scores) if key.startswith(f"{name}/")]
        if not found or any(values.size == 0 for values in found):
            return None
        mean = float(np.mean([values.mean() for values in found]))
        return found if abs(mean - self.metrics.get(name, np.nan)) < 1e-6 else None


@dataclass(frozen=True)
class Results:
    """Everything that was evaluated.

    Attributes:
        design: What was declared.
        folder: Of the ablation.
        cells: (arm, seed) -> numbers.
        spent: Node -> what it cost: seconds, samples, tokens, steps, flops, those that it recorded.
    """

    design: Design
    folder: Path
    cells: Mapping[tuple[str, int], Cell]
    spent: Mapping[str, Mapping[str, float]]

    @property
    def arms(self) -> tuple[DesignedArm, ...]:
        """Arms of which at least one seed is evaluated."""
        return tuple(a for a in self.design.arms if any((a.name, seed) in self.cells for seed in a.evaluate))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds at which at least one arm is evaluated."""
        done = {seed for _, seed in self.cells}
        return tuple(seed for seed in self.design.seeds if seed in done)

    @property
    def missing(self) -> tuple[str, ...]:
        """Evaluations that were declared and are not there, as nodes."""
        labels = [
            f"evaluate@{label}"
            for arm in self.design.arms
            for seed, label in arm.evaluate.items()
            if (arm.name, seed) not in self.cells
        ]
        return tuple(dict.fromkeys(labels))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that an arm has."""
        return tuple(dict.fromkeys(name for cell in self.cells.values() for name in cell.metrics))


def read_results(folder: Path) -> Results:
    """Reads an ablation's metrics and per-sample scores.

    Args:
        folder: Of the ablation; it holds `compare.yaml`.

    Raises:
        LabError: Nothing is evaluated yet, or a file is not what the stages write.
    """
    design = read_design(folder)
    cells = {
        (arm.name, seed): _cell(folder, label)
        for arm in design.arms
        for seed, label in arm.evaluate.items()
        if seed in design.seeds and (folder / "metrics" / "evaluate" / f"{label}.json").exists()
    }
    if not cells:
        raise LabError(
            f"nothing to compare: no arm of {folder / 'metrics' / 'evaluate'} is evaluated; "
            f"run it first: lab graph run {folder.resolve().name}"
        )
    nodes = dict.fromkeys(node for arm in design.arms for nodes in arm.cost.values() for node in nodes)
    spent = {node: cost for node in nodes if (cost := _cost(folder, node)) is not None}
    return Results(design, folder, cells, spent)


def _cell(folder: Path, label: str) -> Cell:
    path = folder / "metrics" / "evaluate" / f"{label}.json"
    content = read_json(path)
    metrics = numbers(content)
    if not metrics:
        raise LabError(f"{path}: no numbers under 'metrics'; run `lab graph run` to evaluate this arm again")
    return Cell(
        metrics=metrics,
        intervals={name: (float(a), float(b)) for name, (a, b) in (content.get("intervals") or {}).items()},
        chance={name: float(value) for name, value in (content.get("chance") or {}).items()},
        words={key: str(value) for key, value in (content.get("arm") or {}).items()},
        scores=read_scores(folder / "output" / "evaluate" / label / "scores.npz"),
    )


def _cost(folder: Path, node: str) -> dict[str, float] | None:
    """What a node recorded as spent; None while it has not run."""
    stage, _, label = node.partition("@")
    path = folder / "metrics" / stage / f"{label}.json"
    if not path.exists():
        return None
    found = numbers(read_json(path))
    units = {"seconds": "train_seconds", **{unit: unit for unit in ("samples", "tokens", "steps", "flops")}}
    return {unit: found[f"cost/{key}"] for unit, key in units.items() if f"cost/{key}" in found}
