"""Samplers and pruners by their words, and what each can do: what does not fit is refused before it runs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab.search.space import Dimension

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    from lab.search.declaration import Declaration

PRUNERS = ("median", "asha", "hyperband", "none")
DESIGNS = ("grid", "qmc")  # points that are fixed beforehand, whatever trials come to


@dataclass(frozen=True)
class Method:
    """What a sampler takes.

    Attributes:
        several: more than one objective.
        words: choices.
        numbers: ranges of real numbers, and mixes.
        conditions: dimensions that exist under others.
    """

    several: bool = True
    words: bool = True
    numbers: bool = True
    conditions: bool = True


SAMPLERS = {
    "tpe": Method(),
    "nsga2": Method(),
    "gp": Method(conditions=False),
    "cmaes": Method(several=False, words=False, conditions=False),
    "qmc": Method(),
    "grid": Method(numbers=False),
    "random": Method(),
}


def misfits(
    sampler: str, pruner: str, several: bool, space: Sequence[Dimension], fidelity: bool
) -> list[str]:
    """Why these do not go together, one reason each.

    Args:
        sampler, pruner: their words; an unknown one is somebody else's mistake to report.
        several: whether there are several objectives.
        space: what is varied.
        fidelity: whether rungs are declared.
    """
    found = []
    method = SAMPLERS.get(sampler, Method())
    words = [one.key for one in space if one.kind == "choices"]
    reals = [one.key for one in space if one.kind in ("log", "float", "simplex")]
    bound = [one.key for one in space if one.when]
    if several and not method.several:
        found.append(f"sampler {sampler}: takes one objective; for several use tpe, nsga2 or gp")
    if words and not method.words:
        found.append(f"sampler {sampler}: takes numbers only, not the choices of {words[0]}; use tpe or gp")
    if reals and not method.numbers:
        found.append(f"sampler {sampler}: {reals[0]} has no end of values; use choices, or qmc")
    if bound and not method.conditions:
        found.append(f"sampler {sampler}: {bound[0]} exists under a condition; use tpe, nsga2 or random")
    if sampler == "cmaes" and sum(len(one.names) for one in space) == 1:
        found.append("sampler cmaes: takes at least two numbers; use gp")
    if several and pruner in PRUNERS and pruner != "none":
        found.append(f"pruner {pruner}: cannot tell which trials to stop for several objectives; use none")
    if pruner in ("asha", "hyperband") and not fidelity:
        found.append(f"pruner {pruner}: where does it decide? state fidelity, such as {{steps: [50, 100]}}")
    if fidelity and pruner in ("median", "none"):
        found.append(f"fidelity: pruner {pruner} makes no use of rungs; use asha or hyperband")
    return found


def sampler_of(sweep: Declaration, number: int) -> BaseSampler:
    """The sampler of trial `number`, whose draws are a function of seed, number and the trials so far."""
    from optuna import samplers

    seed = sweep.seed * 100_003 + number
    start = min(10, max(2, sweep.trials // 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Optuna calls experimental
        match sweep.sampler:
            case "tpe":  # a model for each set of dimensions that occur together
                bound = any(one.when for one in sweep.space)
                return samplers.TPESampler(seed=seed, n_startup_trials=start, multivariate=True, group=bound)
            case "nsga2":
                size = min(50, max(4, sweep.trials // 4))
                return samplers.NSGAIISampler(seed=seed, population_size=size)
            case "gp":
                return samplers.GPSampler(seed=seed, n_startup_trials=start)
            case "cmaes":
                return samplers.CmaEsSampler(seed=seed, n_startup_trials=start)
    return samplers.RandomSampler(seed=seed)  # designs bring their own points


def pruner_of(sweep: Declaration) -> BasePruner:
    """The pruner for scores on the way; rungs are decided upon elsewhere (fidelity.py)."""
    from optuna import pruners

    if sweep.pruner != "median":
        return pruners.NopPruner()
    return pruners.MedianPruner(n_startup_trials=min(5, max(2, sweep.trials // 3)), n_min_trials=2)
