"""Contestants that take turns, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Times = dict[str, np.ndarray]


def take_turns(
    contestants: Mapping[str, Callable[[], float | None]],
    repeats: int,
    clock: Callable[[], float] = time.process_time,
) -> Times:
    """Seconds of each turn of every contestant, in the orders A-B-C and C-B-A by turns.

    Args:
        contestants: name -> a turn, which may say itself how many seconds of it count.
        repeats: turns of each.
        clock: of the processor as it is, so that a busy machine changes little; `time.perf_counter` for work
            that does not stay on this thread.
    """
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats):
        for name in list(contestants)[:: 1 if repeat % 2 == 0 else -1]:
            start = clock()
            said = contestants[name]()
            found[name].append(clock() - start if said is None else said)
    return {name: np.array(seconds) for name, seconds in found.items()}


def ratio(over: np.ndarray, under: np.ndarray) -> str:
    """Median of the ratios of turns side by side, with a bootstrap interval of 95%."""
    ratios = over / under
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return f"{np.median(ratios):.3f} ({low:.3f} to {high:.3f})"


def assert_equal(name: str, one: Sequence[float], two: Sequence[float], tolerance: float) -> str:
    """A line that says how far two contestants' losses are apart.

    Raises:
        SystemExit: further than they may be, so that nothing is to be compared.
    """
    apart = max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(one, two, strict=True))
    if not apart <= tolerance:
        raise SystemExit(f"{name}: losses differ by {apart:.1e}: {one[:4]} ... and {two[:4]} ...")
    return f"losses of the first {len(one)} steps agree to {apart:.0e}"
