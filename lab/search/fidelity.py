"""Rungs: who goes on with its training, decided as trials reach them, without waiting for the others.

Successive halving in its asynchronous form (ASHA, Li et al., 2018): a trial stops at a rung unless it is
among the best third, or whatever share is declared, of those that have reached it so far. It keeps its state;
as more trials arrive it may come to belong to the best after all, and then goes on where it was. Hyperband
runs this in brackets, of which the later ones skip the first rungs: less is lost where early scores mislead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from lab.search.declaration import Declaration


@dataclass(frozen=True)
class Rungs:
    """The rungs of a sweep, none where it has no fidelity.

    Attributes:
        amounts: at which trials are looked at, ascending, in units of `fidelity`.
        samples: whether these are samples rather than steps.
        reduction: one of so many goes on.
        brackets: how many; bracket b begins with rung b.
    """

    amounts: tuple[int, ...] = ()
    samples: bool = False
    reduction: int = 3
    brackets: int = 1

    @classmethod
    def of(cls, sweep: Declaration) -> Rungs:
        """Those that a declaration asks for."""
        if sweep.fidelity is None:
            return cls()
        brackets = len(sweep.fidelity.rungs) if sweep.pruner == "hyperband" else 1
        stated = sweep.fidelity
        return cls(stated.rungs, stated.unit == "samples", stated.reduction, brackets)

    def bracket(self, number: int) -> int:
        """The bracket of a trial: of `reduction` trials one less belongs to the first that is left."""
        place, bracket = number, 0
        while bracket < self.brackets - 1 and place % self.reduction == self.reduction - 1:
            place, bracket = place // self.reduction, bracket + 1
        return bracket

    def steps(self, number: int, batch_size: int) -> dict[int, int]:
        """Optimizer step -> rung, of those that a trial is looked at.

        Args:
            number: of the trial.
            batch_size: of its training.
        """
        size = batch_size if self.samples else 1
        rungs = enumerate(self.amounts)
        return {amount // size: rung for rung, amount in rungs if rung >= self.bracket(number)}

    def goes_on(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
        """Whether a trial that waits at a rung belongs to those that go on.

        Args:
            trial: waits.
            trials: all of the study. Where none of them is under way any more, the best of a rung goes on
                even if few have reached it, unless a trial of the bracket has gone further.
        """
        rung, bracket = reached(trial), self.bracket(trial.number)
        rivals = [
            one
            for one in trials
            if self.bracket(one.number) == bracket and str(rung) in one.user_attrs.get("rungs", {})
        ]
        ranked = sorted(rivals, key=lambda one: -one.user_attrs["rungs"][str(rung)])
        share = len(rivals) // self.reduction
        further = any(reached(one) > rung or one.state.name == "COMPLETE" for one in rivals)
        under_way = any(
            one.state.name == "WAITING" or (one.state.name == "RUNNING" and not one.user_attrs.get("paused"))
            for one in trials
        )
        if not under_way and not further:
            share = max(1, share)
        return any(one.number == trial.number for one in ranked[:share])


def reached(trial: FrozenTrial | Any) -> int:
    """The last rung that a trial has reached, -1 before the first."""
    return max(map(int, trial.user_attrs.get("rungs", {})), default=-1)
