"""A law of data: how the error at a task falls with samples of that task and of the other.

    error = floor + (start - floor) / (1 + (N / half)^power),  N = own + exchange * other

`start` is the error without samples, `half` the samples after which half of what can be gained is gained,
and `power` the slope of the power law that the error follows from there on. N counts the *other* task's
samples as `exchange` of one's own each: what one sample of theirs is worth, negative where they hurt. Without
the last term the law says that the other task does nothing. docs/comparison.md says how a law is chosen and
when none is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lab.evaluation.curves import Array, Box, fit_curves

PARAMETERS = ("start", "half", "power", "floor", "exchange")
FORMS: Mapping[str, tuple[str, ...]] = {  # form -> its free parameters; others are 0
    "constant": ("start",),
    "own": ("start", "half", "power"),
    "own, floor": ("start", "half", "power", "floor"),
    "transfer": ("start", "half", "power", "exchange"),
    "transfer, floor": ("start", "half", "power", "floor", "exchange"),
}
LEAST_CELLS, LEAST_AMOUNTS = 6, 3
RESAMPLES = 400
_MOST_EXCHANGE = 3.0
_EDGE = 0.01  # share of a parameter's span within which it counts as lying at a bound


@dataclass(frozen=True)
class Observations:
    """Errors of a metric at several amounts of data.

    Attributes:
        own, other: Samples of the metric's own task and of the other, (N,).
        error: (N,), at least 0.
        seed: (N,); seeds are blocks: arms of one seed share what was trained before.
        most: The largest possible error: 1 of a rate; inf where there is none.
    """

    own: Array
    other: Array
    error: Array
    seed: np.ndarray
    most: float = math.inf

    @cached_property
    def cell(self) -> np.ndarray:
        """(N,) number of the cell, a pair of amounts."""
        pairs = np.stack([self.own, self.other], axis=1)
        return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)

    @property
    def cells(self) -> int:
        return int(self.cell.max()) + 1

    @property
    def total(self) -> float:
        """Sum of squares around the mean."""
        return float(((self.error - self.error.mean()) ** 2).sum())


@dataclass(frozen=True)
class Candidate:
    """One form, fitted.

    Attributes:
        form: One of FORMS.
        values: (5,) in the order of PARAMETERS.
        squares: Residual sum of squares.
        aicc: Akaike's criterion with the correction for few observations; smaller is better.
        left_out: Root mean square error at cells that the fit did not see, each left out in turn.
    """

    form: str
    values: Array
    squares: float
    aicc: float
    left_out: float


@dataclass(frozen=True)
class Law:
    """A fitted law, or why there is none.

    Attributes:
        observations: What it was fitted to.
        candidates: All forms, by name; empty where data were too few to try.
        chosen: Name of the form; "" where no law is given.
        refusal: Why not; "" where one is given.
        draws: (R,5) parameters of the bootstrap's refits of the chosen form.
        exchange: Estimate and 95% interval of the other task's worth, from the best form that has it; None
            where there is no law, or where mixes lie on one line: of one total, more of the other is less of
            one's own.
    """

    observations: Observations
    candidates: Mapping[str, Candidate]
    chosen: str
    refusal: str
    draws: Array
    exchange: tuple[float, float, float] | None

    @property
    def best(self) -> Candidate:
        return self.candidates[self.chosen]

    @property
    def r_squared(self) -> float:
        """Share of the spread that the chosen form explains."""
        return 1 - self.best.squares / self.observations.total

    def error(self, own: Array, other: Array) -> Array:
        """Predicted errors at some amounts, of one shape."""
        return evaluate(self.best.values[None], own.ravel(), other.ravel())[0].reshape(own.shape)

    def drawn(self, own: Array, other: Array) -> Array:
        """The same of every bootstrap's law, (R, ...)."""
        return evaluate(self.draws, own.ravel(), other.ravel()).reshape(-1, *own.shape)

    def band(self, own: Array, other: Array) -> tuple[Array, Array]:
        """95% confidence band of the predicted error, pointwise."""
        low, high = np.quantile(self.drawn(own, other), [0.025, 0.975], axis=0)
        return low, high

    def interval(self, parameter: str) -> tuple[float, float]:
        """95% interval of a parameter of the chosen form."""
        low, high = np.quantile(self.draws[:, PARAMETERS.index(parameter)], [0.025, 0.975])
        return float(low), float(high)

    def undetermined(self, parameter: str) -> bool:
        """Whether the interval of a parameter ends where the search for it did."""
        box = bounds(self.observations)
        place = PARAMETERS.index(parameter)
        slack = _EDGE * (box.high[place] - box.low[place])
        low, high = np.quantile(_searched(self.draws)[:, place], [0.025, 0.975])
        inner = parameter in ("half", "power", "exchange")
        return inner and bool(low < box.low[place] + slack or high > box.high[place] - slack)


def evaluate(values: Array, own: Array, other: Array) -> Array:
    """Errors (B,N) of laws (B,5) at amounts (N,)."""
    start, half, power, floor, exchange = (values[:, place, None] for place in range(5))
    effective = np.maximum(own + exchange * other, 1e-9)
    return floor + (start - floor) / (1 + np.exp(np.clip(power * np.log(effective / half), -60, 60)))


def bounds(seen: Observations) -> Box:
    """Where parameters are searched: half and power on a log scale, the floor as a share of the start."""
    amounts = seen.own[seen.own > 0]
    low, high = (float(amounts.min()), float(amounts.max())) if amounts.size else (1.0, 2.0)
    top = min(seen.most, 2 * float(seen.error.max()) + 1e-9)
    return Box(
        np.array([0.0, math.log(low / 8), math.log(0.3), 0.0, -_MOST_EXCHANGE]),
        np.array([top, math.log(high * 8), math.log(8.0), 1.0, _MOST_EXCHANGE]),
    )


def fit_law(seen: Observations, seed: int = 0, resamples: int = RESAMPLES) -> Law:
    """Chooses and fits a law, or says why the data allow none.

    The form is the one of smallest AICc; one with an exchange has to predict left-out cells better, too, than
    its form without. A law that predicts them no better than their mean is refused.

    Args:
        seen: At least one observation.
        seed: Of the bootstrap: same seed, same intervals.
        resamples: Of the bootstrap, over seeds and cells.
    """
    amounts = len(np.unique(seen.own))
    if amounts < LEAST_AMOUNTS or seen.cells < LEAST_CELLS:
        return _refused(
            seen,
            f"a law needs at least {LEAST_AMOUNTS} amounts of the task's own samples and {LEAST_CELLS} pairs "
            f"of amounts; there are {amounts} and {seen.cells}",
        )
    if seen.total <= 1e-12 * max(1.0, float((seen.error**2).sum())):
        return _refused(seen, "the metric is the same everywhere")
    apart = np.linalg.matrix_rank(np.stack([np.ones_like(seen.own), seen.own, seen.other], axis=1)) > 2
    found = {form: _candidate(seen, form) for form in FORMS if apart or "exchange" not in FORMS[form]}
    known = {form: one for form, one in found.items() if math.isfinite(one.aicc)}
    chosen = min(known, key=lambda form: known[form].aicc)
    plain = chosen.replace("transfer", "own")
    if chosen != plain and found[chosen].left_out >= found[plain].left_out:
        chosen = plain
    if chosen == "constant" or found[chosen].left_out >= found["constant"].left_out:
        return _refused(seen, "no law predicts mixes that it has not seen better than their mean does", found)
    draws = _bootstrap(seen, found[chosen], seed, resamples)
    exchange = None
    if trading := [form for form in known if "exchange" in FORMS[form]]:
        worth = min(trading, key=lambda form: known[form].aicc)
        traded = draws if worth == chosen else _bootstrap(seen, found[worth], seed, resamples)
        place = PARAMETERS.index("exchange")
        low, high = np.quantile(traded[:, place], [0.025, 0.975])
        exchange = float(found[worth].values[place]), float(low), float(high)
    return Law(seen, found, chosen, "", draws, exchange)


def _refused(seen: Observations, why: str, found: Mapping[str, Candidate] | None = None) -> Law:
    return Law(seen, found or {}, "", why, np.zeros((0, 5)), None)


def _candidate(seen: Observations, form: str) -> Candidate:
    everything = np.ones((1, len(seen.error)))
    (values,), (squares,) = _fit(seen, form, seen.error[None], everything, _starts(seen, form))
    count, free = len(seen.error), len(FORMS[form]) + 1  # and the variance
    aicc = math.inf
    if count > free + 1:
        noise = max(squares / count, 1e-15)
        aicc = count * math.log(noise) + 2 * free + 2 * free * (free + 1) / (count - free - 1)
    masks = np.array([(seen.cell != cell).astype(float) for cell in range(seen.cells)])
    observed = np.repeat(seen.error[None], seen.cells, axis=0)
    refitted, _ = _fit(seen, form, observed, masks, np.vstack([values[None], _starts(seen, form)[::4]]))
    misses = (observed - evaluate(refitted, seen.own, seen.other))[masks == 0]
    return Candidate(form, values, float(squares), aicc, float(np.sqrt((misses**2).mean())))


def _fit(
    seen: Observations, form: str, observed: Array, weights: Array, starts: Array
) -> tuple[Array, Array]:
    """The best of several starts for every row: (B,5) parameters and (B,) sums of squares."""
    box = bounds(seen)
    free = [PARAMETERS.index(name) for name in FORMS[form]]
    rows, tries = len(observed), len(starts)

    def whole(parameters: Array) -> Array:
        full = np.zeros((len(parameters), 5))
        full[:, free] = parameters
        return full

    def model(parameters: Array) -> Array:
        if form == "constant":
            return np.repeat(parameters, len(seen.own), axis=1)
        return evaluate(_natural(whole(parameters)), seen.own, seen.other)

    found, squares = fit_curves(
        model,
        np.repeat(observed, tries, axis=0),
        np.repeat(weights, tries, axis=0),
        np.tile(_searched(starts)[:, free], (rows, 1)),
        Box(box.low[free], box.high[free]),
    )
    best = squares.reshape(rows, tries).argmin(axis=1)
    values = _natural(whole(found)).reshape(rows, tries, 5)[np.arange(rows), best]
    if form == "constant":
        values[:, 3] = values[:, 0]  # the floor is the start: nothing falls
    return values, squares.reshape(rows, tries)[np.arange(rows), best]


def _natural(searched: Array) -> Array:
    """Parameters as the law has them, of those that are searched."""
    start, half, power, floor, exchange = searched.T
    return np.stack([start, np.exp(half), np.exp(power), floor * start, exchange], axis=1)


def _searched(natural: Array) -> Array:
    start, half, power, floor, exchange = natural.T
    share = floor / np.maximum(start, 1e-12)
    return np.stack(
        [start, np.log(np.maximum(half, 1e-9)), np.log(np.maximum(power, 1e-9)), share, exchange], axis=1
    )


def _starts(seen: Observations, form: str) -> Array:
    """Where searches begin, (T,5)."""
    amounts = np.unique(seen.own[seen.own > 0])
    halves = np.exp(np.linspace(math.log(amounts.min() / 2), math.log(amounts.max() * 2), 4))
    top = float(seen.error.max())
    if form == "constant":
        return np.array([[float(seen.error.mean()), 1.0, 1.0, 0.0, 0.0]])
    exchanges: Sequence[float] = (-0.2, 0.05, 0.5) if "exchange" in FORMS[form] else (0.0,)
    floor = 0.2 * top if "floor" in FORMS[form] else 0.0
    return np.array(
        [[top, half, power, floor, worth] for half in halves for power in (0.7, 2.0) for worth in exchanges]
    )


def _bootstrap(seen: Observations, fitted: Candidate, seed: int, resamples: int) -> Array:
    """Refits to resampled residuals, (R,5): those of seeds, of cells, and the rest, each drawn on its own."""
    generator = np.random.default_rng(seed)
    predicted = evaluate(fitted.values[None], seen.own, seen.other)[0]
    residual = seen.error - predicted
    seeds, block = np.unique(seen.seed, return_inverse=True)
    parts = []
    if len(seeds) > 1:  # luck that all cells of a seed share
        means = np.array([residual[block == number].mean() for number in range(len(seeds))])
        residual = residual - means[block]
        parts.append((means - means.mean(), block, len(seeds) / (len(seeds) - 1)))
    cells = np.array([residual[seen.cell == number].mean() for number in range(seen.cells)])
    lost = len(FORMS[fitted.form])
    parts.append((cells, seen.cell, seen.cells / max(1, seen.cells - lost)))
    rest = residual - cells[seen.cell]
    free = len(rest) - seen.cells - len(seeds) + 1
    if free > 0:
        parts.append((rest, np.arange(len(rest)), len(rest) / free))
    observed = np.repeat(predicted[None], resamples, axis=0)
    for values, place, inflation in parts:
        drawn = generator.integers(len(values), size=(resamples, len(values)))
        observed += math.sqrt(inflation) * values[drawn][:, place]
    starts = np.vstack([fitted.values[None], _starts(seen, fitted.form)[::5]])
    return _fit(seen, fitted.form, observed, np.ones_like(observed), starts)[0]
