"""The index of a data set, from which any row is read by its number.

    rows.jsonl      what every usable row says, and where the bytes of its images lie
    offsets.bin     where each row begins, int64; groups.bin, splits.bin likewise a number a row
    images.bin      images that are no files of their own (tables, compressed shards)
    problems.jsonl  what every other record lacks
    index.json      the counts

It is a pure function of the bytes of the data set, its format and the readers' code (lab/samples/indexing.py
builds it), so a row is the same for whoever asks. Reading one holds that one, whatever the size of the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lab.samples.readers.record import Blob, Box, Place, Problem

SPLITS = ("train", "validation", "test")
EMBEDDED = ":images"  # the file of images that are no files of their own


@dataclass(frozen=True)
class Shot:
    """An image of a row.

    Attributes:
        blob: where its bytes lie.
        digest: SHA-256 of these, 32 hex digits.
        width, height: px, once upright.
        hash: its fingerprint (see `lab.samples.images.fingerprint`).
    """

    blob: Blob
    digest: str
    width: int
    height: int
    hash: int


@dataclass(frozen=True)
class Row:
    """A usable record, as the index has it.

    Attributes:
        place: where it stands; it names the row, since ids of public data sets are not unique.
        turns: who says what: texts, `Shot`s and `Box`es.
        answers, split, tags: as those of a `Record`.
    """

    place: Place
    turns: tuple[tuple[str, tuple[str | Shot | Box, ...]], ...]
    answers: tuple[str, ...]
    split: str
    tags: dict[str, Any]

    @property
    def shots(self) -> list[Shot]:
        """Its images, in order."""
        return [piece for _, pieces in self.turns for piece in pieces if isinstance(piece, Shot)]


class Index:
    """The rows of a data set by number.

    Args:
        root: folder of the data set.
        folder: of the index.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self._handles: dict[tuple[int, str], int] = {}

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "folder": self.folder, "_handles": {}}

    def row(self, number: int) -> Row:
        """Row `number`, from 0."""
        start, end = (int(at) for at in self._offsets[number : number + 2])
        return _row(self._read("rows.jsonl", start, end - start))

    def bytes_of(self, blob: Blob) -> bytes:
        """The bytes of an image."""
        if blob.file == EMBEDDED and blob.size is not None:
            return self._read("images.bin", blob.start, blob.size)
        with (self.root / blob.file).open("rb") as handle:  # anew: there may be very many shards
            handle.seek(blob.start)
            return handle.read(-1 if blob.size is None else blob.size)

    def __iter__(self) -> Iterator[Row]:
        with (self.folder / "rows.jsonl").open("rb") as handle:
            for line in handle:
                yield _row(line)

    @cached_property
    def counts(self) -> dict[str, Any]:
        """`rows`, `format`, `images`, and `problems`: kind -> how many records were left out for it."""
        return dict(json.loads((self.folder / "index.json").read_text()))

    @cached_property
    def _offsets(self) -> np.ndarray:
        return np.memmap(self.folder / "offsets.bin", np.int64, "r")

    @cached_property
    def groups(self) -> np.ndarray:
        """(n,) uint64: equal where rows share an image, also by way of others; evenly spread."""
        return self._numbers("groups", np.uint64)

    @cached_property
    def splits(self) -> np.ndarray:
        """(n,) uint8: what the set itself says; the place in SPLITS, 255 where it says nothing."""
        return self._numbers("splits", np.uint8)

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the records that were left out, in their order."""
        with (self.folder / "problems.jsonl").open("rb") as handle:
            for line in handle:
                tree = json.loads(line)
                yield Problem(Place(*tree["place"]), tree["kind"], tree["message"], tree["raw"])

    def _numbers(self, name: str, kind: type[np.generic]) -> np.ndarray:
        if not len(self):
            return np.zeros(0, kind)
        return np.memmap(self.folder / f"{name}.bin", kind, "r")

    def _read(self, name: str, start: int, size: int) -> bytes:
        """Bytes of a file of the index."""
        key = (os.getpid(), name)  # a handle of its own for each process, whichever way it was started
        if key not in self._handles:
            self._handles[key] = os.open(self.folder / name, os.O_RDONLY)
        return os.pread(self._handles[key], size, start)


def _row(line: bytes) -> Row:
    tree = json.loads(line)
    turns = tuple((who, tuple(map(_piece, pieces))) for who, pieces in tree["turns"])
    return Row(Place(*tree["place"]), turns, tuple(tree["answers"]), tree["split"], tree["tags"])


def _piece(stored: Any) -> str | Shot | Box:
    if isinstance(stored, str):
        return stored
    if "box" in stored:
        return Box(tuple(stored["box"]))
    width, height = stored["size"]
    return Shot(Blob(*stored["image"]), stored["digest"], width, height, stored["hash"])
