"""Does one task's data help the other? The change of a metric at fixed samples of its own task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lab.evaluation.statistics import holm
from lab.reports.ablation.estimates import LEVEL, Estimate, Measured
from lab.reports.measures import Measure
from lab.reports.mix.trials import Amounts, Trial

HELPS, HURTS, UNDECIDED = "helps", "hurts", "undecided"


@dataclass(frozen=True)
class Synergy:
    """What more of the other task's samples does to a metric.

    Attributes:
        measure: The metric.
        setting: What the arms are beside their mix.
        few, many: Samples of the other task that are compared.
        by_own: Samples of the own task -> change of the metric from `few` to `many` of the other.
        overall: Mean of these changes.
        interaction: Change at the most own samples less that at the fewest; None with one amount.
        p: Of the overall change, after Holm's correction over all metrics of the page.
    """

    measure: Measure
    setting: str
    few: float
    many: float
    by_own: Mapping[float, Estimate]
    overall: Estimate
    interaction: Estimate | None
    p: float

    @property
    def word(self) -> str:
        """helps, hurts or undecided."""
        if len(self.overall.by_seed) < 2 or math.isnan(self.p) or self.p >= LEVEL:
            return UNDECIDED
        return HELPS if (self.overall.value > 0) == self.measure.rising else HURTS


def synergies(
    measured: Sequence[Measured], trials: Sequence[Trial], settings: Sequence[str]
) -> list[Synergy]:
    """The synergy of every metric in every setting that has arms to compare.

    Args:
        measured: Metrics of understanding and generation.
        trials: Of the ablation.
        settings: In the order to show.
    """
    arms = {trial.name: trial for trial in trials}
    found = [
        one
        for setting in settings
        for metric in measured
        if (one := _synergy(metric, {n: t.amounts for n, t in arms.items() if t.setting == setting}, setting))
    ]
    adjusted = holm([one.overall.p for one in found])
    return [replace(one, p=p) for one, p in zip(found, adjusted, strict=True)]


def _synergy(measured: Measured, arms: Mapping[str, Amounts], setting: str) -> Synergy | None:
    group = measured.measure.group
    places = {
        (amounts.of(group), amounts.other(group)): measured.arms.index(name)
        for name, amounts in arms.items()
        if not np.isnan(measured.values[measured.arms.index(name)]).all()
    }
    pair = _compared(list(places))
    if pair is None:
        return None
    few, many = pair
    pairs = {
        own: (places[own, few], places[own, many])
        for own in sorted({own for own, _ in places if own > 0})
        if (own, few) in places and (own, many) in places
    }
    changes = {own: _weights(measured, [pair]) for own, pair in pairs.items()}
    by_own = {own: one for own, weights in changes.items() if (one := measured.estimate(weights)) is not None}
    overall = measured.estimate(_weights(measured, list(pairs.values())))
    if overall is None:
        return None
    interaction = None
    if len(changes) > 1:
        interaction = measured.estimate(changes[max(changes)] - changes[min(changes)])
    return Synergy(measured.measure, setting, few, many, by_own, overall, interaction, overall.p)


def _compared(cells: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Amounts of the other task to compare: those that most amounts of the own share, the widest apart."""
    own = {amount for amount, _ in cells if amount > 0}
    others = sorted({other for _, other in cells})
    best: tuple[tuple[int, float], tuple[float, float] | None] = ((0, 0.0), None)
    for few in others:
        for many in others:
            shared = sum((amount, few) in cells and (amount, many) in cells for amount in own)
            if few < many and shared and (shared, many - few) > best[0]:
                best = (shared, many - few), (few, many)
    return best[1]


def _weights(measured: Measured, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    weights = np.zeros(len(measured.arms))
    for few, many in pairs:
        weights[few] -= 1 / len(pairs)
        weights[many] += 1 / len(pairs)
    return weights
