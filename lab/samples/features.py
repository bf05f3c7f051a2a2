"""Features on disk: what a frozen encoder made of images, found by what the images hold.

    features.json            the key (what they follow from), their type and shape
    index.safetensors        digests of the images' keys, sorted, and the row of each
    shard-00000.safetensors  rows (R, N, D_v), each shard of a bounded size

Shards and index are memory maps: opening them reads nothing, and a batch is one gather of the rows it holds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lab.errors import LabError

RECORD = "features.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARD_BYTES = 256 * 2**20
_INDEX = "index.safetensors"


class FeatureWriter:
    """Writes rows in the order in which they come; whole shards survive the process.

    Args:
        work: folder of shards, those of an earlier attempt included; its files may be linked elsewhere.
        shape: (N, D_v) of a row.
        dtype: one of `DTYPES`.
        batch: rows that come at once; shards hold whole batches, of `SHARD_BYTES` at most if that is one.
    """

    def __init__(self, work: Path, shape: tuple[int, int], dtype: str, batch: int) -> None:
        self.work, self.shape, self.dtype = work, shape, dtype
        self.rows = max(1, SHARD_BYTES // (batch * bytes_of(shape, dtype))) * batch  # of a shard
        self._begun: list[Tensor] = []
        work.mkdir(parents=True, exist_ok=True)
        self.shards = 0
        while _whole(self.work / _shard(self.shards), (self.rows, *shape)):
            self.shards += 1

    @property
    def done(self) -> int:
        """Rows that are in whole shards."""
        return self.shards * self.rows

    def add(self, rows: Tensor) -> bool:
        """Adds rows (I, N, D_v), rounded to the dtype; says whether that completed a shard."""
        self._begun.append(rows.detach().to("cpu", DTYPES[self.dtype]))
        full = sum(map(len, self._begun)) >= self.rows
        if full:
            self._write()
        return full

    def publish(self, folder: Path, keys: Sequence[str], facts: Mapping[str, Any]) -> None:
        """Writes what is left, and index and record.

        Args:
            folder: gets all files.
            keys: `Picture.key` of every row; no two are equal.
            facts: go into the record: the key, and what stands in for the encoder.
        """
        if self._begun:
            self._write()
        for number in range(self.shards):
            _link(self.work / _shard(number), folder / _shard(number))
        digests = _digests(keys)
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        index = {"digests": torch.from_numpy(digests[order]), "rows": torch.from_numpy(order)}
        save_file(index, folder / _INDEX)
        record = {"dtype": self.dtype, "shape": list(self.shape), "images": len(keys), **facts}
        write_record(folder, {**record, "rows": self.rows})

    def _write(self) -> None:
        file = self.work / _shard(self.shards)
        draft = file.with_suffix(".partial")
        save_file({"features": torch.cat(self._begun)}, draft)
        os.replace(draft, file)
        self._begun, self.shards = [], self.shards + 1


class Features:
    """What a stage finds instead of pixels: images to tokens of the encoder that made them.

    Args:
        folder: that `FeatureWriter.publish` wrote.
        key: what the features have to follow from, name -> value.

    Raises:
        LabError: nothing can be read there, or the features follow from something else, which is named.
    """

    def __init__(self, folder: Path, key: Mapping[str, str]) -> None:
        self.folder = folder
        self.record = read_record(folder)
        stored: Mapping[str, str] = self.record["key"]
        differ = [name for name in {**stored, **key} if stored.get(name) != key.get(name)]
        if differ:
            parts = [f"{name} ({stored.get(name)} there, {key.get(name)} now)" for name in differ]
            raise LabError(f"{folder}: features of something else; {', '.join(parts)}: make them anew")
        self.dtype, self.rows = DTYPES[self.record["dtype"]], int(self.record["rows"])
        self.shape: tuple[int, int] = tuple(self.record["shape"])
        self._shards: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return int(self.record["images"])

    def __call__(self, keys: Sequence[str]) -> Tensor:
        """Tokens (I, N, D_v) of images by their `Picture.key`, in the dtype in which they are stored.

        Raises:
            LabError: an image that is not there.
        """
        rows, there = self._find(keys)
        if not there.all():
            absent = [key for key, one in zip(keys, there, strict=True) if not one]
            raise LabError(
                f"{self.folder}: {len(absent)} of {len(keys)} images have no features there, the first is "
                f"{absent[0]}; images that change from one look to the next (augmentation) cannot be cached"
            )
        shards = rows // self.rows
        if (shards == shards[:1]).all():
            number = int(shards[0])
            return self._shard(number).index_select(0, torch.from_numpy(rows - number * self.rows))
        found = torch.empty(len(rows), *self.shape, dtype=self.dtype)
        for number in np.unique(shards):
            chosen = np.flatnonzero(shards == number)
            within = torch.from_numpy(rows[chosen] - number * self.rows)
            found[torch.from_numpy(chosen)] = self._shard(int(number)).index_select(0, within)
        return found

    def has(self, keys: Sequence[str]) -> np.ndarray:
        """Which images (I,) are there, bool."""
        return self._find(keys)[1]

    def _find(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Rows (I,) of images, and whether each is right; there is always one."""
        digests, rows = self._index
        asked = _digests(keys)
        place = np.searchsorted(digests[:, 0], asked[:, 0]).clip(max=len(rows) - 1)
        return rows[place], (digests[place] == asked).all(axis=1)

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        return _read(self.folder / _INDEX, "digests").numpy(), _read(self.folder / _INDEX, "rows").numpy()

    def _shard(self, number: int) -> Tensor:
        if number not in self._shards:
            self._shards[number] = _read(self.folder / _shard(number), "features")
        return self._shards[number]


def read_record(folder: Path) -> dict[str, Any]:
    """What is said of the features of a folder.

    Raises:
        LabError: nothing can be read there.
    """
    try:
        return dict(json.loads((folder / RECORD).read_text()))
    except (OSError, ValueError) as error:
        raise LabError(f"{folder}: no features can be read there: {error}") from error


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Says what the features of a folder are."""
    (folder / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def bytes_of(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a row of this shape."""
    return int(np.prod(shape)) * DTYPES[dtype].itemsize


def _shard(number: int) -> str:
    return f"shard-{number:05}.safetensors"


def _digests(keys: Sequence[str]) -> np.ndarray:
    """Keys (I,) as two numbers each, (I, 2) int64; equal keys alone have equal numbers."""
    joined = b"".join(hashlib.sha256(key.encode()).digest()[:16] for key in keys)
    return np.frombuffer(joined, np.int64).reshape(-1, 2)


def _read(file: Path, name: str) -> Tensor:
    """A tensor that is a memory map of the file."""
    try:
        with safe_open(file, "pt") as opened:
            return opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise LabError(f"{file}: no features can be read there: {error}") from error


def _whole(file: Path, shape: tuple[int, ...]) -> bool:
    """Whether a file is a whole shard of this shape."""
    try:
        with safe_open(file, "pt") as opened:
            return tuple(opened.get_slice("features").get_shape()) == shape
    except (OSError, SafetensorError):
        return False


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name, copied where the file systems differ."""
    try:
        os.link(source, target)
    except OSError:
        import shutil

        shutil.copyfile(source, target)
