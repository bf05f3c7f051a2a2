"""Batches of a stage, made in a thread of their own while the step before them runs.

What a batch holds and the order of batches are those of the loader, whichever thread makes them. The thread
ends with the training, and with the process if that is killed. A thread and not a process: it shares data
sets and caches, has nothing to pickle, and a step leaves the interpreter to it whenever it computes
(docs/mixes.md has what it brings).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

AHEAD = 2  # batches that are made before they are asked for


class Feed:
    """What a training loop iterates over; once.

    Args:
        loader: of batches, with a length.
        collate: samples -> batch, for whoever wants one beside the training.

    Attributes:
        waited: seconds for which the loop has waited for batches.
    """

    def __init__(self, loader: Any, collate: Callable[[Any], Any]) -> None:
        self.loader, self.collate_fn = loader, collate
        self.waited = 0.0
        self._ended = threading.Event()
        # A `queue.Queue` of two would hand the interpreter to the other thread when a ready batch is taken
        self._made: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._room = threading.Semaphore(AHEAD)
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        if self._thread is None:  # Lightning asks twice, and takes batches from the second
            batches = iter(self.loader)  # here, as PyTorch's loader draws a random number
            self._thread = threading.Thread(target=self._make, args=(batches,), name="feed", daemon=True)
            self._thread.start()
        return self._taken()

    def _taken(self) -> Iterator[Any]:
        while True:
            since = time.perf_counter()
            kind, value = self._made.get()
            self._room.release()
            self.waited += time.perf_counter() - since
            if kind == "failed":
                raise value
            if kind == "ended":
                return
            yield value

    def close(self) -> None:
        """Ends the thread; no batch comes afterwards."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _make(self, batches: Iterator[Any]) -> None:
        try:
            self._give("batch", batches)
            self._give("ended", [None])
        except BaseException as error:  # raised where the batch is asked for
            self._give("failed", [error])

    def _give(self, kind: str, values: Iterable[Any]) -> None:
        for value in values:
            while not self._room.acquire(timeout=0.1):
                if self._ended.is_set():
                    return
            if self._ended.is_set():
                return
            self._made.put((kind, value))
