"""The comparison's numbers for programs: all as CSV and as JSON, the main ones for `dvc metrics show`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from typing import Any

from lab.reports.ablation.analysis import Analysis, Column, effect_notes, notes
from lab.reports.ablation.estimates import Ends, Estimate, Measured
from lab.reports.measures import measure_of

_FIELDS = (
    "kind",  # value, mean, difference, effect, claim or cost
    "metric",
    "arm",
    "against",  # the other arm of a difference, the factors of an effect, the node of a cost
    "change",  # the levels of an effect
    "seed",
    "value",
    "low",
    "high",
    "interval",  # over seeds, samples, "arms and seeds", wilson or none
    "joint_low",
    "joint_high",
    "p",
    "p_holm",
    "df",
    "seeds",
    "samples",
)


def comma_separated(analysis: Analysis) -> str:
    """Every number in long form: one line each, in the metrics' own units."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in _rows(analysis):
        writer.writerow({key: _plain(value) for key, value in row.items()})
    return text.getvalue()


def _rows(analysis: Analysis) -> Iterable[dict[str, Any]]:
    results = analysis.results
    for (arm, seed), cell in results.cells.items():
        for name, value in cell.metrics.items():
            low, high = cell.intervals.get(name, ("", ""))
            over = "samples" if name in cell.intervals else ""
            yield {
                "kind": "value", "metric": name, "arm": arm, "seed": seed, "value": value,
                "low": low, "high": high, "interval": over,
            }  # fmt: skip
    for name in results.metrics:
        column = analysis.column(name)
        measured = column.measured if column else Measured(results, measure_of(name))
        for arm in measured.arms:
            if (mean := measured.mean(arm)) is not None:
                yield {
                    "kind": "mean", "metric": name, "arm": arm, "value": mean.value,
                    "low": mean.low, "high": mean.high, "interval": mean.over,
                    "seeds": mean.seeds, "samples": measured.samples,
                }  # fmt: skip
    for column in analysis.columns:
        for (arm, other), estimate in column.differences.items():
            yield {
                "kind": "difference",
                "metric": column.measure.name,
                "arm": arm,
                "against": other,
            } | _estimate(estimate)
        for effect in column.effects:
            yield {
                "kind": "effect", "metric": column.measure.name, "against": effect.term,
                "change": effect.change, "value": effect.value, **_ends("", effect.interval),
                **_ends("joint_", effect.joint), "interval": effect.over, "p": effect.p,
                "p_holm": effect.holm, "df": effect.freedom, "seeds": effect.seeds,
            }  # fmt: skip
    if analysis.verdict and analysis.verdict.estimate:
        claim = {"kind": "claim", "metric": analysis.verdict.measure.name, "change": analysis.verdict.word}
        yield claim | _estimate(analysis.verdict.estimate)
    for arm, spent in analysis.cost.arms.items():
        for unit, amount in spent.items():
            yield {"kind": "cost", "metric": unit, "arm": arm, "value": amount}
    for node, spent in results.spent.items():
        for unit, amount in spent.items():
            yield {"kind": "cost", "metric": unit, "against": node, "value": amount}


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": estimate.value,
        **_ends("", estimate.interval),
        **_ends("joint_", estimate.joint),
        "interval": estimate.over,
        "p": estimate.p,
        "df": len(estimate.by_seed) - 1,
        "seeds": len(estimate.by_seed),
        "samples": estimate.samples,
    }


def _ends(prefix: str, ends: Ends | None) -> dict[str, Any]:
    return {f"{prefix}low": ends[0], f"{prefix}high": ends[1]} if ends else {}


def _plain(value: Any) -> Any:
    """Twelve digits, below which machines differ in rounding; empty for what there is not."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.12g}"
    return value


def summary(analysis: Analysis) -> dict[str, Any]:
    """The main numbers, as `dvc metrics show` lists them."""
    found: dict[str, Any] = {}
    if verdict := analysis.verdict:
        found["claim"] = {"verdict": verdict.word, "metric": verdict.measure.name}
        if verdict.estimate:
            ends = verdict.ends
            found["claim"] |= {"difference": verdict.estimate.value}
            found["claim"] |= {"low": ends[0], "high": ends[1]} if ends else {}
    return found | {
        "seeds": len(analysis.results.seeds),
        "missing": len(analysis.results.missing),
        "front": list(analysis.front),
        "arms": {
            arm: {c.measure.name: c.means[arm].value for c in analysis.columns if arm in c.means}
            for arm in analysis.arms
        },
    }


def everything(analysis: Analysis) -> dict[str, Any]:
    """All numbers with their intervals, for whoever wants to plot them anew."""
    design, verdict, cost = analysis.results.design, analysis.verdict, analysis.cost
    content: dict[str, Any] = {
        "name": design.name,
        "seeds": list(analysis.results.seeds),
        "missing": list(analysis.results.missing),
        "notes": [*notes(analysis), *effect_notes(analysis)],
        "factors": {factor: list(levels) for factor, levels in design.factors.items()},
        "arms": {arm.name: dict(arm.levels) for arm in analysis.results.arms},
        "front": list(analysis.front),
        "claim": None,
        "metrics": {column.measure.name: _column(column) for column in analysis.columns},
        "cost": {
            "arms": {arm: dict(spent) for arm, spent in cost.arms.items()},
            "budget": dict(cost.budget),
            "shared": {one.node: {"uses": one.uses, **one.spent} for one in cost.shared},
            "alone": dict(cost.alone),
            "distinct": dict(cost.distinct),
            "remarks": list(cost.remarks),
        },
    }
    if verdict:
        content["claim"] = {
            "text": verdict.claim.text,
            "metric": verdict.measure.name,
            "higher": dict(verdict.claim.higher),
            "lower": dict(verdict.claim.lower),
            "margin": verdict.claim.margin,
            "verdict": verdict.word,
            "reason": verdict.reason,
            "plan": verdict.plan,
            "estimate": _detailed(verdict.estimate) if verdict.estimate else None,
            "seeds_needed": vars(verdict.seeds) if verdict.seeds else None,
        }
    return content


def _column(column: Column) -> dict[str, Any]:
    return {
        "best": column.winner,
        "values": {
            arm: {
                str(seed): float(value)
                for seed, value in zip(column.measured.seeds, row, strict=True)
                if not math.isnan(value)
            }
            for arm, row in zip(column.measured.arms, column.measured.values, strict=True)
        },
        "means": {arm: vars(mean) for arm, mean in column.means.items()},
        "differences": {
            f"{first} - {second}": _detailed(estimate)
            for (first, second), estimate in column.differences.items()
        },
        "effects": [
            {
                **{key: _number(value) for key, value in vars(effect).items()},
                "term": effect.term,
                "change": effect.change,
            }
            for effect in column.effects
        ],
    }


def _detailed(estimate: Estimate) -> dict[str, Any]:
    found = {key: _number(value) for key, value in vars(estimate).items()}
    return found | {"by_seed": {str(seed): value for seed, value in estimate.by_seed.items()}}


def _number(value: Any) -> Any:
    """JSON knows no nan."""
    return None if isinstance(value, float) and math.isnan(value) else value
