"""Factors that are amounts of data: so many samples of some tasks, from which an arm's mix and steps follow.

`understanding: {samples: [0, 1280], tasks: {caption: 1, vqa: 7}}` has the levels `understanding0` and
`understanding1280`. The samples of all such factors of an arm together are what its instruction tuning sees:
each task's weight in the mix is its number of samples, and the steps are all samples / batch size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

STEPS = "stages.instruct.steps"  # the stage that reads the mix
MIX = "samples"  # the name of a mix that is made of amounts; it changes no number
_PREFIX = "samples."


def is_amount(key: str) -> bool:
    """Whether a setting's key says how many samples of some tasks there are."""
    return key.startswith(_PREFIX)


def amounts_of(
    name: str, declared: Mapping[Any, Any], where: str, mistakes: list[str]
) -> dict[str, dict[str, Any]]:
    """Level -> what it sets: `samples.NAME`, as task -> number of samples.

    Args:
        name: of the factor.
        declared: its `samples` and `tasks`.
        where: it stands, for messages.
        mistakes: gets what is wrong.
    """
    counts, weights = declared.get("samples"), declared.get("tasks")
    if not isinstance(weights, Mapping) or not weights:
        mistakes.append(f"{where}.tasks: expected a mapping of tasks to weights, not {weights!r}")
        weights = {}
    elif not all(_number(weight) and weight >= 0 for weight in weights.values()) or not any(weights.values()):
        mistakes.append(f"{where}.tasks: expected weights of at least 0, one of them above, not {weights!r}")
        weights = {}
    if not isinstance(counts, list) or not counts:
        mistakes.append(f"{where}.samples: expected a list of whole numbers, not {counts!r}")
        counts = []
    levels: dict[str, dict[str, Any]] = {}
    for count in counts:
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            mistakes.append(f"{where}.samples: expected whole numbers of at least 0, not {count!r}")
        elif f"{name}{count}" in levels:
            mistakes.append(f"{where}.samples: {count} twice")
        else:
            total = sum(weights.values()) or 1
            shares = {str(task): count * weight / total for task, weight in weights.items() if weight}
            levels[f"{name}{count}"] = {_PREFIX + name: shares}
    return levels


def pour(tree: dict[str, Any], amounts: Mapping[str, Mapping[str, float]], mistakes: list[str]) -> None:
    """Writes an arm's mix and the steps of its instruction tuning into its tree of parameters.

    Args:
        tree: of the arm.
        amounts: where a level sets them -> task -> samples.
        mistakes: gets what is wrong: no samples at all, no whole number of batches, a task of two factors.
    """
    mix: dict[str, float] = {}
    for where, shares in amounts.items():
        both = [task for task in shares if task in mix]
        mistakes += [f"{where}: '{task}' is a task of another factor with samples too" for task in both]
        mix |= shares
    samples = round(sum(mix.values()))
    batch = tree["stages"]["instruct"].get("batch_size")
    if not samples:
        mistakes.append(f"{' and '.join(amounts)}: no samples at all; leave this arm out with `exclude`")
    elif isinstance(batch, int) and batch > 0:
        if samples % batch:
            mistakes.append(
                f"{' and '.join(amounts)}: {samples} samples are no whole number of batches of {batch}"
            )
        tree["stages"]["instruct"]["steps"] = max(1, samples // batch)
        tree["mixes"] = {MIX: {task: count for task, count in mix.items() if count}}


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
