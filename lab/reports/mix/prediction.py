"""The best mix as a picture: preference and metrics along all mixes of the budget."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.reports.look import COLOURS, INK, PALE
from lab.reports.mix.optimum import SHARES, Optimum, preferred
from lab.reports.mix.study import Study


def best(study: Study) -> Figure | None:
    """Preference and its metrics along the mixes of the budget: a panel a setting with laws."""
    shown = [one for one in study.optima if one.known]
    if not shown:
        return None
    figure, row = plt.subplots(
        1, len(shown), figsize=(6.4 * len(shown), 3.8), squeeze=False, sharey=True, layout="constrained"
    )
    for axes, one in zip(row[0], shown, strict=True):
        _along(axes, study, one)
        axes.set_title(_titled(study, one.setting))
    row[0][0].set_ylabel("%")
    row[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def _along(axes: Axes, study: Study, one: Optimum) -> None:
    covered = one.path.covered if one.path.covered.any() else np.ones(len(SHARES), dtype=bool)
    shares = SHARES[covered] * 100
    axes.axvspan(one.interval[0] * 100, one.interval[1] * 100, color=PALE, alpha=0.4, linewidth=0)
    axes.axvline(one.share * 100, color=INK, linewidth=1.2)
    measured = [
        trial
        for trial in study.of(one.setting)
        if abs(trial.amounts.total / one.path.total(trial.amounts.share) - 1) < 0.02
    ]
    places = [trial.amounts.share * 100 for trial in measured]
    for number, name in enumerate(study.weights):
        found = study.fits[one.setting, name]
        low, high = found.band(one.path.understanding[covered], one.path.generation[covered])
        colour = COLOURS[number % len(COLOURS)]
        axes.fill_between(shares, low * 100, high * 100, color=colour, alpha=0.15, linewidth=0)
        values = found.value(one.path.understanding[covered], one.path.generation[covered]) * 100
        axes.plot(shares, values, color=colour, linewidth=1.4, label=found.measure.label)
        points = [trial.metrics[name] * 100 for trial in measured]
        axes.scatter(places, points, color=colour, s=22, zorder=3)
    axes.fill_between(
        shares, one.low[covered] * 100, one.high[covered] * 100, color=INK, alpha=0.12, linewidth=0
    )
    axes.plot(shares, one.mean[covered] * 100, color=INK, linewidth=2.2, label="preferred mean")
    points = [preferred(trial, study.weights) * 100 for trial in measured]
    axes.scatter(places, points, color=INK, s=22, zorder=3)
    axes.set_xlabel("share of understanding in the mix (%)")
    axes.set_xlim(-2, 102)
    axes.grid(axis="y")


def _titled(study: Study, setting: str) -> str:
    return study.budget.title + (f", {setting}" if setting else "")
