"""The samples of a training stage, as a pure function of (seed, position).

Nothing here has state, so data order after a resume is right by construction: sample number j is the same
whoever asks for it, and batch k always holds samples k * batch_size to (k + 1) * batch_size - 1. The plan
says which source sample j is from and how many of that source precede it (lab/samples/plan.py); the row is
that number's in the order of the source's current pass, which the seed decides.

Shares of tokens become shares of samples before training: of every source the first `SCANNED` samples that
the stage would draw are laid out, without their pixels, and a weight is divided by their mean length. So
shares of tokens are as exact as these means; what was consumed is counted to the token
(lab/training/consumption.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset, Sampler

from lab.errors import LabError, nearest
from lab.samples.mix import parse
from lab.samples.plan import Course, Even, Plan
from lab.samples.segments import Sample

SCANNED = 512  # samples of a source whose lengths stand for all of them


class Source(Protocol):
    """Where the samples of one name in a mix come from: a task of the built-in world, or a data set.

    Attributes:
        number: part of the seed of its order and phrasing, so that two sources of a mix differ in both.
    """

    @property
    def number(self) -> int: ...

    def __len__(self) -> int:
        """Rows of one pass."""
        ...

    def sample(self, row: int, seed: int) -> Sample:
        """The sample of a row; equal arguments give equal samples."""
        ...


class Mixture(Dataset[Sample]):
    """Samples of several sources in stated shares.

    Args:
        sources: by the names that a mix may use.
        mix: as it is stated (lab/samples/mix.py).
        length: number of samples in the stage.
        seed: of order and phrasing.
        size: tokens of a sample, for a mix that counts them.

    Attributes:
        names: of the sources that it draws from.

    Raises:
        LabError: the mix is malformed, names a source that is not there, or runs out of samples.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        mix: Mapping[str, Any],
        length: int,
        seed: int,
        size: Callable[[Sample], int] | None = None,
    ) -> None:
        self.sources, self.length, self.seed = sources, length, seed
        self._order: dict[tuple[str, int], np.ndarray] = {}
        self._chosen: dict[str, np.ndarray] = {}
        self.mix = parse(mix)
        self.parts = {part.name: part for part in self.mix.sources()}
        unknown = [name for name in self.parts if name not in sources]
        if unknown:
            raise LabError(
                "; ".join(f"mix: unknown task '{name}'{nearest(name, sources)}" for name in unknown)
            )
        self.rows = {name: part.size({name: len(sources[name])}) for name, part in self.parts.items()}
        if empty := [name for name, rows in self.rows.items() if not rows]:
            raise LabError(f"mix: no samples in {', '.join(empty)}")
        self.names = tuple(self.mix.ever())
        self.tokens: dict[str, float] = {}
        if self.mix.count == "tokens":
            if size is None:
                raise LabError("mix: shares of tokens are for stages with a language model")
            self.tokens = {name: self._mean_size(name, size) for name in self.names}
        self.plan = self._plan()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Sample:
        source, number = self.plan.place(position)
        return self._sample(source, number)

    def source_of(self, position: int) -> str:
        """The source of a sample."""
        return self.plan.place(position)[0]

    def shares(self) -> dict[str, float]:
        """Source -> share of samples over the whole stage, as the plan has it."""
        count = self.length if self.mix.planned else len(self.plan.pattern)  # type: ignore[attr-defined]
        return {source: own / count for source, own in self.plan.drawn(count).items()}

    def _plan(self) -> Plan:
        if not self.mix.planned:
            return Even(self._weights(0.0))
        limits = {
            name: int(part.epochs * self.rows[name])
            for name, part in self.parts.items()
            if part.epochs < float("inf")
        }
        return Course(self._weights, limits, self.length)

    def _weights(self, share: float) -> dict[str, float]:
        """Source -> weight in samples after a share of training."""
        weights = self.mix.weights(share, {name: len(self.sources[name]) for name in self.parts})
        return {name: weight / self.tokens.get(name, 1.0) for name, weight in weights.items()}

    def _mean_size(self, source: str, size: Callable[[Sample], int]) -> float:
        count = min(SCANNED, self.rows[source])
        return float(np.mean([size(self._sample(source, number)) for number in range(count)]))

    def _sample(self, source: str, number: int) -> Sample:
        epoch, index = divmod(number, self.rows[source])
        row = int(self._permutation(source, epoch)[index])
        if self.rows[source] < len(self.sources[source]):
            row = int(self._subset(source)[row])
        return self.sources[source].sample(row, self._seed(source, epoch))

    def _seed(self, source: str, epoch: int) -> int:
        return _seed_of(self.seed, self.sources[source].number, epoch)

    def _permutation(self, source: str, epoch: int) -> np.ndarray:
        key = (source, epoch)
        if key not in self._order:
            self._order = {known: order for known, order in self._order.items() if known[0] != source}
            self._order[key] = np.random.default_rng(self._seed(source, epoch)).permutation(self.rows[source])
        return self._order[key]

    def _subset(self, source: str) -> np.ndarray:
        """The rows of a source that has more of them than the mix takes; the same in every pass."""
        if source not in self._chosen:
            rng = np.random.default_rng([self.seed, self.sources[source].number, len(self.sources[source])])
            self._chosen[source] = rng.permutation(len(self.sources[source]))[: self.rows[source]]
        return self._chosen[source]


@lru_cache(maxsize=1024)  # every sample asks for it, and one pass over a source has one
def _seed_of(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


class StepBatches(Sampler[list[int]]):
    """Batch k holds positions k * batch_size onwards; iteration starts at the step that `start` reports.

    Args:
        batch_size: of all processes together, which divide each batch.
        steps: batches.
        start: the first.
        rank, world: of `world` processes this one takes every world-th position of a batch, from its rank on.

    Raises:
        LabError: a batch does not divide evenly.
    """

    def __init__(
        self, batch_size: int, steps: int, start: Callable[[], int], rank: int = 0, world: int = 1
    ) -> None:
        if batch_size % world:
            raise LabError(f"batch_size {batch_size} does not divide evenly among {world} processes")
        self.batch_size, self.steps, self.start = batch_size, steps, start
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start(), self.steps):
            first = step * self.batch_size
            yield list(range(first + self.rank, first + self.batch_size, self.world))
