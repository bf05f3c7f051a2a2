"""All that a report says of data mixes, worked out: laws, synergies and the best mix of every setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lab.reports.ablation.estimates import Measured
from lab.reports.measures import Measure
from lab.reports.mix.fits import Fit, fit
from lab.reports.mix.optimum import (
    Budget,
    Optimum,
    best_mix,
    read_budget,
    read_preference,
    seconds_by_sample,
    usual_budget,
)
from lab.reports.mix.synergy import Synergy, synergies
from lab.reports.mix.trials import GROUPS, Trial, settings_of


@dataclass(frozen=True)
class Wish:
    """What a person asks of the best mix, as written on the command line; empty for the usual."""

    prefer: tuple[str, ...] = ()
    budget: str = ""


@dataclass(frozen=True)
class Study:
    """Mixes and what came of them.

    Attributes:
        name: Of the ablation or sweep.
        trials: All trainings.
        measures: Metrics of understanding and generation, in the order to show.
        fits: (setting, metric) -> its law.
        synergies: Of every metric and setting with arms to compare.
        weights: Metric -> weight in what is preferred.
        budget: Of the best mix.
        optima: One a setting.
    """

    name: str
    trials: tuple[Trial, ...]
    measures: tuple[Measure, ...]
    fits: Mapping[tuple[str, str], Fit]
    synergies: tuple[Synergy, ...]
    weights: Mapping[str, float]
    budget: Budget
    optima: tuple[Optimum, ...]

    @cached_property
    def settings(self) -> list[str]:
        return settings_of(self.trials)

    @cached_property
    def leading(self) -> dict[str, Measure]:
        """Group -> the metric that stands for it, as far as there is one."""
        return leading_of(self.measures)

    def of(self, setting: str) -> list[Trial]:
        """The trials of one setting."""
        return [trial for trial in self.trials if trial.setting == setting]

    def fit(self, setting: str, metric: str) -> Fit | None:
        return self.fits.get((setting, metric))

    def seconds(self, setting: str) -> tuple[float, float, float] | None:
        """Seconds of a training without samples, and of each sample of understanding and generation."""
        return seconds_by_sample(self.of(setting))


def study_mixes(
    name: str,
    trials: Sequence[Trial],
    measures: Sequence[Measure],
    measured: Sequence[Measured],
    wish: Wish,
) -> Study:
    """Works everything out.

    Args:
        name: Of the ablation or sweep.
        trials: That vary the mix.
        measures: To look at; those of understanding and generation count.
        measured: The same metrics arm by arm, for differences over seeds; a sweep has none.
        wish: Preference and budget.

    Raises:
        LabError: The wish cannot be read.
    """
    shown = tuple(one for one in measures if one.group in GROUPS)
    settings = settings_of(trials)
    fits = {
        (setting, measure.name): found
        for setting in settings
        for measure in shown
        if (found := fit(trials, measure, setting)) is not None
    }
    everywhere = [m.name for m in shown if m.rate and all(m.name in trial.metrics for trial in trials)]
    stands = {group: one for group, one in leading_of(shown).items() if one.name in everywhere}
    weights = read_preference(wish.prefer, stands, everywhere) if stands or wish.prefer else {}
    budget = read_budget(wish.budget) if wish.budget else usual_budget(trials)
    optima = [
        best_mix(
            {name: one for (where, name), one in fits.items() if where == setting},
            [trial for trial in trials if trial.setting == setting],
            weights,
            budget,
            setting,
        )
        for setting in settings
        if weights
    ]
    compared = [one for one in measured if one.measure.group in GROUPS]
    effects = tuple(synergies(compared, trials, settings))
    return Study(name, tuple(trials), shown, fits, effects, weights, budget, tuple(optima))


def leading_of(measures: Sequence[Measure]) -> dict[str, Measure]:
    """Group -> the first rate of it: the one that stands for the group in a preference and on a front."""
    found: dict[str, Measure] = {}
    for measure in measures:
        if measure.rate:
            found.setdefault(measure.group, measure)
    return {group: found[group] for group in GROUPS if group in found}
