"""Everything that a comparison of an ablation says, worked out once and shown in several forms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from lab.reports.ablation.cost import Cost, cost_of
from lab.reports.ablation.effects import CELLS, TIMES, Effect, Model, effects, unrepeated
from lab.reports.ablation.estimates import SEEDS, Estimate, Mean, Measured
from lab.reports.ablation.results import Results
from lab.reports.ablation.verdict import Verdict, judge
from lab.reports.arms import pareto_front
from lab.reports.measures import GENERATION, MEASURES, UNDERSTANDING, Measure, measure_of


@dataclass(frozen=True)
class Column:
    """One metric of the main table.

    Attributes:
        measure: Which.
        measured: Its values.
        means: Arm -> mean with interval.
        winner: The best arm, if its lead is significant.
        effects: Of the factors.
        model: What the design tells apart.
    """

    measure: Measure
    measured: Measured
    means: Mapping[str, Mean]
    winner: str | None
    effects: tuple[Effect, ...]
    model: Model

    @cached_property
    def differences(self) -> dict[tuple[str, str], Estimate]:
        """All pairs of arms: the later less the earlier."""
        found = {}
        for first, second in combinations(self.means, 2):
            if (estimate := self.measured.difference(second, first)) is not None:
                found[second, first] = estimate
        return found


@dataclass(frozen=True)
class Point:
    """An arm on the front: its means by metric."""

    name: str
    means: Mapping[str, float]

    def value(self, measure: Measure) -> float | None:
        return self.means.get(measure.name)


@dataclass(frozen=True)
class Analysis:
    """A whole comparison.

    Attributes:
        results: What was read.
        columns: Of the main table.
        verdict: On the claim; None without one.
        cost: What was spent.
        front: Arms that no other arm beats in both understanding and generation.
    """

    results: Results
    columns: tuple[Column, ...]
    verdict: Verdict | None
    cost: Cost
    front: tuple[str, ...]

    @property
    def arms(self) -> list[str]:
        return [arm.name for arm in self.results.arms]

    @property
    def varied(self) -> dict[str, list[str]]:
        """Factors that take several levels among the evaluated arms, and these."""
        taken = {
            factor: [
                level for level in levels if any(a.levels.get(factor) == level for a in self.results.arms)
            ]
            for factor, levels in self.results.design.factors.items()
        }
        return {factor: levels for factor, levels in taken.items() if len(levels) > 1}

    def column(self, name: str) -> Column | None:
        """Of a metric, if the main table has it."""
        return next((column for column in self.columns if column.measure.name == name), None)

    @property
    def leading(self) -> list[Column]:
        """The columns that pictures show: that of the claim, then understanding and generation."""
        names = [self.verdict.measure.name] if self.verdict else []
        names += [UNDERSTANDING.name, GENERATION.name]
        found = [column for name in dict.fromkeys(names) if (column := self.column(name)) is not None]
        return found or list(self.columns[:2])

    def chance(self, name: str) -> float | None:
        """What guessing gives, on average over arms and seeds."""
        levels = [cell.chance[name] for cell in self.results.cells.values() if name in cell.chance]
        return sum(levels) / len(levels) if levels else None


def analyse(results: Results) -> Analysis:
    """Works everything out.

    Raises:
        LabError: The claim cannot be judged for want of its metric or of matching arms.
    """
    verdict = judge(results)
    names = list(results.design.metrics) or [m.name for m in MEASURES]
    names += [verdict.measure.name] if verdict else []
    known = [name for name in dict.fromkeys(names) if name in results.metrics]
    columns = tuple(_column(results, measure_of(name)) for name in known)
    points = []
    for arm in results.arms:
        means = {
            measure.name: mean.value
            for measure in (UNDERSTANDING, GENERATION)
            if measure.name in results.metrics
            and (mean := Measured(results, measure).mean(arm.name)) is not None
        }
        points.append(Point(arm.name, means))
    front = tuple(point.name for point in pareto_front(points, UNDERSTANDING, GENERATION))
    return Analysis(results, columns, verdict, cost_of(results), front)


def _column(results: Results, measure: Measure) -> Column:
    measured = Measured(results, measure)
    means = {arm: mean for arm in measured.arms if (mean := measured.mean(arm)) is not None}
    found, model = effects(measured, results.design.factors, results.arms)
    return Column(measure, measured, means, measured.winner(), tuple(found), model)


def notes(analysis: Analysis) -> list[str]:
    """What a reader must know beside the table, a sentence or two each."""
    results = analysis.results
    lines = [_intervals(analysis), _bold(analysis)]
    lines += [f"Not there yet: {_some(results.missing)}."] if results.missing else []
    absent = [name for name in results.design.metrics if name not in results.metrics]
    lines += [f"No arm has {', '.join(absent)}."] if absent else []
    lines += list(analysis.cost.remarks)
    if once := unrepeated(results.arms, results.seeds):
        lines.append(
            f"Trained once for several seeds: {_some(once)}. Chance in that training is in no interval here."
        )
    if analysis.front:
        lines.append(f"On the Pareto front of understanding and generation: {', '.join(analysis.front)}.")
    guessing = [
        f"{column.measure.label} {column.measure.show(level)}%"
        for column in analysis.columns
        if (level := analysis.chance(column.measure.name)) is not None
    ]
    lines += [f"Chance, always the most frequent answer: {', '.join(guessing)}."] if guessing else []
    if judge_rates := _judge(results):
        lines.append(f"The judge itself, on real held-out images: {judge_rates}.")
    return lines


def effect_notes(analysis: Analysis) -> list[str]:
    """How the effects were estimated, and what the design cannot tell apart."""
    found = [effect for column in analysis.columns for effect in column.effects]
    if not found:
        return ["No factor takes two levels among the evaluated arms: there are no effects to tell."]
    lines = [
        "An effect is the change from a factor's first level, averaged over the levels of the other factors; "
        "of an interaction, how much that change itself differs between levels of the other factor."
    ]
    if len(analysis.results.seeds) < 2:
        lines.append("One seed: the intervals are over samples, and no effect is called significant.")
    else:
        by_seed = sorted({effect.term for effect in found if effect.over == SEEDS})
        if any(effect.over == CELLS for effect in found):
            lines.append("Intervals come from least squares over arms and seeds, with seeds as blocks.")
        if by_seed:
            lines.append(
                f"{', '.join(by_seed)}: judged over seeds alone, since arms of one seed share the training "
                "of stages that these factors change, or too few arms are left to judge them by."
            )
        lines.append(
            "p is the larger of that of the t test and that of the bootstrap over seeds and samples; Holm's "
            "correction covers all effects on one metric."
        )
    model = next(column.model for column in analysis.columns if column.effects)
    if analysis.results.design.aliases:
        lines.append(
            f"The design cannot tell apart: {'; '.join(analysis.results.design.aliases)}. Sums are shown."
        )
    else:
        for term, others in model.aliases.items():
            lines.append(
                f"The arms cannot tell {TIMES.join(term)} from {', '.join(others)}: their sum is shown."
            )
    if model.inseparable:
        lines.append(
            f"Not estimated, and taken to be absent: {', '.join(model.inseparable)} "
            "(combinations are missing)."
        )
    return lines


def _intervals(analysis: Analysis) -> str:
    kinds = {mean.over for column in analysis.columns for mean in column.means.values()}
    seeds = ", ".join(map(str, analysis.results.seeds))
    line = "± is half of a 95% interval"
    if SEEDS in kinds:
        line += f" over seeds {seeds} (Student's t)"
    marks = {
        "samples": "* over samples (bootstrap), where there is one seed or seeds coincide",
        "wilson": "° over samples (Wilson), where values of 0 or 100% show no spread",
    }
    said = [text for kind, text in marks.items() if kind in kinds]
    return f"{line}{'; ' if SEEDS in kinds and said else ': ' if said else ''}{'; '.join(said)}."


def _bold(analysis: Analysis) -> str:
    if len(analysis.results.seeds) < 2:
        return "No value is marked as best: one seed does not tell arms apart from chance in training."
    return (
        "Marked as best only where the paired difference to the runner-up is significant at 5%, by Student's "
        "t over seeds and, with per-sample scores, by a bootstrap over seeds and samples."
    )


def _judge(results: Results) -> str:
    rates: dict[str, list[float]] = {}
    for cell in results.cells.values():
        for name, value in cell.metrics.items():
            if name.startswith("judge/") and 0 < value <= 1:
                rates.setdefault(name.removeprefix("judge/"), []).append(value)
    return ", ".join(f"{name} {sum(values) / len(values):.1%}" for name, values in rates.items())


def _some(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def probability(p: float) -> str:
    """A p value as a table shows it."""
    return "-" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"
