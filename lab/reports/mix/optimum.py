"""The best mix for a stated preference and budget, as the laws predict it and as it was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lab.errors import LabError, nearest
from lab.evaluation.curves import Array
from lab.evaluation.statistics import t_interval
from lab.reports.measures import Measure
from lab.reports.mix.fits import Fit
from lab.reports.mix.trials import GROUPS, Trial

SHARES = np.linspace(0, 1, 101)  # of understanding
FLAT = 0.01  # of the preferred mean: mixes that lose less are as good
_EQUAL = 1e-9  # what rounding leaves of no difference
_SLACK = 1.01  # by which a total may exceed a budget: rounding of shares


@dataclass(frozen=True)
class Budget:
    """What a training may cost: samples of instruction tuning, or its seconds."""

    amount: float
    unit: str = "samples"

    @property
    def said(self) -> str:
        """`5,120 samples`."""
        return f"{self.amount:,.0f} {'samples' if self.unit == 'samples' else 'seconds of training'}"

    @property
    def title(self) -> str:
        """`5,120 training samples of the last stage`, what the mix is of."""
        if self.unit == "samples":
            return f"{self.amount:,.0f} training samples of the last stage"
        return f"{self.amount:,.0f} seconds of the last stage's training"


@dataclass(frozen=True)
class Path:
    """Mixes of one budget: amounts for each of SHARES, and which of them lie within what was measured."""

    understanding: Array
    generation: Array
    covered: np.ndarray

    @property
    def extrapolated(self) -> bool:
        """Whether no mix of the budget lies within what was measured."""
        return not bool(self.covered.any())

    def total(self, share: float) -> float:
        """Samples of both that the budget allows at a share of understanding."""
        return float(np.interp(share, SHARES, self.understanding + self.generation))


@dataclass(frozen=True)
class Measurement:
    """The best of the measured mixes within the budget.

    Attributes:
        name: The arm.
        value: Its preferred mean.
        lead: Over the runner-up: value and 95% interval over seeds; None without one, with one seed, or where
            seeds coincide, which show no spread to judge by.
        second: The runner-up.
    """

    name: str
    value: float
    lead: tuple[float, float, float] | None
    second: str


@dataclass(frozen=True)
class Optimum:
    """The best mix of a setting.

    Attributes:
        setting: What arms are beside their mix.
        path: The mixes among which it was sought.
        share: Of understanding in it; nan where laws are missing.
        interval: 95% interval of the share, by bootstrap.
        flat: Lowest and highest share up to which, from the best one on, the preferred mean stays within FLAT
            of the best.
        mean, low, high: Preferred mean along the path with its 95% band, (101,) each; empty where laws are
            missing.
        values: Metric -> predicted value at the best share, with its 95% interval.
        missing: Metrics of the preference without a law.
        measured: Among trials within the budget; None where there are none.
    """

    setting: str
    path: Path
    share: float
    interval: tuple[float, float]
    flat: tuple[float, float]
    mean: Array
    low: Array
    high: Array
    values: Mapping[str, tuple[float, float, float]]
    missing: tuple[str, ...]
    measured: Measurement | None

    @property
    def known(self) -> bool:
        return not self.missing

    @property
    def place(self) -> int:
        """Of the best share among SHARES."""
        return int(np.abs(SHARES - self.share).argmin())


def read_preference(
    stated: Sequence[str], leading: Mapping[str, Measure], known: Sequence[str]
) -> dict[str, float]:
    """Metric -> weight, of `understanding=2 generation=1` or of metrics' names.

    Args:
        stated: What the person wrote; both groups alike where nothing is.
        leading: Group -> the metric that stands for it.
        known: Rates that all trials have.

    Raises:
        LabError: naming all that is wrong.
    """
    weights: dict[str, float] = {}
    mistakes = []
    for text in stated or [f"{group}=1" for group in leading]:
        name, _, number = text.partition("=")
        metric = leading[name].name if name in leading else name
        if metric not in known:
            mistakes.append(f"no rate '{name}'{nearest(name, [*leading, *known])}")
        elif not re.fullmatch(r"\d+(\.\d*)?|\.\d+", number):
            mistakes.append(f"'{text}': expected NAME=WEIGHT with a weight of at least 0, such as {name}=2")
        else:
            weights[metric] = weights.get(metric, 0.0) + float(number)
    if not mistakes and not any(weights.values()):
        mistakes.append("all weights are 0; at least one has to be positive")
    if mistakes:
        raise LabError("--prefer: " + "; ".join(mistakes))
    return {metric: weight for metric, weight in weights.items() if weight}


def read_budget(stated: str) -> Budget:
    """`4800` samples, or `300s` of training.

    Raises:
        LabError: It is neither.
    """
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)(s?)", stated)
    if not matched or not float(matched[1]):
        raise LabError(f"--budget: expected samples such as 4800, or seconds such as 300s, not '{stated}'")
    return Budget(float(matched[1]), "seconds" if matched[2] else "samples")


def usual_budget(trials: Sequence[Trial]) -> Budget:
    """The largest total whose mixes were all measured from one end to the other, or else the median total."""
    ends = [
        max(
            (t.amounts.total for t in trials if t.amounts.of(group) and not t.amounts.other(group)),
            default=0.0,
        )
        for group in GROUPS
    ]
    return Budget(min(ends) or float(np.median([trial.amounts.total for trial in trials])))


def seconds_by_sample(trials: Sequence[Trial]) -> tuple[float, float, float] | None:
    """Seconds of a training without samples, and of a sample of understanding and of generation.

    By least squares. None where too few trainings recorded their time, or mixes do not tell the three apart.
    """
    known = [trial for trial in trials if np.isfinite(trial.seconds)]
    rows = np.array([[1.0, trial.amounts.understanding, trial.amounts.generation] for trial in known])
    if len(known) < 4 or np.linalg.matrix_rank(rows) < 3:
        return None
    found, *_ = np.linalg.lstsq(rows, np.array([trial.seconds for trial in known]), rcond=None)
    return (float(found[0]), float(found[1]), float(found[2])) if (found[1:] > 0).all() else None


def path_of(trials: Sequence[Trial], budget: Budget) -> Path:
    """The mixes of a budget.

    Raises:
        LabError: A budget of seconds, and trainings do not tell what a sample takes.
    """
    totals = np.full(len(SHARES), budget.amount)
    if budget.unit == "seconds":
        rates = seconds_by_sample(trials)
        if rates is None or rates[0] >= budget.amount:
            raise LabError(
                f"--budget {budget.amount:g}s: the recorded trainings do not tell how many samples that is; "
                "state samples instead"
            )
        totals = (budget.amount - rates[0]) / (SHARES * rates[1] + (1 - SHARES) * rates[2])
    understanding, generation = SHARES * totals, (1 - SHARES) * totals
    cells = {(trial.amounts.understanding, trial.amounts.generation) for trial in trials}
    covered = [within(cells, u, g) for u, g in zip(understanding, generation, strict=True)]
    return Path(understanding, generation, np.array(covered))


def best_mix(
    fits: Mapping[str, Fit],
    trials: Sequence[Trial],
    weights: Mapping[str, float],
    budget: Budget,
    setting: str,
) -> Optimum:
    """The best mix of one setting.

    Args:
        fits: Metric -> its law in this setting.
        trials: Of this setting.
        weights: Metric -> weight, as `read_preference` gives them.
        budget: Of every mix that is considered.
        setting: Its name.
    """
    path = path_of(trials, budget)
    missing = tuple(name for name in weights if name not in fits or not fits[name].known)
    measured = _measured(trials, weights, path)
    if missing:
        none, nowhere = np.zeros(0), (np.nan, np.nan)
        return Optimum(setting, path, np.nan, nowhere, nowhere, none, none, none, {}, missing, measured)
    total = sum(weights.values())
    parts = {name: fits[name].value(path.understanding, path.generation) for name in weights}
    draws = {name: fits[name].drawn(path.understanding, path.generation) for name in weights}
    mean = sum((weights[name] / total * parts[name] for name in weights), np.zeros(len(SHARES)))
    drawn = sum((weights[name] / total * draws[name] for name in weights), np.zeros((1, len(SHARES))))
    allowed = path.covered if path.covered.any() else np.ones(len(SHARES), dtype=bool)
    place = int(np.where(allowed, mean, -np.inf).argmax())
    places = np.where(allowed, drawn, -np.inf).argmax(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    first, last = _stretch(allowed & (mean >= mean[place] - FLAT), place)
    values = {}
    for name in weights:
        ends = np.quantile(draws[name][:, place], [0.025, 0.975])
        values[name] = float(parts[name][place]), float(ends[0]), float(ends[1])
    span = np.quantile(SHARES[places], [0.025, 0.975])
    return Optimum(
        setting,
        path,
        float(SHARES[place]),
        (float(span[0]), float(span[1])),
        (float(SHARES[first]), float(SHARES[last])),
        mean,
        low,
        high,
        values,
        (),
        measured,
    )


def preferred(trial: Trial, weights: Mapping[str, float]) -> float:
    """The weighted mean of a trial's metrics."""
    return sum(weight * trial.metrics[name] for name, weight in weights.items()) / sum(weights.values())


def _measured(trials: Sequence[Trial], weights: Mapping[str, float], path: Path) -> Measurement | None:
    by_arm: dict[str, dict[int, float]] = {}
    for trial in trials:
        amounts = trial.amounts
        if amounts.total <= path.total(amounts.share) * _SLACK and weights.keys() <= trial.metrics.keys():
            by_arm.setdefault(trial.name, {})[trial.seed] = preferred(trial, weights)
    ranked = sorted(by_arm, key=lambda name: -float(np.mean(list(by_arm[name].values()))))
    if not ranked:
        return None
    first, second = by_arm[ranked[0]], by_arm[ranked[1]] if len(ranked) > 1 else {}
    both = sorted(first.keys() & second.keys())
    lead = None
    differences = [first[seed] - second[seed] for seed in both]
    if len(both) > 1 and np.ptp(differences) > _EQUAL:
        lead = (float(np.mean(differences)), *t_interval(differences))
    return Measurement(ranked[0], float(np.mean(list(first.values()))), lead, ranked[1] if second else "")


def _stretch(wanted: np.ndarray, place: int) -> tuple[int, int]:
    """First and last place of the unbroken run of `wanted`, (n,), that holds a place."""
    others = np.flatnonzero(~wanted)
    before, after = others[others < place], others[others > place]
    return int(before.max(initial=-1)) + 1, int(after.min(initial=len(wanted))) - 1


def within(cells: set[tuple[float, float]], x: float, y: float) -> bool:
    """Whether a mix lies in the convex hull of measured ones, its edge included."""
    points = sorted(cells)
    scale = max(max(map(abs, point)) for point in points) or 1.0
    hull = [*_half(points), *_half(points[::-1])]
    if len(set(hull)) < 3:
        (a, b), (c, d) = points[0], points[-1]
        off = abs(_turn((a, b), (c, d), (x, y))) <= 1e-2 * scale * max(abs(c - a), abs(d - b), 1e-9)
        return off and min(a, c) - 1e-9 <= x <= max(a, c) + 1e-9 and min(b, d) - 1e-9 <= y <= max(b, d) + 1e-9
    corners = list(dict.fromkeys(hull))
    edges = zip(corners, [*corners[1:], corners[0]], strict=True)
    return all(_turn(start, end, (x, y)) >= -1e-6 * scale**2 for start, end in edges)


def _half(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lower half of a convex hull, counter-clockwise (Andrew's monotone chain)."""
    chain: list[tuple[float, float]] = []
    for point in points:
        while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
            chain.pop()
        chain.append(point)
    return chain[:-1]


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    """Twice the area of a triangle, positive if its corners go counter-clockwise."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
