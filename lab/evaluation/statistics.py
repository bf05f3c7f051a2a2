"""How sure a number is: intervals over samples and over seeds."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit

_CELLS = 1 << 22  # random numbers drawn at a time: bounds the memory, whatever the number of samples


def bootstrap_interval(
    values: ArrayLike, seed: int = 0, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, over samples.

    Args:
        values: One number a sample, (n,); at least one.
        seed: Same seed, same interval.
        level: Coverage.
        resamples: Means drawn.

    Returns:
        Lower and upper end.
    """
    sample = np.asarray(values, dtype=np.float64)  # (n,)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(f"a bootstrap needs a list of at least one value, got shape {sample.shape}")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _CELLS // sample.size)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = generator.integers(sample.size, size=(count, sample.size))  # (rows, n)
        means[start : start + count] = sample[drawn].mean(axis=1)  # (rows,)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean, over the few values that seeds give.

    One value says nothing about spread: its interval is infinite.
    """
    sample = np.asarray(values, dtype=np.float64)  # (n,)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(f"an interval needs a list of at least one value, got shape {sample.shape}")
    if sample.size == 1:
        return -math.inf, math.inf
    half = stdtrit(sample.size - 1, (1 + level) / 2) * sample.std(ddof=1) / math.sqrt(sample.size)
    return float(sample.mean() - half), float(sample.mean() + half)


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a rate: sensible also at 0 of n and n of n, where a bootstrap has no width."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials make no rate")
    z = float(ndtri((1 + level) / 2))
    rate, weight = successes / trials, z * z / trials
    centre = (rate + weight / 2) / (1 + weight)
    half = z * math.sqrt(rate * (1 - rate) / trials + weight / (4 * trials)) / (1 + weight)
    low = 0.0 if successes == 0 else centre - half  # exactly, not up to rounding
    high = 1.0 if successes == trials else centre + half
    return low, high
