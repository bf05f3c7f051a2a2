"""What of an evaluation set is in training data: equal images, near ones, equal questions about equal images.

Near images are those whose fingerprints (64 bits) differ in at most NEAR of them. If they do, one of NEAR + 1
bands of bits is equal; so each image is compared with those of its buckets alone, one bucket a band, and no
pair is missed. Memory grows by 32 bytes an image.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np

NEAR = 4  # bits of 64; copies that were scaled or recompressed differ in fewer, other images in about 32
Kind = Literal["equal image", "near image", "equal question"]
_WHOLE = np.uint64(0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True)
class Leak:
    """A row of an evaluation set and one of training data.

    Attributes:
        kind: what they share.
        held_out, training: row numbers.
        distance: bits in which the fingerprints differ.
    """

    kind: Kind
    held_out: int
    training: int
    distance: int = 0


@dataclass
class Seen:
    """What is compared of the rows of one split, in arrays.

    Attributes:
        rows, digests: of each image, the row that it is in, and a hash of its bytes.
        looking, prints: of each image that has a fingerprint, the row and the fingerprint.
        asked: of each question, its row; questions: a hash of its words and images.
    """

    rows: array[int] = field(default_factory=lambda: array("q"))
    digests: array[int] = field(default_factory=lambda: array("Q"))
    looking: array[int] = field(default_factory=lambda: array("q"))
    prints: array[int] = field(default_factory=lambda: array("Q"))
    asked: array[int] = field(default_factory=lambda: array("q"))
    questions: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, row: int, digests: Iterable[str], prints: Iterable[int], question: str) -> None:
        """A row with its images and what is asked about them.

        Args:
            row: its number.
            digests: hexadecimal, of each image.
            prints: fingerprints of the same images; none where they would say nothing.
            question: in plain words, "" for none.
        """
        names = list(digests)
        for name in names:
            self.rows.append(row)
            self.digests.append(int(name[:16], 16))
        for print_ in prints:
            self.looking.append(row)
            self.prints.append(print_)
        if question:
            said = f"{question}/{'/'.join(names)}".encode()
            self.asked.append(row)
            self.questions.append(int.from_bytes(hashlib.sha256(said).digest()[:8], "big"))


def leaks(training: Seen, held_out: Seen) -> Iterator[Leak]:
    """All rows of an evaluation set that share something with training rows: one leak a row and kind."""
    equal = dict(_equal(held_out.digests, held_out.rows, training.digests, training.rows))
    yield from (Leak("equal image", row, other) for row, other in equal.items())
    for row, (other, distance) in _near(training, held_out).items():
        if row not in equal:
            yield Leak("near image", row, other, distance)
    pairs = _equal(held_out.questions, held_out.asked, training.questions, training.asked)
    yield from (Leak("equal question", row, other) for row, other in pairs)


def _equal(
    ours: array[int], our_rows: array[int], theirs: array[int], their_rows: array[int]
) -> Iterator[tuple[int, int]]:
    """Rows that have an equal value among those of others, with one of the others' rows."""
    own, other = np.asarray(ours, np.uint64), np.asarray(theirs, np.uint64)
    if not len(own) or not len(other):
        return
    order = np.argsort(other, kind="stable")
    at = np.searchsorted(other, own, sorter=order).clip(max=len(other) - 1)
    found: dict[int, int] = {}
    for place in np.flatnonzero(other[order[at]] == own):
        found.setdefault(our_rows[place], their_rows[int(order[at[place]])])
    yield from found.items()


def _near(training: Seen, held_out: Seen) -> dict[int, tuple[int, int]]:
    """Row of the evaluation set -> the nearest training row and its distance, where that is at most NEAR."""
    own, other = np.asarray(held_out.prints, np.uint64), np.asarray(training.prints, np.uint64)
    found: dict[int, tuple[int, int]] = {}
    if not len(own) or not len(other):
        return found
    for band in _bands():
        ours, theirs = band(own), band(other)
        order = np.argsort(theirs, kind="stable")
        starts = np.searchsorted(theirs, ours, "left", sorter=order)
        ends = np.searchsorted(theirs, ours, "right", sorter=order)
        for place in np.flatnonzero(ends > starts):
            candidates = order[starts[place] : ends[place]]
            distances = np.bitwise_count(other[candidates] ^ own[place])
            best = int(distances.argmin())
            row = held_out.looking[int(place)]
            if distances[best] <= NEAR and distances[best] < found.get(row, (0, NEAR + 1))[1]:
                found[row] = training.looking[int(candidates[best])], int(distances[best])
    return found


def _bands() -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    edges = np.linspace(0, 64, NEAR + 2).astype(int)
    for low, high in pairwise(edges):
        mask = (_WHOLE >> np.uint64(64 - (high - low))) << np.uint64(low)
        yield lambda values, mask=mask: values & mask  # type: ignore[misc]
