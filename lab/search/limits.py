"""Constraints: what a trial would take, estimated before it trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.config import load_params
from lab.errors import LabError

if TYPE_CHECKING:
    from lab.search.declaration import Declaration

LIMITS = {"parameters": "", "memory": " MB", "flops": "", "seconds": " s"}  # with their units


def excesses(sweep: Declaration, settings: Mapping[str, Any], folder: Path) -> dict[str, tuple[float, float]]:
    """Of every constraint: what these settings take, and by what share of the limit that is too much.

    Args:
        sweep: states the limits.
        settings: of a trial.
        folder: of the params.yaml.

    Raises:
        LabError: a part cannot be built without its weights, so that nothing can be said.
    """
    from lab.graph.planning.arm import arm_costs
    from lab.search.declaration import overrides

    if not sweep.constraints:
        return {}
    params = load_params(folder / "params.yaml", overrides(settings))
    try:
        costs = arm_costs(folder, params, sweep.trained, time="seconds" in sweep.constraints)
    except (OSError, ValueError, RuntimeError) as error:
        raise LabError(f"constraints: cannot be estimated: {error}") from error
    return {name: (costs[name], costs[name] / most - 1.0) for name, most in sweep.constraints.items()}


def said(sweep: Declaration, found: Mapping[str, tuple[float, float]]) -> str:
    """Which limits are passed, in words; "" where none is."""
    return ", ".join(
        f"{name} {amount:.3g} of at most {sweep.constraints[name]:.3g}{LIMITS[name]}"
        for name, (amount, excess) in found.items()
        if excess > 0
    )
