"""Building the index of a data set: read once from front to back, a few dozen records at a time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lab.samples.images import decode, fingerprint, size_of
from lab.samples.index import EMBEDDED, SPLITS, Index, Shot
from lab.samples.readers.fields import are_images, files_of
from lab.samples.readers.formats import reader_of
from lab.samples.readers.record import BadRecordError, Blob, Box, Found, Piece, Place, Record

_TOGETHER = 32  # records whose images are looked at at once
_SEEN = 4096  # images of which the last findings are kept: questions about one follow each other
_LEAST = 64  # px, the size at which an image is decoded to see whether it can be


def build(root: Path, name: str, limit: int, folder: Path) -> Index:
    """Reads a data set from front to back and writes its index, whole or not at all.

    Args:
        root: folder of the data set.
        name: of its format.
        limit: most pixels of an image.
        folder: of the index.

    Raises:
        LabError: a file that nothing can be read from.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count() or 1))
            writer = stack.enter_context(_Writer(root, partial, limit))
            texts = [file for file in files_of(root) if not any(are_images([file]))]
            found = reader_of(name).records(root, texts)
            while chunk := list(islice(found, _TOGETHER)):
                writer.add(chunk, pool)
            counts = {"format": name, "limit": limit, **writer.finish()}
        (partial / "index.json").write_text(json.dumps(counts) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Index(root, folder)


class _Writer(ExitStack):
    """Appends rows and problems to the files of an index."""

    def __init__(self, root: Path, folder: Path, limit: int) -> None:
        super().__init__()
        self.root, self.folder, self.limit = root, folder, limit
        names = ("rows.jsonl", "offsets.bin", "groups.bin", "splits.bin", "images.bin", "problems.jsonl")
        self._files: dict[str, BinaryIO] = {
            name: self.enter_context((folder / name).open("wb")) for name in names
        }
        self._files["offsets.bin"].write(np.int64(0).tobytes())
        self._rows, self._images, self._end = 0, 0, 0
        self._problems: Counter[str] = Counter()
        self._merged: dict[int, int] = {}  # group -> an equal one, of rows with several images
        self._looked = lru_cache(_SEEN)(self._look)

    def add(self, chunk: Sequence[Found], pool: Executor) -> None:
        """Some records as readers yield them."""
        found = list(pool.map(self._usable, chunk))
        for (place, record, raw), shots in zip(chunk, found, strict=True):
            if isinstance(record, BadRecordError):
                self._problem(place, record, raw)
            elif isinstance(shots, BadRecordError):
                self._problem(place, shots, json.dumps(asdict(record), default=_without_bytes))
            else:
                self._row(place, record, shots)

    def finish(self) -> dict[str, Any]:
        """Joins the groups of rows that share images; the counts."""
        for file in self._files.values():
            file.flush()
        if self._merged:
            groups = np.memmap(self.folder / "groups.bin", np.uint64, "r+")
            for number, group in enumerate(groups):
                groups[number] = self._root(int(group))
            groups.flush()
        return {"rows": self._rows, "images": self._images, "problems": dict(self._problems)}

    def _usable(self, found: Found) -> list[Shot] | BadRecordError:
        record = found[1]
        if isinstance(record, BadRecordError):
            return record
        try:
            shots = [self._shot(piece) for turn in record.turns for piece in turn.pieces if _is_image(piece)]
            for turn in record.turns:
                for piece in turn.pieces:
                    if isinstance(piece, Box):
                        _check_box(piece, shots)
        except BadRecordError as error:
            return error
        return shots

    def _shot(self, piece: Piece) -> Shot:
        if isinstance(piece, Blob):
            return self._looked(piece)
        assert isinstance(piece, bytes)
        return self._seen(Blob(EMBEDDED, 0, len(piece)), piece)

    def _look(self, blob: Blob) -> Shot:
        try:
            with (self.root / blob.file).open("rb") as handle:
                handle.seek(blob.start)
                data = handle.read() if blob.size is None else handle.read(blob.size)
        except OSError as error:
            raise BadRecordError("missing_file", f"'{blob.file}': {error.strerror}") from error
        return self._seen(blob, data)

    def _seen(self, blob: Blob, data: bytes) -> Shot:
        try:
            width, height = size_of(data, self.limit)
            image = decode(data, self.limit, least=_LEAST)
        except BadRecordError as error:
            where = "" if blob.file == EMBEDDED else f"'{blob.file}': "
            raise BadRecordError(error.kind, f"{where}{error}") from error
        digest = hashlib.sha256(data).hexdigest()[:32]
        return Shot(blob, digest, width, height, fingerprint(image))

    def _problem(self, place: Place, error: BadRecordError, raw: str) -> None:
        self._problems[error.kind] += 1
        tree = {"place": [place.file, place.record, place.line], "kind": error.kind, "message": str(error)}
        self._files["problems.jsonl"].write((json.dumps({**tree, "raw": raw[:2000]}) + "\n").encode())

    def _row(self, place: Place, record: Record, shots: list[Shot]) -> None:
        waiting = iter(shots)
        turns = []
        for turn in record.turns:
            turns.append([turn.who, [self._stored(piece, waiting) for piece in turn.pieces]])
        tree = {
            "place": [place.file, place.record, place.line],
            "turns": turns,
            "answers": record.answers,
            "split": record.split,
            "tags": record.tags,
        }
        line = json.dumps(tree, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        self._end += len(line)
        self._rows, self._images = self._rows + 1, self._images + len(shots)
        self._files["rows.jsonl"].write(line)
        self._files["offsets.bin"].write(np.int64(self._end).tobytes())
        said = json.dumps(turns).encode()
        names = [shot.digest for shot in shots] or [hashlib.sha256(said).hexdigest()]
        groups = [int(name[:16], 16) for name in names]
        self._files["groups.bin"].write(np.uint64(groups[0]).tobytes())
        for other in groups[1:]:
            one, two = self._root(groups[0]), self._root(other)
            if one != two:
                self._merged[max(one, two)] = min(one, two)
        split = SPLITS.index(record.split) if record.split in SPLITS else 255
        self._files["splits.bin"].write(np.uint8(split).tobytes())

    def _stored(self, piece: Piece, shots: Iterator[Shot]) -> Any:
        if isinstance(piece, str):
            return piece
        if isinstance(piece, Box):
            return {"box": piece.corners}
        shot = next(shots)
        start = shot.blob.start
        if isinstance(piece, bytes):
            start = self._files["images.bin"].tell()
            self._files["images.bin"].write(piece)
        place = [shot.blob.file, start, shot.blob.size]
        return {"image": place, "digest": shot.digest, "size": [shot.width, shot.height], "hash": shot.hash}

    def _root(self, group: int) -> int:
        while (above := self._merged.get(group, group)) != group:
            self._merged[group] = group = self._merged.get(above, above)  # shorter for whoever comes next
        return group


def _without_bytes(value: bytes) -> str:
    return f"{len(value)} bytes"


def _is_image(piece: Piece) -> bool:
    return isinstance(piece, (Blob, bytes))


def _check_box(box: Box, shots: Sequence[Shot]) -> None:
    """A box lies in the only image of its record, within a pixel."""
    left, top, right, bottom = box.corners
    width, height = (shots[0].width, shots[0].height) if shots else (0, 0)
    if min(left, top) < -1 or right > width + 1 or bottom > height + 1 or left >= width or top >= height:
        raise BadRecordError("bad_box", f"{list(box.corners)} in an image of {width} x {height} px")
