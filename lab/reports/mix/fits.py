"""Laws of an ablation's or a sweep's metrics: each as an error that falls with samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lab.evaluation.curves import Array
from lab.evaluation.laws import Law, Observations, fit_law
from lab.reports.measures import Measure
from lab.reports.mix.trials import GROUPS, Trial


@dataclass(frozen=True)
class Fit:
    """A metric's law in one setting.

    Attributes:
        measure: The metric.
        setting: What arms are beside their mix.
        law: Of the metric's error: 1 - rate, or the metric itself where less is better.
    """

    measure: Measure
    setting: str
    law: Law

    @property
    def group(self) -> str:
        return self.measure.group

    @property
    def name(self) -> str:
        """`VQA, linear`."""
        return named(self.measure, self.setting)

    @property
    def known(self) -> bool:
        return not self.law.refusal

    def value(self, understanding: Array, generation: Array) -> Array:
        """The metric that the law predicts."""
        return self._metric(self.law.error(*self._sides(understanding, generation)))

    def drawn(self, understanding: Array, generation: Array) -> Array:
        """The same of every law of the bootstrap, (R, ...)."""
        return self._metric(self.law.drawn(*self._sides(understanding, generation)))

    def band(self, understanding: Array, generation: Array) -> tuple[Array, Array]:
        """95% confidence band of the predicted metric, pointwise."""
        low, high = np.quantile(self.drawn(understanding, generation), [0.025, 0.975], axis=0)
        return low, high

    def _sides(self, understanding: Array, generation: Array) -> tuple[Array, Array]:
        """Samples of the metric's own task, and of the other."""
        return (understanding, generation) if self.group == GROUPS[0] else (generation, understanding)

    def _metric(self, error: Array) -> Array:
        return 1 - error if self.measure.rate else error


def named(measure: Measure, setting: str) -> str:
    """A metric's label, with the setting where there are several."""
    return f"{measure.label}, {setting}" if setting else measure.label


def fit(trials: Sequence[Trial], measure: Measure, setting: str) -> Fit | None:
    """Fits a metric's law to the trials of one setting; None where no trial has the metric.

    Args:
        trials: Of all settings.
        measure: Of understanding or generation.
        setting: Which trials.
    """
    having = [trial for trial in trials if trial.setting == setting and measure.name in trial.metrics]
    if not having or measure.group not in GROUPS:
        return None
    values = np.array([trial.metrics[measure.name] for trial in having])
    if not measure.rate and measure.rising:
        why = "no law: the metric has no upper end from which an error could be counted"
        return Fit(
            measure, setting, Law(_seen(having, measure, values, math.inf), {}, "", why, _NO_DRAWS, None)
        )
    error, most = (1 - values, 1.0) if measure.rate else (values, math.inf)
    return Fit(measure, setting, fit_law(_seen(having, measure, error, most)))


_NO_DRAWS = np.zeros((0, 5))


def _seen(trials: Sequence[Trial], measure: Measure, error: Array, most: float) -> Observations:
    return Observations(
        own=np.array([trial.amounts.of(measure.group) for trial in trials]),
        other=np.array([trial.amounts.other(measure.group) for trial in trials]),
        error=error,
        seed=np.array([trial.seed for trial in trials]),
        most=most,
    )
