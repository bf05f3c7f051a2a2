"""A data set in use: its splits, and its rows as samples, each a pure function of row and seed."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from lab.config import DataSetParams
from lab.errors import LabError
from lab.samples.images import Fit, Fitting, content_key, decode, fitted
from lab.samples.index import SPLITS, Index, Row, Shot
from lab.samples.readers.fields import CAPTION_PROMPT, DRAW_PROMPT
from lab.samples.readers.record import Box
from lab.samples.segments import (
    BOS,
    Picture,
    Sample,
    Segment,
    answer,
    end_of_answer,
    part_of_answer,
    said_by_user,
    special,
    system,
    written,
)
from lab.samples.tokenizer import plain_words
from lab.scenes.locations import write_box
from lab.scenes.world import World

_SHOWN = 10  # problems that an error names one by one


class DataSet:
    """A registered data set with its index.

    Args:
        name: under which mixes know it.
        params: how it is registered.
        index: of its files.
    """

    def __init__(self, name: str, params: DataSetParams, index: Index) -> None:
        self.name, self.params, self.index = name, params, index

    def __len__(self) -> int:
        return len(self.index)

    @property
    def skipped(self) -> int:
        """Records that are left out."""
        return sum(self.index.counts["problems"].values())

    def metrics(self) -> dict[str, float]:
        """How many rows there are, and how many records were left out for which reason."""
        found = {f"data/{self.name}/rows": len(self), f"data/{self.name}/skipped": self.skipped}
        kinds = self.index.counts["problems"].items()
        return found | {f"data/{self.name}/skipped_{kind}": count for kind, count in kinds}

    @cached_property
    def draws(self) -> bool:
        """Whether a model has to draw for it, as its first row shows."""
        if self.params.task == "text_to_image":
            return True
        return bool(len(self)) and any(
            who == "assistant" and any(isinstance(piece, Shot) for piece in pieces)
            for who, pieces in self.index.row(0).turns
        )

    def rows(self, split: str) -> np.ndarray:
        """(n,) int64, the rows of a split, in order; none where it has none."""
        if self.params.splits == "own":
            own = np.asarray(self.index.splits)
            return np.flatnonzero(np.where(own == 255, 0, own) == SPLITS.index(split))
        first = next(iter(self.params.splits.values()), 0.0)
        if isinstance(first, str):
            return np.flatnonzero(self._by_file() == SPLITS.index(split))
        shares = [float(self.params.splits.get(name, 0.0)) for name in SPLITS[1:]]
        # the top of the hash: validation first, then test, the rest is for training
        place = np.asarray(self.index.groups) / 2.0**64
        low = {"validation": 0.0, "test": shares[0], "train": sum(shares)}[split]
        high = {"validation": shares[0], "test": sum(shares), "train": 1.0}[split]
        return np.flatnonzero((place >= low) & ((place < high) | (split == "train")))

    def _by_file(self) -> np.ndarray:
        """(n,) uint8, the place in SPLITS of the first pattern that a row's file meets, 255 for none."""
        patterns = self.params.splits
        key = hashlib.sha256(json.dumps(patterns, sort_keys=True).encode()).hexdigest()[:16]
        kept = self.index.folder / f"split-{key}.npy"
        if not kept.exists():
            found = np.fromiter((_split_by(row.place.file, patterns) for row in self.index), np.uint8)
            draft = kept.with_suffix(f".{os.getpid()}.npy")  # others may write theirs at once
            np.save(draft, found, allow_pickle=False)
            draft.replace(kept)
        return np.asarray(np.load(kept, allow_pickle=False))

    def words(self) -> list[str]:
        """All words of its texts in the form of a word-level tokenizer, in order."""
        kept = self.index.folder / "words.txt"
        if not kept.exists():
            found = set(plain_words(f"{CAPTION_PROMPT} {DRAW_PROMPT}"))
            for row in self.index:
                texts = [piece for _, pieces in row.turns for piece in pieces if isinstance(piece, str)]
                found.update(word for text in (*texts, *row.answers) for word in plain_words(text))
                if any(isinstance(piece, Box) for _, pieces in row.turns for piece in pieces):
                    found.update(
                        word for number in range(101) for word in plain_words(f"[{number / 100:.2f},]")
                    )
            draft = kept.with_suffix(f".{os.getpid()}")
            draft.write_text("\n".join(sorted(found)), encoding="utf-8")
            draft.replace(kept)
        return kept.read_text(encoding="utf-8").split("\n")


@dataclass(frozen=True)
class DataSource:
    """One split of a data set as a source of a mix (see lab/samples/mixture.py).

    Args:
        data: the data set.
        split: train, validation or test.
        world: says how large the images are that the encoder takes, and how boxes are written.
    """

    data: DataSet
    split: str
    world: World
    _last: list[tuple[tuple[str, int], Image]] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not len(self):
            raise LabError(
                f"data set '{self.data.name}': no row in split '{self.split}' of {len(self.data)}; "
                "see `splits` in docs/data.md"
            )

    @property
    def number(self) -> int:
        """Part of the seed; it follows from the name, so that other data sets change nothing."""
        return 1000 + zlib.crc32(self.data.name.encode())

    @cached_property
    def rows(self) -> np.ndarray:
        """(n,) int64, rows of the index."""
        return self.data.rows(self.split)

    @cached_property
    def fitting(self) -> Fitting:
        """How images become those of the encoder."""
        fit: Fit = self.data.params.fit  # type: ignore[assignment]
        return Fitting(self.world.image_size, fit, self.data.params.tiles)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, row: int) -> Row:
        """The record of a row of the split."""
        return self.data.index.row(int(self.rows[row]))

    def sample(self, row: int, seed: int) -> Sample:
        """The sample of a row of the split; of several captions the seed chooses one."""
        found = self.row(row)
        turns: Sequence[tuple[str, tuple[Any, ...]]] = found.turns
        if is_captioned(found):
            caption = found.answers[int(np.random.default_rng([seed, row]).integers(len(found.answers)))]
            shots = tuple(found.shots)
            turns = [turns[0], ("assistant", (caption,))]
            if self.data.params.task == "text_to_image":
                turns = [("user", (f"{DRAW_PROMPT} {caption}",)), ("assistant", shots)]
        segments = [special(BOS)]
        for place, (who, pieces) in enumerate(turns):
            segments += self._segments(who, pieces, found.shots, last=place == len(turns) - 1)
        name = f"{self.data.name}/{found.place.file}/{found.place.record}/{seed}"
        return Sample(name, self.data.name, tuple(segments))

    def _segments(
        self, who: str, pieces: Sequence[str | Shot | Box], shots: Sequence[Shot], last: bool
    ) -> Iterator[Segment]:
        """The segments of a turn."""
        laid: list[str | Picture] = []
        for piece in pieces:
            if isinstance(piece, Shot):
                laid += self._pictures(piece, drawn=who == "assistant")
            else:
                laid.append(self._box(piece, shots[0]) if isinstance(piece, Box) else piece)
        if who == "user":
            yield from said_by_user(laid)
            return
        for place, part in enumerate(laid):
            ends = place == len(laid) - 1
            if isinstance(part, Picture):
                yield Segment(picture=part, supervised=who == "assistant")
                if ends and who == "assistant":
                    yield end_of_answer()
                elif ends and last:
                    yield written("", ends=True)
            elif who == "system":
                yield system(part)
            elif who == "assistant":
                yield answer(part) if ends else part_of_answer(part)
            else:  # a document has no turns
                yield written(part, ends=ends and last)

    def _pictures(self, shot: Shot, drawn: bool) -> list[Picture]:
        """What an image becomes; one that is drawn is never tiled."""
        fitting = self.fitting
        if drawn and fitting.fit == "anyres":
            fitting = Fitting(fitting.size, "pad")
        return [
            self._picture(shot, fitting, piece) for piece in range(fitting.pieces(shot.width, shot.height))
        ]

    def _picture(self, shot: Shot, fitting: Fitting, piece: int) -> Picture:
        grid = fitting.grid(shot.width, shot.height) if piece else (1, 1)

        def load() -> np.ndarray:
            return fitted(self._decoded(shot, fitting.size * max(grid)), fitting, grid, piece)

        return Picture(load, lambda: content_key(shot.digest, fitting, piece))

    def _decoded(self, shot: Shot, least: int) -> Image:
        """The decoded image, kept until the next one: tiles of one follow each other."""
        key = (shot.digest, least)
        if not self._last or self._last[0][0] != key:
            data = self.data.index.bytes_of(shot.blob)
            self._last[:] = [(key, decode(data, self.data.params.limit, least))]
        return self._last[0][1]

    def _box(self, box: Box, shot: Shot) -> str:
        corners = self.fitting.place(box.corners, shot.width, shot.height)
        corners[2:] = np.maximum(corners[2:], corners[:2] + 1)  # not thinner than a pixel
        if self.world.locations:
            return write_box(self.world, corners.clip(0, self.world.image_size))
        return f"[{', '.join(f'{corner / self.world.image_size:.2f}' for corner in corners)}]"


def is_captioned(row: Row) -> bool:
    """Whether a row is an image with captions, rather than with questions."""
    who, pieces = row.turns[0]
    return who == "user" and pieces[-1:] == (CAPTION_PROMPT,) and bool(row.answers)


def check_policy(data: DataSet) -> None:
    """Refuses a data set with bad records unless its policy is to leave them out.

    Raises:
        LabError: naming the first of them.
    """
    if data.params.policy != "error" or not data.skipped:
        return
    shown = "; ".join(str(one) for _, one in zip(range(_SHOWN), data.index.problems(), strict=False))
    more = f"; and {data.skipped - _SHOWN} more" if data.skipped > _SHOWN else ""
    raise LabError(
        f"data set '{data.name}': {data.skipped} bad records of {data.skipped + len(data)}: {shown}{more}; "
        "mend them, or leave them out with `policy: skip` or `policy: quarantine`"
    )


def quarantine(data: DataSet, folder: Path) -> None:
    """Writes the records that were left out, and why, to `FOLDER/records.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "records.jsonl").open("w", encoding="utf-8") as handle:
        for problem in data.index.problems():
            place = problem.place
            tree = {"file": place.file, "line": place.line, "record": place.record, "kind": problem.kind}
            handle.write(json.dumps({**tree, "message": problem.message, "raw": problem.raw}) + "\n")


def _split_by(file: str, patterns: Mapping[str, str]) -> int:
    for split, pattern in patterns.items():
        if fnmatch(file, pattern):
            return SPLITS.index(split)
    return 255
