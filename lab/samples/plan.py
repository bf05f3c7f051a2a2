"""Which source sample number j of a stage comes from, and which sample of that source it is.

Both are pure functions of j, whatever was asked before, so that nothing has to be kept for a resumed run.

Where shares are constant, one pattern of sources repeats (`Even`). Where they change, by a curriculum or
because a source runs out, training is cut into stretches of equal length, and how many samples each source
has given before each stretch is computed once, before training (`Course`): a table as large as there are
stretches, not as there are samples. A stretch passes on what rounding owes a source, so that over the whole
of training each source is within one sample of its share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from lab.errors import LabError

CYCLE = 256  # positions after which a pattern repeats; shares are exact to 1/256
_LONGEST = 2**16  # positions of a pattern, and of a stretch
_STRETCHES = 256  # of a training that is not too long for them


class Plan(Protocol):
    """Where samples come from."""

    def place(self, position: int) -> tuple[str, int]:
        """The source of a sample, and how many of that source were before it."""
        ...

    def drawn(self, count: int) -> dict[str, int]:
        """Source -> its samples among the first `count`."""
        ...


class Even:
    """Constant shares.

    Args:
        weights: source -> weight. Where a weight is too small for a place in a pattern of `CYCLE` positions,
            the pattern is longer, so that the smallest has 8 places or more.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        counts, length = apportioned(weights, CYCLE), CYCLE
        positive = [source for source, weight in weights.items() if weight > 0]
        if not all(counts[source] for source in positive):
            while min(counts[source] for source in positive) < 8 and length < _LONGEST:
                length *= 2
                counts = apportioned(weights, length)
        self.pattern, self.counts = spread(counts), counts
        self._rank = ranks(self.pattern)

    def place(self, position: int) -> tuple[str, int]:
        cycle, phase = divmod(position, len(self.pattern))
        source = self.pattern[phase]
        return source, cycle * self.counts[source] + self._rank[phase]

    def drawn(self, count: int) -> dict[str, int]:
        cycles, rest = divmod(count, len(self.pattern))
        return {
            source: cycles * own + self.pattern[:rest].count(source) for source, own in self.counts.items()
        }


class Course:
    """Shares that change.

    Args:
        weights: share of training -> source -> weight.
        limits: source -> samples that it has to give; a source that has run out leaves its share to the
            others. Sources that are not named never run out.
        length: samples of the stage.

    Raises:
        LabError: all sources have run out before the end.
    """

    def __init__(
        self, weights: Callable[[float], Mapping[str, float]], limits: Mapping[str, int], length: int
    ) -> None:
        self.length = length
        self.stretch = min(_LONGEST, -(-length // _STRETCHES))
        given = dict.fromkeys(weights(0.0), 0)
        owed = dict.fromkeys(given, 0.0)
        before = [list(given.values())]
        for start in range(0, length, self.stretch):
            size = min(self.stretch, length - start)
            left = {source: limits.get(source, length) - given[source] for source in given}
            wanted = weights((start + size / 2) / length)
            counts, owed = _stretch(wanted, owed, left, size)
            for source, count in counts.items():
                given[source] += count
            if (drawn := sum(given.values())) < start + size:
                raise LabError(
                    f"mix: its sources run out after {drawn} samples, but the stage takes {length}: allow "
                    "more epochs or rows, leave one source without a limit, or train fewer steps"
                )
            before.append(list(given.values()))
        self._sources, self._before = tuple(given), np.array(before)
        self._at, self._pattern, self._rank = -1, [""], [0]

    def place(self, position: int) -> tuple[str, int]:
        if not 0 <= position < self.length:
            raise IndexError(f"sample {position} of a stage of {self.length}")
        stretch, phase = divmod(position, self.stretch)
        self._lay(stretch)
        source = self._pattern[phase]
        return source, int(self._before[stretch, self._sources.index(source)]) + self._rank[phase]

    def drawn(self, count: int) -> dict[str, int]:
        stretch, phase = divmod(min(count, self.length), self.stretch)
        whole = dict(
            zip(self._sources, self._before[min(stretch, len(self._before) - 1)].tolist(), strict=True)
        )
        if stretch + 1 < len(self._before):
            self._lay(stretch)
            whole = {source: own + self._pattern[:phase].count(source) for source, own in whole.items()}
        return whole

    def _lay(self, stretch: int) -> None:
        """Lays out the pattern of one stretch, the only one that is kept."""
        if stretch != self._at:
            counts = self._before[stretch + 1] - self._before[stretch]
            self._pattern = spread(dict(zip(self._sources, counts.tolist(), strict=True)))
            self._rank, self._at = ranks(self._pattern), stretch


def apportioned(weights: Mapping[str, float], places: int) -> dict[str, int]:
    """Places of each source: largest-remainder shares."""
    total = sum(weights.values())
    quota = {source: places * weight / total for source, weight in weights.items()}
    counts = {source: int(share) for source, share in quota.items()}
    for source in sorted(quota, key=lambda name: counts[name] - quota[name])[: places - sum(counts.values())]:
        counts[source] += 1
    return counts


def spread(counts: Mapping[str, int]) -> list[str]:
    """A pattern with as many places for each source, spread evenly."""
    slots = [((rank + 0.5) / count, source) for source, count in counts.items() for rank in range(count)]
    return [source for _, source in sorted(slots)]


def ranks(pattern: Sequence[str]) -> list[int]:
    """How many places of its own source are before each place of a pattern."""
    seen: dict[str, int] = {}
    found = []
    for source in pattern:
        found.append(seen.get(source, 0))
        seen[source] = found[-1] + 1
    return found


def _stretch(
    weights: Mapping[str, float], owed: Mapping[str, float], left: Mapping[str, int], size: int
) -> tuple[dict[str, int], dict[str, float]]:
    """Samples of each source in a stretch, and what rounding owes each of them afterwards."""
    going = {source: weight for source, weight in weights.items() if weight > 0}
    counts, after, quota = dict.fromkeys(owed, 0), dict(owed), dict[str, float]()
    rest = size
    while going:  # a source that runs out leaves its share to the others, one of which may then run out
        total = sum(going.values())
        quota = {source: rest * weight / total + owed[source] for source, weight in going.items()}
        out = [source for source in going if quota[source] >= left[source]]
        for source in out:
            counts[source], after[source] = min(left[source], rest), 0.0
            rest -= counts[source]
            del going[source]
        if not out:
            break
    if going:
        counts |= _rounded(quota, rest)
        after |= {source: quota[source] - counts[source] for source in going}
    return counts, after


def _rounded(quota: Mapping[str, float], size: int) -> dict[str, int]:
    """Whole numbers near the quotas whose sum is `size`."""
    counts = {source: max(0, int(share)) for source, share in quota.items()}
    while (missing := size - sum(counts.values())) != 0:
        by_need = sorted(quota, key=lambda source: counts[source] - quota[source])
        if missing > 0:
            counts[by_need[0]] += 1
        else:
            counts[next(source for source in reversed(by_need) if counts[source])] -= 1
    return counts
