"""Whether a cache pays on the machine at hand: seconds to encode an image, to write and read its features."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor

from lab.samples.features import Features, FeatureWriter

_BATCHES = 8  # that are written and read


@dataclass(frozen=True)
class Times:
    """Seconds an image: to make its pixels and encode them, to write its features, to read them."""

    encoding: float
    writing: float
    reading: float

    def totals(self, images: int, uses: int) -> tuple[float, float]:
        """Seconds for so many uses of so many images, without a cache and with one."""
        return uses * self.encoding, images * (self.encoding + self.writing) + uses * self.reading


def measure(
    make: Callable[[], object], encode: Callable[[], object], features: Tensor, dtype: str, place: Path
) -> Times:
    """Take the times.

    Args:
        make, encode: do it for as many images as there are features.
        features: (I, N, D_v), of which some are written and read.
        dtype: in which.
        place: folder on the file system that would hold them.
    """
    encode()
    encoding = (_taken(make) + median(_taken(encode) for _ in range(3))) / len(features)
    with TemporaryDirectory(dir=place) as scratch:
        writing, reading = _probe(features, dtype, Path(scratch))
    return Times(encoding, writing, reading)


def _probe(features: Tensor, dtype: str, scratch: Path) -> tuple[float, float]:
    """Seconds to write and to read the features of an image; from disk, where the system lets go of files."""
    count = _BATCHES * len(features)
    keys = [str(number) for number in range(count)]
    folder = scratch / "published"
    folder.mkdir()
    began = time.perf_counter()
    writer = FeatureWriter(scratch, (features.shape[1], features.shape[2]), dtype, len(features))
    for _ in range(_BATCHES):
        writer.add(features)
    writer.publish(folder, keys, {"key": {}})
    for file in folder.iterdir():
        _let_go(file)
    writing = (time.perf_counter() - began) / count
    order = np.random.default_rng(0).permutation(count).reshape(_BATCHES, -1)
    began = time.perf_counter()
    stored = Features(folder, {})
    for rows in order:
        stored([keys[row] for row in rows])
    return writing, (time.perf_counter() - began) / count


def _let_go(file: Path) -> None:
    """Put a file on disk and out of memory, so that what is read next is read from there."""
    with file.open("rb") as handle, suppress(OSError, AttributeError):
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _taken(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
