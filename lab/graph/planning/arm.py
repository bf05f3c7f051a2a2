"""What one arm takes, before any of its stages runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from lab.config import Params
from lab.graph.planning.earlier import checkout_of
from lab.graph.planning.machine import this_machine
from lab.graph.planning.operations import REFERENCE, Model
from lab.graph.planning.work import work_of
from lab.graph.stages import TRAINED, identified_by, stages_of


def arm_costs(folder: Path, params: Params, stages: Collection[str], time: bool = True) -> dict[str, float]:
    """The parameters of an arm's system, and what some of its stages take.

    Args:
        folder: of the pipeline.
        params: with one connector and one mix first.
        stages: words of those that count.
        time: whether to say seconds, for which the machine is probed once.

    Returns:
        `parameters` of the whole system; of the stages `memory` at the most, in MB, and `flops` and `seconds`
        in all.

    Raises:
        LabError, OSError, ValueError, RuntimeError: a part that cannot be built without its weights.
    """
    memory = checkout_of(folder) / ".lab"
    model = Model(this_machine(memory / "probe.json").rate if time else REFERENCE, memory / "operations.json")
    given = _instance(params)
    costs = dict.fromkeys(("parameters", "memory", "flops", "seconds"), 0.0)
    for name in params.recipe:
        if name in ("data", "judge"):
            continue
        work = work_of(name, identified_by(params, name, given), given["connector"])
        cost = model.cost(work)
        costs["parameters"] = max(costs["parameters"], cost.parameters)
        if name in stages:
            costs["memory"] = max(costs["memory"], model.memory(work))
            costs["seconds"] += model.seconds(work) + model.around(work)
            costs["flops"] += cost.operations * work.samples if name in TRAINED else 0.0
    model.save()
    return costs


def changed_stages(variants: Sequence[Params]) -> tuple[str, ...]:
    """Stages that read what differs between variants of an arm, and those after them, in recipe order."""
    changed: dict[str, None] = {}
    for params in variants[1:]:
        first, before, after = variants[0], _instance(variants[0]), _instance(params)
        for name, stage in stages_of(params).items():
            upstream = {output.partition("/")[0] for output in stage.upstream}
            known = name in stages_of(first) and name != "compare"
            if name != "compare" and (
                not known
                or upstream & changed.keys()
                or identified_by(first, name, before) != identified_by(params, name, after)
            ):
                changed[name] = None
    order = [name for params in variants for name in params.recipe]
    return tuple(sorted(changed, key=order.index))


def _instance(params: Params) -> dict[str, str]:
    return {"connector": params.connectors[0], "mix": next(iter(params.mixes))}
