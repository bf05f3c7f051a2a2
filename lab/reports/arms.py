"""Reads what a pipeline's arms reached."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import yaml

from lab.errors import LabError
from lab.evaluation.statistics import wilson_interval
from lab.reports.measures import GENERATION, UNDERSTANDING, Measure


@dataclass(frozen=True)
class Arm:
    """One arm's choices and numbers.

    Attributes:
        name: ``<connector>-<mix>``, the name of its metric file.
        choices: Component words, mix and seed.
        metrics: Numbers by name.
        intervals: 95% intervals of some of them, over samples.
        chance: What guessing gives, for some of them.
        samples: Evaluated samples.
    """

    name: str
    choices: Mapping[str, str]
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0

    @property
    def connector(self) -> str:
        return self.choices.get("connector", self.name)

    @property
    def mix(self) -> str:
        return self.choices.get("mix", "")

    def value(self, measure: Measure) -> float | None:
        return self.metrics.get(measure.name)

    def errors(self, measure: Measure) -> tuple[float, float]:
        """How far the interval reaches below and above the value, in the shown unit."""
        value = self.metrics[measure.name]
        low, high = self.intervals.get(measure.name, (value, value))
        return max(0.0, value - low) * measure.factor, max(0.0, high - value) * measure.factor


@dataclass(frozen=True)
class Comparison:
    """Everything the comparison of one pipeline shows.

    Attributes:
        name: The experiment.
        folder: The pipeline's folder.
        arms: In the order of the declaration.
        shared: Numbers of what all arms share, by stage: judge, encoder, image_decoder.
        seconds: Seconds spent on shared stages, by stage.
        left_out: Evaluated arms that the declaration no longer names.
    """

    name: str
    folder: Path
    arms: tuple[Arm, ...]
    shared: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]
    left_out: tuple[str, ...] = ()

    @property
    def front(self) -> tuple[Arm, ...]:
        """Arms that no other arm beats in both understanding and generation, by rising understanding."""
        return pareto_front(self.arms, UNDERSTANDING, GENERATION)

    @property
    def best(self) -> Arm:
        """The arm with the highest mean of VQA and whole scenes."""
        return max(self.arms, key=lambda arm: (arm.value(UNDERSTANDING) or 0) + (arm.value(GENERATION) or 0))

    @property
    def connectors(self) -> list[str]:
        return list(dict.fromkeys(arm.connector for arm in self.arms))

    @property
    def mixes(self) -> list[str]:
        return list(dict.fromkeys(arm.mix for arm in self.arms))

    def best_value(self, measure: Measure) -> float | None:
        """The best value any arm reached."""
        values = [value for arm in self.arms if (value := arm.value(measure)) is not None]
        return (max(values) if measure.rising else min(values)) if values else None

    def chance(self, name: str) -> float | None:
        """What guessing gives."""
        return next((arm.chance[name] for arm in self.arms if name in arm.chance), None)

    def ceiling(self, name: str) -> float | None:
        """What the image decoder reaches when given a real image's own tokens, for `generation/...`."""
        key = name.replace("generation/", "reconstruction/")
        sources = [*(arm.metrics for arm in self.arms), self.shared.get("image_decoder", {})]
        return next((numbers[key] for numbers in sources if key in numbers), None)

    def choices(self) -> tuple[dict[str, str], dict[str, list[str]]]:
        """What all arms have in common, and what differs between them."""
        seen: dict[str, list[str]] = {}
        for arm in self.arms:
            for key, word in arm.choices.items():
                seen.setdefault(key, [])
                if word not in seen[key]:
                    seen[key].append(word)
        common = {key: words[0] for key, words in seen.items() if len(words) == 1}
        return common, {key: words for key, words in seen.items() if len(words) > 1}


class Scored(Protocol):
    """What a front is made of."""

    def value(self, measure: Measure) -> float | None: ...


Point = TypeVar("Point", bound=Scored)


def pareto_front(arms: Iterable[Point], first: Measure, second: Measure) -> tuple[Point, ...]:
    """Arms that are not beaten in both measures at once, by rising first measure."""
    points = [
        (a, b, arm)
        for arm in arms
        if (a := arm.value(first)) is not None and (b := arm.value(second)) is not None
    ]
    kept = [
        (a, b, arm)
        for a, b, arm in points
        if not any(x >= a and y >= b and (x > a or y > b) for x, y, _ in points)
    ]
    return tuple(arm for _, _, arm in sorted(kept, key=lambda point: (point[0], -point[1])))


def read(folder: Path) -> Comparison:
    """Reads a pipeline's metric files.

    Args:
        folder: The folder of its params.yaml.

    Raises:
        LabError: No arm was evaluated yet, or a file is not what the evaluation writes.
    """
    files = sorted((folder / "metrics" / "evaluate").glob("*.json"))
    if not files:
        raise LabError(
            f"nothing to compare: {folder / 'metrics' / 'evaluate'} is empty; run `lab repro` first"
        )
    arms = {path.stem: _arm(folder, path) for path in files}
    params = _params(folder / "params.yaml")
    declared = [f"{c}-{m}" for c in params.get("connectors") or () for m in params.get("mixes") or ()]
    kept = [name for name in declared if name in arms] or list(arms)
    return Comparison(
        name=str(params.get("name") or folder.resolve().name),
        folder=folder,
        arms=tuple(arms[name] for name in kept),
        shared={
            stage: numbers(read_json(path))
            for stage in ("judge", "encoder", "text_decoder", "image_decoder")
            if (path := folder / "metrics" / f"{stage}.json").exists()
        },
        seconds=_seconds(folder / "metrics", arms),
        left_out=tuple(name for name in arms if name not in kept),
    )


def _arm(folder: Path, path: Path) -> Arm:
    content = read_json(path)
    metrics = numbers(content)
    if not metrics:
        raise LabError(f"{path}: no numbers under 'metrics'; run `lab repro` to evaluate this arm again")
    intervals = {key: (float(a), float(b)) for key, (a, b) in (content.get("intervals") or {}).items()}
    for key, scores in read_scores(folder / "output" / "evaluate" / path.stem / "scores.npz").items():
        if (ends := intervals.get(key)) in ((0.0, 0.0), (1.0, 1.0)):
            # A bootstrap of samples that are all right, or all wrong, has no width, which is no certainty.
            intervals[key] = wilson_interval(round(ends[0] * scores.size), scores.size)
    return Arm(
        name=path.stem,
        choices={key: str(value) for key, value in (content.get("arm") or {}).items()},
        metrics=metrics,
        intervals=intervals,
        chance={key: float(value) for key, value in (content.get("chance") or {}).items()},
        samples=int(content.get("samples") or 0),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A metric file.

    Raises:
        LabError: It is not JSON, or not a mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LabError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise LabError(f"{path}: a mapping is expected, this is a {type(content).__name__}")
    return content


def read_scores(path: Path) -> dict[str, np.ndarray]:
    """The per-sample scores of an evaluation, (n,) each; none where they are not at hand.

    Raises:
        LabError: The file is broken.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name], dtype=np.float64) for name in arrays.files}
    except FileNotFoundError:  # metrics are in git, outputs come with `dvc pull`
        return {}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise LabError(f"{path}: not a file of scores ({error}); fetch it again with `dvc pull`") from error


def numbers(content: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a metric file, whether they stand under `metrics` or at its top."""
    values = content.get("metrics", content)
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _params(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        return {}
    except yaml.YAMLError as error:
        raise LabError(f"{path}: not YAML ({error})") from error


def _seconds(metrics: Path, arms: Iterable[str]) -> dict[str, float]:
    """Seconds of training by stage, the arms' own stages left out: their cost stands in their metrics."""
    own = set(arms)
    spent: dict[str, float] = {}
    for path in sorted([*metrics.glob("*.json"), *metrics.glob("*/*.json")]):
        stage = " ".join(path.relative_to(metrics).with_suffix("").parts)
        if (
            path.stem not in own
            and (seconds := numbers(read_json(path)).get("cost/train_seconds")) is not None
        ):
            spent[stage] = seconds
    return spent
