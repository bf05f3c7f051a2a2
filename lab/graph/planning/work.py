"""What one stage has to do, from the settings that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lab.config import WORDS
from lab.graph.differences.settings import plain
from lab.models.caching import FEATURES

_KINDS = 8  # of questions, each asked `questions` times


@dataclass(frozen=True)
class Work:
    """One stage and the settings that it reads.

    Attributes:
        stage: its word.
        settings: as a person writes them: `connector`, `connector.num_queries`, `stages.instruct.steps`.
    """

    stage: str
    settings: Mapping[str, Any]

    @cached_property
    def shape(self) -> dict[str, Any]:
        """The settings that decide what a sample takes: components, image and vocabulary, what trains."""
        world = ("image_size", "grid", "max_digits", "locations")
        kept = (*WORDS, "targets")
        found = {key: value for key, value in self.settings.items() if key.partition(".")[0] in kept}
        found |= {
            key: value for name in world if (value := self.settings.get(key := f"world.{name}")) is not None
        }
        found |= {key: value for key in ("trainable", "precision") if (value := self._own(key)) is not None}
        return found

    @cached_property
    def mix(self) -> dict[str, Any]:
        """Weights of tasks and questions an image, which decide a little of it."""
        mix = {key: value for key, value in self.settings.items() if ".mix." in f".{key}"}
        return mix | {"turns": self.settings.get("world.turns")}

    @property
    def batch(self) -> int:
        """Samples of an optimizer step."""
        return int(self._own("batch_size") or 1)

    @property
    def samples(self) -> float:
        """Samples that it trains on, scores or makes."""
        if self.stage == "data":
            return float(sum(self._section("data").values()))
        if self.stage == "evaluate":
            count = {key: float(value) for key, value in self._section("stages.evaluate").items()}
            return _KINDS * count.get("questions", 0.0) + sum(
                count.get(key, 0.0) for key in ("captions", "prompts", "edits", "texts")
            )
        return float(self._own("steps") or 1) * self.batch  # of features, those that are read

    @property
    def budget(self) -> tuple[str, float] | None:
        """Unit and amount at which training stops before all samples are seen."""
        found = self._section(f"stages.{self.stage}.budget")
        return next(((unit, float(amount)) for unit, amount in found.items()), None)

    def _own(self, key: str) -> Any:
        section = "judge" if self.stage == "judge" else f"stages.{FEATURES.get(self.stage, self.stage)}"
        return self.settings.get(f"{section}.{key}")

    def _section(self, name: str) -> dict[str, Any]:
        start = f"{name}."
        return {
            key.removeprefix(start): value for key, value in self.settings.items() if key.startswith(start)
        }


def work_of(stage: str, reads: Mapping[str, Any], connector: str = "") -> Work:
    """The work of a stage that reads these parameters, dotted or nested.

    Args:
        stage: its word.
        reads: as `GraphNode.reads`, or a params.yaml.
        connector: its word, where the stage has one.
    """
    return Work(stage, {**plain(reads), **({"connector": connector} if connector else {})})
