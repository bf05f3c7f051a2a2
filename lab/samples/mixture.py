"""Mixes: which task each sample of a training stage belongs to, as a pure function of (seed, position).

Nothing here has state, so data order after a resume is right by construction: sample number j is the same
whoever asks for it, and batch k always holds samples k * batch_size to (k + 1) * batch_size - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np
from torch.utils.data import Dataset, Sampler

from lab.errors import LabError, nearest
from lab.samples.segments import Sample

CYCLE = 256  # positions after which the pattern of tasks repeats; shares are exact to 1/256


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
        mix: name of a source -> weight; weights are normalised to shares of samples.
        length: number of samples in the stage.
        seed: of order and phrasing.
    """

    def __init__(
        self, sources: Mapping[str, Source], mix: Mapping[str, float], length: int, seed: int
    ) -> None:
        self.sources, self.length, self.seed = sources, length, seed
        self.cycle = schedule(mix, tuple(sources))
        self.counts = {task: self.cycle.count(task) for task in mix}
        seen: dict[str, int] = dict.fromkeys(mix, 0)
        self._rank: list[int] = []
        for task in self.cycle:
            self._rank.append(seen[task])
            seen[task] += 1
        self._order: dict[tuple[str, int], np.ndarray] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Sample:
        cycle, phase = divmod(position, CYCLE)
        task = self.cycle[phase]
        number = cycle * self.counts[task] + self._rank[phase]  # this is the task's sample number `number`
        source = self.sources[task]
        epoch, index = divmod(number, len(source))
        return source.sample(int(self._permutation(task, epoch)[index]), self._seed(task, epoch))

    def _seed(self, task: str, epoch: int) -> int:
        entropy = [self.seed, self.sources[task].number, epoch]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _permutation(self, task: str, epoch: int) -> np.ndarray:
        key = (task, epoch)
        if key not in self._order:
            self._order = {known: order for known, order in self._order.items() if known[0] != task}
            self._order[key] = np.random.default_rng(self._seed(task, epoch)).permutation(
                len(self.sources[task])
            )
        return self._order[key]


def schedule(mix: Mapping[str, float], known: tuple[str, ...]) -> list[str]:
    """The tasks of one cycle: largest-remainder shares, each task spread evenly.

    Raises:
        LabError: a task is unknown, a weight negative, or all are zero.
    """
    for task, weight in mix.items():
        if task not in known:
            raise LabError(f"mix: unknown task '{task}'{nearest(task, known)}")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0:
            raise LabError(f"mix: the weight of '{task}' is {weight!r}; expected a number of at least 0")
    total = sum(mix.values())
    if total <= 0:
        raise LabError("mix: all weights are 0; at least one task needs a positive weight")
    quota = {task: CYCLE * weight / total for task, weight in mix.items()}
    counts = {task: int(share) for task, share in quota.items()}
    for task in sorted(quota, key=lambda name: counts[name] - quota[name])[: CYCLE - sum(counts.values())]:
        counts[task] += 1
    slots = [((rank + 0.5) / count, task) for task, count in counts.items() for rank in range(count)]
    return [task for _, task in sorted(slots)]


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
