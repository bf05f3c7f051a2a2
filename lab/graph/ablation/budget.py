"""What training may cost: read, and written into the parameters of arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from lab.config import StagesParams
from lab.errors import nearest
from lab.graph.ablation.declaration import UNITS, Budget
from lab.graph.levels import unknown_keys
from lab.graph.stages import UNIFIED

_TRAINED = tuple(one.name for one in fields(StagesParams) if one.name not in ("evaluate", "features"))


def budget_of(value: object, mistakes: list[str]) -> Budget | None:
    """The budget as declared; without stages where they are not stated."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        mistakes.append(f"budget: expected a mapping of a unit to an amount, not {value!r}")
        return None
    mistakes += unknown_keys(value, (*UNITS, "stages"), "budget.")
    units = [unit for unit in UNITS if unit in value]
    if len(units) != 1:
        mistakes.append(f"budget: expected one of {', '.join(UNITS)}, not {' and '.join(units) or 'none'}")
        return None
    stages = value.get("stages", [])
    if not isinstance(stages, list) or ("stages" in value and not stages):
        mistakes.append(f"budget.stages: expected a list of stages, not {stages!r}")
        stages = []
    unit, amount = units[0], value[units[0]]
    counted = unit in ("samples", "steps", "tokens")
    number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
    if not number or not 0 < amount < math.inf or (counted and amount != int(amount)):
        kind = "a whole number" if counted else "a number"
        mistakes.append(f"budget.{unit}: expected {kind} above 0, not {amount!r}")
        return None
    return Budget(unit, float(amount), tuple(map(str, stages)))


def budgeted(tree: Mapping[str, Any], budget: Budget | None) -> dict[str, dict[str, Any]]:
    """Stages of an arm that have a budget -> their sections."""
    if budget is None or not isinstance(tree["recipe"], list):
        return {}
    sections = {name: tree["stages"].get(name) for name in budget.stages or UNIFIED if name in tree["recipe"]}
    return {
        name: section for name, section in sections.items() if name in _TRAINED and isinstance(section, dict)
    }


def limit(tree: Mapping[str, Any], budget: Budget | None) -> set[int]:
    """Writes the budget into an arm's tree; gives the batch sizes that samples are to be divided by."""
    batches = set()
    for section in budgeted(tree, budget).values():
        assert budget is not None
        if budget.unit == "steps":
            section["steps"] = int(budget.amount)
        elif budget.unit == "samples":
            batch = section["batch_size"]
            if isinstance(batch, int) and batch > 0:
                batches.add(batch)
                section["steps"] = max(1, int(budget.amount) // batch)
        else:
            section["budget"] = {budget.unit: budget.amount}
    return batches


def whole_batches(amount: int, batches: set[int]) -> list[str]:
    """Complains of samples that are no whole number of batches."""
    common = math.lcm(*batches)
    low = amount // common * common
    if low == amount:
        return []
    near = " and ".join(str(number) for number in (low, low + common) if number)
    sizes = " and ".join(str(batch) for batch in sorted(batches))
    return [f"budget.samples: {amount} are no whole number of batches of {sizes}; nearest: {near}"]


def with_stages(
    budget: Budget | None, recipes: Sequence[Sequence[str]], mistakes: list[str]
) -> Budget | None:
    """The budget with all its stages, of those that arms have."""
    if budget is None or not recipes:
        return None
    have = [name for name in _TRAINED if any(name in recipe for recipe in recipes)]
    mistakes += [
        f"budget.stages: no stage '{name}' trains here{nearest(name, have)}"
        for name in budget.stages
        if name not in have
    ]
    stages = budget.stages or tuple(name for name in UNIFIED if name in have)
    if not stages:
        mistakes.append(f"budget: names no stages, and the recipe has none of {', '.join(UNIFIED)}")
    return Budget(budget.unit, budget.amount, stages)
