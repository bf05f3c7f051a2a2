"""How sure a number is: intervals, tests, linear models and the number of seeds. The lab's only statistics.

Two things make an ablation's numbers uncertain: chance in training, which other seeds show, and the test
samples. Student's t covers the former, `bootstrap_interval` the latter, and `JointBootstrap` both. Everything
is deterministic: bootstraps draw from a seeded generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import chdtri, nctdtr, ndtri, stdtr, stdtrit

_CELLS = 1 << 22  # random numbers drawn at a time: bounds the memory, whatever the number of samples
_TINY = 1e-9  # relative: what rounding leaves of an exact zero
MOST_SEEDS = 10_000  # the planner counts no further

Array = np.ndarray[Any, np.dtype[np.float64]]


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


def sums_interval(
    rows: ArrayLike,
    statistic: Callable[[Array], ArrayLike],
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a figure that follows from sums over samples.

    For corpus BLEU, a perplexity, or precision and recall, whose figure is no mean over samples.

    Args:
        rows: What each sample adds, (n, k); at least one. Samples that depend on each other, such as
            questions about one image, are one row.
        statistic: Sums (R, k) -> figures (R,); a figure that is nan is left out.
        seed: Same seed, same interval.
        level: Coverage.
        resamples: Figures drawn.

    Returns:
        Lower and upper end; nan where every figure is nan.
    """
    terms = np.asarray(rows, dtype=np.float64)
    if terms.ndim != 2 or len(terms) == 0:
        raise ValueError(f"a bootstrap of sums needs at least one row, got shape {terms.shape}")
    generator = np.random.default_rng(seed)
    size, step = len(terms), max(1, _CELLS // len(terms))
    figures = np.empty(resamples)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = generator.integers(size, size=(count, size))
        figures[start : start + count] = statistic(_counts(drawn, size) @ terms)
    figures = figures[~np.isnan(figures)]
    if not figures.size:
        return math.nan, math.nan
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
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


def t_probability(estimate: float, error: float, freedom: int) -> float:
    """Two-sided p of an estimate that is zero in truth, by Student's t.

    Args:
        estimate: What was measured.
        error: Its standard error.
        freedom: Degrees of freedom of the error; at least 1.

    Returns:
        nan where the error is zero: seeds that coincide, as rates may, show no spread to judge by.
    """
    if error <= _TINY * abs(estimate):
        return math.nan
    return float(2 * stdtr(freedom, -abs(estimate) / error))


class JointBootstrap:
    """A bootstrap of arms over seeds and test samples at once.

    Seeds are drawn with replacement, and so are samples; a sample is drawn with what every arm and seed made
    of it, since they share its scene. All arms see the same draws, so a difference of two arms is paired in
    both. Of S seeds S - 1 are drawn: with S draws the variance between seeds would come out too small, by a
    third at three seeds (Rao and Wu, 1988; here without strata). With one seed samples alone are drawn.

    Args:
        strata: The per-sample scores, one (A, S, n) array of arms, seeds and samples for each stratum. The
            number of an arm is the mean over strata of the means over samples. Strata of one size share their
            draws, as kinds of questions share their scenes.
        resamples: How many are drawn; the draws are always the same.
    """

    def __init__(self, strata: Sequence[ArrayLike], resamples: int = 4000) -> None:
        scores = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
        if not scores or any(
            s.ndim != 3 or 0 in s.shape or s.shape[:2] != scores[0].shape[:2] for s in scores
        ):
            raise ValueError(
                f"expected arrays of arms, seeds and samples, got shapes {[s.shape for s in scores]}"
            )
        arms, seeds, _ = scores[0].shape
        generator = np.random.default_rng(0)
        drawn = generator.integers(seeds, size=(resamples, max(1, seeds - 1)))
        self._seeds = _counts(drawn, seeds) * (seeds / drawn.shape[1])  # (R,S), each row sums to S
        self._cells = np.zeros((resamples, arms * seeds))  # mean of each arm and seed over drawn samples
        for size in dict.fromkeys(stratum.shape[2] for stratum in scores):
            alike = [stratum.reshape(arms * seeds, size) for stratum in scores if stratum.shape[2] == size]
            total = np.sum(alike, axis=0).T / (size * len(scores))  # (n,A*S)
            rows = max(1, _CELLS // size)
            for start in range(0, resamples, rows):
                count = min(rows, resamples - start)
                drawn = generator.integers(size, size=(count, size))
                self._cells[start : start + count] += _counts(drawn, size) @ total
        self._cells = self._cells.reshape(resamples, arms, seeds)

    def replicates(self, weights: ArrayLike) -> Array:
        """A linear combination of the arms' numbers, in every resample.

        Args:
            weights: (A, S), of each arm at each seed; for a mean over seeds 1 / S each.

        Returns:
            (resamples,)
        """
        weight = np.asarray(weights, dtype=np.float64)
        arms = np.flatnonzero(weight.any(axis=1))
        per_seed = np.einsum("ras,as->rs", self._cells[:, arms], weight[arms])
        return (per_seed * self._seeds).sum(axis=1)

    def interval(self, weights: ArrayLike) -> tuple[float, float]:
        """95% percentile interval of a linear combination."""
        low, high = np.quantile(self.replicates(weights), [0.025, 0.975])
        return float(low), float(high)

    def probability(self, weights: ArrayLike) -> float:
        """Two-sided p of a linear combination that is zero in truth: how rarely resamples cross zero."""
        drawn = self.replicates(weights)
        rarer = min(int((drawn <= _TINY).sum()), int((drawn >= -_TINY).sum()))
        return min(1.0, 2 * (rarer + 1) / (drawn.size + 1))


def _counts(drawn: np.ndarray, size: int) -> Array:
    """How often each of `size` things was drawn: (R,k) indices -> (R,size)."""
    rows = np.arange(len(drawn))[:, None] * size
    return np.bincount((drawn + rows).ravel(), minlength=len(drawn) * size).reshape(-1, size).astype(float)


@dataclass(frozen=True)
class Fit:
    """Contrasts of a linear model.

    Attributes:
        estimates: (C,); nan where the data do not determine the contrast.
        errors: (C,) standard errors; nan likewise, and where no degree of freedom is left.
        freedom: Degrees of freedom of the residual.
        weights: (C, N): an estimate is the sum of its row times the observations.
    """

    estimates: Array
    errors: Array
    freedom: int
    weights: Array


def least_squares(design: ArrayLike, observed: ArrayLike, contrasts: ArrayLike) -> Fit:
    """Estimates contrasts of the coefficients of a linear model; the design may lack full rank.

    Args:
        design: (N, P).
        observed: (N,).
        contrasts: (C, P). Those outside the row space of the design are not determined by the data.
    """
    matrix, values, rows = (np.asarray(x, dtype=np.float64) for x in (design, observed, contrasts))
    inverse = np.linalg.pinv(matrix, rcond=_TINY)  # (P,N)
    rank = int(np.linalg.matrix_rank(matrix, rtol=_TINY))
    weights = rows @ inverse  # (C,N)
    lost = np.linalg.norm(weights @ matrix - rows, axis=1) > 1e-6 * np.linalg.norm(rows, axis=1)
    freedom = len(values) - rank
    residual = values - matrix @ (inverse @ values)
    variance = float(residual @ residual) / freedom if freedom > 0 else math.nan
    if variance < (_TINY * (np.abs(values).max(initial=0.0))) ** 2:
        variance = 0.0
    estimates, errors = weights @ values, np.sqrt(variance) * np.linalg.norm(weights, axis=1)
    return Fit(np.where(lost, np.nan, estimates), np.where(lost, np.nan, errors), freedom, weights)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Holm's adjusted p values (1979): at 5%, all that are below are significant together.

    Args:
        probabilities: p of every test of the family; nan stands for one that could not be made.
    """
    adjusted = [math.nan] * len(probabilities)
    tested = sorted((p, place) for place, p in enumerate(probabilities) if not math.isnan(p))
    largest = 0.0
    for done, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - done)))
        adjusted[place] = largest
    return adjusted


def deviation_interval(values: ArrayLike) -> tuple[float, float]:
    """95% interval of the standard deviation of a normal population, from chi-square; two values at least."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size < 2:
        raise ValueError(f"a deviation needs a list of at least two values, got shape {sample.shape}")
    squares = float(sample.var(ddof=1)) * (sample.size - 1)
    tails = chdtri(sample.size - 1, [0.025, 0.975])  # of the upper tail: large, small
    return math.sqrt(squares / float(tails[0])), math.sqrt(squares / float(tails[1]))


def power(seeds: int, ratio: float, paired: bool = True) -> float:
    """The probability that a two-sided t test at 5% sees a difference (noncentral t).

    Args:
        seeds: Of each arm; two at least.
        ratio: The difference in standard deviations: of the paired differences, or of an arm between seeds.
        paired: Whether both arms use the same seeds.
    """
    freedom = seeds - 1 if paired else 2 * seeds - 2
    shift = abs(ratio) * math.sqrt(seeds if paired else seeds / 2)
    edge = float(stdtrit(freedom, 0.975))
    wrong = nctdtr(freedom, shift, -edge) if shift < 5 else 0.0  # of the other sign; SciPy's tail ends in nan
    return float(1 - nctdtr(freedom, shift, edge) + wrong)


def seeds_for(ratio: float, wanted: float = 0.8, paired: bool = True) -> int | None:
    """The fewest seeds of each arm with which a difference is seen with the wanted power.

    Args:
        ratio: The difference in standard deviations, as for `power`.
        wanted: Power.
        paired: Whether both arms use the same seeds.

    Returns:
        Two at least; None for more than 10,000.
    """
    low, high = 1, 2
    while high <= MOST_SEEDS and power(high, ratio, paired) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, ratio, paired) >= wanted else (middle, high)
    return high if high <= MOST_SEEDS else None


@dataclass(frozen=True)
class Seeds:
    """How many seeds decide; None stands for more than 10,000.

    Attributes:
        likely: If the pilot's standard deviation is the true one.
        fewest, most: At the ends of the deviation's 95% interval: a pilot knows it badly.
    """

    likely: int | None
    fewest: int | None
    most: int | None


def seeds_needed(differences: ArrayLike, effect: float, wanted: float = 0.8) -> Seeds:
    """Plans an ablation from a pilot: the seeds that show an effect, two-sided at 5%, paired.

    Args:
        differences: Paired differences of the pilot, one a seed; two at least.
        effect: The difference to be seen, in the same unit.
        wanted: Power.
    """
    sample = np.asarray(differences, dtype=np.float64)
    low, high = deviation_interval(sample)

    def count(deviation: float) -> int | None:
        if effect == 0:
            return None
        return seeds_for(abs(effect) / deviation, wanted) if deviation > 0 else 2

    return Seeds(count(float(sample.std(ddof=1))), count(low), count(high))
