"""What an ablation spent: each arm as if it ran alone, what arms shared, and whether the budget was kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lab.reports.ablation.design import UNITS
from lab.reports.ablation.results import Results

TOLERANCE = 0.01  # share by which spent budgets may differ unremarked


@dataclass(frozen=True)
class SharedNode:
    """A node that trained more than one arm: its cost, and how many arms and seeds used it."""

    node: str
    uses: int
    spent: Mapping[str, float]


@dataclass(frozen=True)
class Cost:
    """Amounts by unit: seconds, samples, tokens, steps, flops, those that were recorded.

    Attributes:
        arms: Arm -> mean over seeds of all that trained it, shared nodes in full.
        budget: Arm -> mean over seeds of the budget's unit in the budget's stages; empty without a budget.
        shared: Nodes that trained several arms, the dearest first.
        alone: Sum over arms and seeds, each as if it ran alone.
        distinct: Sum over nodes, each once: what was spent.
        remarks: Where budgets differ, in sentences; empty where they are kept.
    """

    arms: Mapping[str, Mapping[str, float]]
    budget: Mapping[str, float]
    shared: tuple[SharedNode, ...]
    alone: Mapping[str, float]
    distinct: Mapping[str, float]
    remarks: tuple[str, ...]

    @property
    def units(self) -> list[str]:
        """Units that anything recorded, in the usual order."""
        order = ("seconds", *(unit for unit in UNITS if unit != "seconds"))
        return [unit for unit in order if unit in self.distinct]

    def saved(self, unit: str) -> float:
        """Share of the cost of arms run alone that sharing saved."""
        return 1 - self.distinct[unit] / self.alone[unit] if self.alone.get(unit) else 0.0


def cost_of(results: Results) -> Cost:
    """Adds up what the nodes of the evaluated arms recorded."""
    arms: dict[str, dict[str, float]] = {}
    alone: dict[str, float] = {}
    uses: dict[str, int] = {}
    for arm in results.arms:
        seeds = [seed for seed in arm.evaluate if (arm.name, seed) in results.cells]
        totals: dict[str, float] = {}
        for seed in seeds:
            for node in arm.cost.get(seed, ()):
                uses[node] = uses.get(node, 0) + 1
                for unit, amount in results.spent.get(node, {}).items():
                    totals[unit] = totals.get(unit, 0.0) + amount
        for unit, amount in totals.items():
            alone[unit] = alone.get(unit, 0.0) + amount
        arms[arm.name] = {unit: amount / len(seeds) for unit, amount in totals.items()}
    distinct: dict[str, float] = {}
    for node in uses:
        for unit, amount in results.spent.get(node, {}).items():
            distinct[unit] = distinct.get(unit, 0.0) + amount
    shared = [
        SharedNode(n, count, results.spent[n])
        for n, count in uses.items()
        if count > 1 and n in results.spent
    ]
    shared.sort(key=lambda one: (-one.spent.get("seconds", 0.0) * (one.uses - 1), one.node))
    budget, remarks = _budget(results)
    return Cost(arms, budget, tuple(shared), alone, distinct, tuple(remarks))


def _budget(results: Results) -> tuple[dict[str, float], list[str]]:
    declared = results.design.budget
    if declared is None:
        return {}, []
    spent: dict[str, float] = {}
    off: dict[str, float] = {}  # node -> share of the declared amount by which it is off
    for arm in results.arms:
        amounts = []
        for seed in arm.evaluate:
            if (arm.name, seed) not in results.cells:
                continue
            total = 0.0
            for node in arm.cost.get(seed, ()):
                amount = results.spent.get(node, {}).get(declared.unit)
                if node.partition("@")[0] in declared.stages and amount is not None:
                    total += amount
                    off[node] = amount / declared.amount - 1
            amounts.append(total)
        if any(amounts):  # else nothing of it is recorded
            spent[arm.name] = sum(amounts) / len(amounts)
    remarks = []
    if spent and (most := max(spent.values())) > (1 + TOLERANCE) * (least := min(spent.values())):
        low, high = min(spent, key=lambda arm: spent[arm]), max(spent, key=lambda arm: spent[arm])
        remarks.append(
            f"Arms spent different budgets: from {amount_of(least)} {declared.unit} ({low}) to "
            f"{amount_of(most)} ({high}), {most / least - 1:.0%} more. Their differences are not those of "
            "the factors alone."
        )
    beyond = {node: share for node, share in off.items() if abs(share) > TOLERANCE}
    if beyond:
        worst = max(beyond, key=lambda node: abs(beyond[node]))
        others = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        remarks.append(
            f"Off the declared {amount_of(declared.amount)} {declared.unit} by more than {TOLERANCE:.0%}: "
            f"{worst} by {beyond[worst]:+.0%}{others}."
        )
    return spent, remarks


def amount_of(value: float) -> str:
    """An amount in four digits or so: 6,400, 12.3M, 4.56T."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.3g}"
