"""How the language model gets the samples of a step: padded, in groups of like length, or packed in rows.

Whatever the layout, a step is on the same samples, and its losses are the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from lab.samples.batch import Batch

Word = Literal["padded", "buckets", "packed"]


@dataclass(frozen=True)
class Rows:
    """Samples that the language model gets in one call, R rows of L positions.

    Attributes:
        place: (R, L) int64, which place of the batch stands there; 0 in padding.
        sample: (R, L) int64, the row of the batch that it belongs to; -1 in padding.
        image: (R, L) int64, which of `images` is the sample's last at or before a position; -1 for none.
        images: (R, I_r) int64, the images read that belong to a row of these; 0 where it has no more.
        alone: whether each row holds one sample, from its first position on.
        wanted: (K,) int64, of the R * L positions those whose states a loss reads; None where all count.
    """

    place: Tensor
    sample: Tensor
    image: Tensor
    images: Tensor
    alone: bool
    wanted: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """A batch's samples over one or more `Rows`.

    Attributes:
        rows: in the order in which they are called.
        back: (B * T,) int64, for each place of the batch where it stands in all rows, one after the other; 0
            for padding.
    """

    rows: tuple[Rows, ...]
    back: Tensor

    @property
    def positions(self) -> int:
        """Positions that the language model computes, padding included."""
        return sum(rows.place.numel() for rows in self.rows)


def lay_out(batch: Batch, word: Word, budget: int, sparing: bool = False) -> Batch:
    """The batch, on the CPU and padded on the right, with a layout.

    Args:
        batch: as collated.
        word: "padded" is one group of all rows.
        budget: of a packed row, in tokens, as in `pack`.
        sparing: whether the layout says which states are wanted.
    """
    lengths = batch.mask.sum(dim=1).tolist()
    if word == "packed":
        groups = [pack(lengths, budget)]
    else:
        found = buckets(lengths) if word == "buckets" else [list(range(len(lengths)))]
        groups = [[[sample] for sample in group] for group in found]
    rows = tuple(_rows(batch, group, lengths) for group in groups)
    if sparing:
        wanted = _wanted(batch)
        rows = tuple(replace(one, wanted=_within(one, wanted)) for one in rows)
    back = np.zeros(batch.ids.numel(), np.int64)
    place = torch.cat([one.place.flatten() for one in rows]).numpy()
    real = torch.cat([one.sample.flatten() for one in rows]).numpy() >= 0
    back[place[real]] = np.flatnonzero(real)
    return replace(batch, layout=Layout(rows, torch.from_numpy(back)))


def _wanted(batch: Batch) -> Tensor:
    """(B * T,) of which places a loss reads the states: what predicts text, and what draws images."""
    places = batch.places
    wanted = torch.zeros(batch.ids.numel(), dtype=torch.bool)
    for read in (places.supervised - 1, places.drawn - 1, places.drawn):  # heads differ in where they read
        wanted[read] = True
    return wanted


def _within(rows: Rows, wanted: Tensor) -> Tensor:
    """(K,) where these places stand in the rows."""
    return torch.from_numpy(np.flatnonzero((wanted[rows.place] & (rows.sample >= 0)).numpy()))


def buckets(lengths: Sequence[int]) -> list[list[int]]:
    """Groups of samples of like length, each the rows of one call, shortest samples first.

    They minimise the positions computed, where every call costs as much as `CALL` positions more.
    """
    order = sorted(range(len(lengths)), key=lambda sample: lengths[sample])
    best: list[tuple[float, int]] = [(0.0, 0)]  # of the first n samples: cost, start of the last group
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        best.append(min((best[start][0] + (end - start) * longest + CALL, start) for start in range(end)))
    groups, end = [], len(order)
    while end:
        start = best[end][1]
        groups.append(order[start:end])
        end = start
    return groups[::-1]


CALL = 64  # positions that one more call of the language model is worth (docs/training.md)


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Samples in rows, none cut: of one to two budgets each, or about as long as the longest.

    Of all numbers of rows that this allows, the one that leaves the fewest positions empty.
    """
    order = sorted(range(len(lengths)), key=lambda sample: -lengths[sample])
    total, longest = sum(lengths), lengths[order[0]]
    fewest, most = (max(1, total // max(size, longest)) for size in (2 * budget, budget))
    tried = [_in_rows(lengths, order, count) for count in range(most, fewest - 1, -1)]
    return min(tried, key=lambda rows: len(rows) * max(sum(lengths[one] for one in row) for row in rows))


def _in_rows(lengths: Sequence[int], order: Sequence[int], count: int) -> list[list[int]]:
    """Samples in at most `count` rows that are as short as best fit gets them, to a percent.

    Args:
        lengths: of all samples.
        order: the samples, longest first.
        count: of rows.
    """
    capacity, least = max(lengths[order[0]], -(-sum(lengths) // count)), 0
    # of the k * count + 1 longest some row has k + 1, and so at least the shortest k + 1 of these
    for last in range(count, len(order), count):
        least = max(least, sum(lengths[sample] for sample in order[last - last // count : last + 1]))
    while capacity < least or (rows := _best_fit(lengths, order, capacity, count)) is None:
        capacity += max(1, capacity // 100)
    return rows


def _best_fit(
    lengths: Sequence[int], order: Sequence[int], capacity: int, most: int
) -> list[list[int]] | None:
    """Each sample in the fullest row that it fits; None if that takes too many rows."""
    rows: list[list[int]] = []
    rooms: list[int] = []
    for sample in order:
        length, fullest, room = lengths[sample], -1, capacity + 1
        for row, left in enumerate(rooms):
            if length <= left < room:
                fullest, room = row, left
        if fullest >= 0:
            rows[fullest].append(sample)
            rooms[fullest] = room - length
        elif len(rows) == most:
            return None
        else:
            rows.append([sample])
            rooms.append(capacity - length)
    return rows


def _rows(batch: Batch, samples: Sequence[Sequence[int]], lengths: Sequence[int]) -> Rows:
    """Rows that hold these samples each, one after the other."""
    width = batch.ids.shape[1]
    numbers, owned = batch.image.numpy(), batch.image.amax(dim=1).numpy() + 1  # images of each sample
    longest = max(sum(lengths[sample] for sample in row) for row in samples)
    place = np.zeros((len(samples), longest), np.int64)
    sample_of, image = np.full_like(place, -1), np.full_like(place, -1)
    images = np.zeros((len(samples), max(sum(owned[sample] for sample in row) for row in samples)), np.int64)
    table = batch.places.images.numpy()
    for index, row in enumerate(samples):
        start = before = 0
        for sample in row:
            here = slice(start, start + lengths[sample])
            place[index, here] = sample * width + np.arange(lengths[sample])
            sample_of[index, here] = sample
            number = numbers[sample, : lengths[sample]]
            image[index, here] = np.where(number >= 0, number + before, -1)
            images[index, before : before + owned[sample]] = table[sample, : owned[sample]]
            start, before = start + lengths[sample], before + int(owned[sample])
    alone = all(len(row) == 1 for row in samples)
    as_tensors = [torch.from_numpy(array) for array in (place, sample_of, image, images)]
    return Rows(as_tensors[0], as_tensors[1], as_tensors[2], as_tensors[3], alone)
