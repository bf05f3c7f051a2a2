"""One metric over all arms and seeds: means, differences and other combinations, each with its intervals.

Two intervals stand beside each other. *Over seeds*: Student's t of the values that the seeds give, for the
test samples that there are. *Over seeds and samples*: the joint bootstrap, which also redraws the samples;
with one seed it is over samples alone. A difference counts as significant only if both exclude zero, and
never with one seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from lab.evaluation.statistics import (
    JointBootstrap,
    bootstrap_interval,
    t_interval,
    t_probability,
    wilson_interval,
)
from lab.reports.ablation.results import Results
from lab.reports.measures import Measure

Ends = tuple[float, float]
SEEDS, SAMPLES, WILSON, NONE = "seeds", "samples", "wilson", "none"
_WIDTH = 1e-9  # of an interval that has none, up to rounding
LEVEL = 0.05  # p below which a difference is called significant


@dataclass(frozen=True)
class Mean:
    """What an arm reached.

    Attributes:
        value: Mean over seeds.
        low, high: 95% interval; both the value where there is none.
        over: What the interval is over: seeds (Student's t), samples (bootstrap, with one seed or seeds that
            coincide), wilson (samples, where all are right or all are wrong) or none.
        seeds: How many.
    """

    value: float
    low: float
    high: float
    over: str
    seeds: int


@dataclass(frozen=True)
class Estimate:
    """A linear combination of arms, for instance the difference of two.

    Attributes:
        value: Mean over seeds.
        by_seed: Seed -> value.
        over_seeds: 95% interval by Student's t over seeds; None with one seed.
        joint: 95% bootstrap interval over seeds and samples; None without per-sample scores.
        p: Two-sided, the larger of the two; nan where neither could be made.
        samples: Test samples behind each number; 0 without per-sample scores.
    """

    value: float
    by_seed: Mapping[int, float]
    over_seeds: Ends | None
    joint: Ends | None
    p: float
    samples: int

    @property
    def interval(self) -> Ends | None:
        """The one to show: over seeds, or over samples where there is one seed."""
        return self.over_seeds or self.joint

    @property
    def over(self) -> str:
        return SEEDS if self.over_seeds else SAMPLES if self.joint else NONE

    @property
    def significant(self) -> bool:
        return len(self.by_seed) > 1 and self.p < LEVEL


class Measured:
    """A metric of all arms at all seeds.

    Args:
        results: Of the ablation.
        measure: Which metric.
    """

    def __init__(self, results: Results, measure: Measure) -> None:
        self.measure = measure
        self.arms = [arm.name for arm in results.arms]
        self.seeds = list(results.seeds)
        self._cells = results.cells
        self.values = np.full((len(self.arms), len(self.seeds)), np.nan)  # (A,S)
        for a, arm in enumerate(self.arms):
            for s, seed in enumerate(self.seeds):
                cell = results.cells.get((arm, seed))
                if cell is not None:
                    self.values[a, s] = cell.metrics.get(measure.name, np.nan)
        self._bootstraps: dict[tuple[int, ...], JointBootstrap] = {}

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.measure.rising else -1

    @cached_property
    def strata(self) -> list[np.ndarray] | None:
        """The scores behind the values, (A, S, n) for each stratum; 0 where a cell is missing.

        None unless all cells have scores of the same samples.
        """
        known = [(a, s) for a, s in np.ndindex(self.values.shape) if not np.isnan(self.values[a, s])]
        found = {(a, s): self._cells[self.arms[a], self.seeds[s]].strata(self.measure.name) for a, s in known}
        sizes = {None if strata is None else tuple(map(len, strata)) for strata in found.values()}
        if len(sizes) != 1 or None in sizes:
            return None
        (shape,) = sizes
        assert shape is not None
        joined = [np.zeros((*self.values.shape, size)) for size in shape]
        for place, strata in found.items():
            for whole, part in zip(joined, strata or (), strict=True):
                whole[place] = part
        return joined

    @property
    def samples(self) -> int:
        """Test samples behind each value; 0 where their scores are not at hand."""
        return sum(part.shape[2] for part in self.strata) if self.strata else 0

    def mean(self, arm: str) -> Mean | None:
        """What an arm reached, None where it has no value."""
        row = self.values[self.arms.index(arm)]
        places = np.flatnonzero(~np.isnan(row))
        if not places.size:
            return None
        values = row[places]
        value = float(values.mean())
        if values.size > 1:
            (low, high), over = t_interval(values), SEEDS
        else:
            low, high, over = self._over_samples(arm, self.seeds[places[0]], value)
        if self.measure.rate:  # no rate lies beyond
            low, high = max(0.0, low), min(1.0, high)
        if high - low < _WIDTH:  # seeds that coincide show no spread, which is no certainty
            if self.measure.rate and value in (0.0, 1.0):
                low, high, over = self._at_an_end(arm, places, value)
            elif values.size > 1 and self.samples:
                weights = np.zeros_like(self.values)
                weights[self.arms.index(arm), places] = 1 / values.size
                ends, _ = self.joint(weights, [int(s) for s in places])
                (low, high), over = ends or (low, high), SAMPLES
        return Mean(value, float(low), float(high), over, int(values.size))

    def _at_an_end(self, arm: str, places: np.ndarray, value: float) -> tuple[float, float, str]:
        """Wilson's interval of 0 or 1, or that of an evaluation whose scores are not at hand."""
        if self.samples:  # the same at every seed, so they count once
            return *wilson_interval(round(value * self.samples), self.samples), WILSON
        stated = [self._cells[arm, self.seeds[place]].intervals.get(self.measure.name) for place in places]
        low, high = zip((value, value), *filter(None, stated), strict=True)
        wide = max(high) - min(low) > _WIDTH
        return min(low), max(high), WILSON if wide else SEEDS if len(places) > 1 else NONE

    def _over_samples(self, arm: str, seed: int, value: float) -> tuple[float, float, str]:
        cell = self._cells[arm, seed]
        if self.measure.name in cell.intervals:
            return *cell.intervals[self.measure.name], SAMPLES
        strata = cell.strata(self.measure.name)
        if strata is not None and len(strata) == 1:
            return *bootstrap_interval(strata[0]), SAMPLES
        return value, value, NONE

    def common_seeds(self, arms: Iterable[int]) -> list[int]:
        """Places of the seeds at which all of these arms have a value."""
        rows = self.values[list(arms)]
        return [int(s) for s in np.flatnonzero(~np.isnan(rows).any(axis=0))]

    def estimate(self, weights: ArrayLike, places: Sequence[int] | None = None) -> Estimate | None:
        """A linear combination of arms, paired over seeds and samples.

        Args:
            weights: (A,), of each arm.
            places: Of the seeds to use; by default those at which all arms with a weight have a value.

        Returns:
            None where no seed has all of them.
        """
        weight = np.asarray(weights, dtype=np.float64)
        used = np.flatnonzero(weight)
        places = self.common_seeds(used) if places is None else list(places)
        if not places:
            return None
        values = weight[used] @ self.values[used][:, places]  # (S,)
        grid = np.zeros_like(self.values)
        grid[:, places] = weight[:, None] / len(places)
        joint, p = self.joint(grid, places)
        over_seeds = None
        if len(places) > 1:
            over_seeds = t_interval(values)
            error = float(values.std(ddof=1)) / math.sqrt(len(places))
            p = larger(p, t_probability(float(values.mean()), error, len(places) - 1))
        by_seed = {self.seeds[s]: float(value) for s, value in zip(places, values, strict=True)}
        return Estimate(float(values.mean()), by_seed, over_seeds, joint, p, self.samples if joint else 0)

    def difference(self, first: str, second: str) -> Estimate | None:
        """First arm less second, at the seeds that both have."""
        weights = np.zeros(len(self.arms))
        weights[self.arms.index(first)] += 1
        weights[self.arms.index(second)] -= 1
        return self.estimate(weights) if first != second else None

    def joint(self, weights: np.ndarray, places: Sequence[int]) -> tuple[Ends | None, float]:
        """Interval and p over seeds and samples of a combination of cells.

        Args:
            weights: (A, S), of each arm and seed.
            places: The seeds to draw from.
        """
        if self.strata is None or not places:
            return None, math.nan
        chosen = tuple(places)
        if chosen not in self._bootstraps:
            self._bootstraps[chosen] = JointBootstrap([part[:, list(chosen)] for part in self.strata])
        bootstrap = self._bootstraps[chosen]
        return bootstrap.interval(weights[:, list(chosen)]), bootstrap.probability(weights[:, list(chosen)])

    def ranked(self) -> list[str]:
        """Arms that have a value, the best first."""
        means = {arm: mean.value for arm in self.arms if (mean := self.mean(arm)) is not None}
        return sorted(means, key=lambda arm: -self.sign * means[arm])

    def winner(self) -> str | None:
        """The best arm, if its paired difference to the runner-up is significant.

        One comparison is enough, however many arms there are (Hung and Fithian, 2019, arXiv:1610.03944, for
        independent arms).
        """
        ranked = self.ranked()
        if len(ranked) < 2:
            return None
        lead = self.difference(ranked[0], ranked[1])
        return ranked[0] if lead is not None and lead.significant else None


def larger(first: float, second: float) -> float:
    """The larger of two p values; one that could not be made does not count."""
    known = [p for p in (first, second) if not math.isnan(p)]
    return max(known, default=math.nan)
