"""A study's trials as several workers share them: each is one's own, none is lost, none is added.

All trials of a study are put into the storage before the first one runs, as places that wait. A worker takes
one by changing its state there, which succeeds for one worker only, so there are never more than declared.
While a worker is at a trial it holds a claim on it (lab/graph/claim.py), the heartbeat of all storages. A
trial whose worker is gone is taken over as it stands: same number, same settings, hence the same node, whose
training goes on from its checkpoint. A trial that waits at a rung is running to Optuna, and held by nobody.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import LabError
from lab.graph.claim import Claim, ClaimedError
from lab.search.declaration import Declaration
from lab.search.fidelity import Rungs, reached
from lab.search.methods import DESIGNS, pruner_of, sampler_of
from lab.search.space import grid, low_discrepancy
from lab.tracking.store import root, store_lock

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, Trial

REASON = "reason"  # why a trial failed
INFEASIBLE = "infeasible"  # which constraints it passes; it has cost nothing, and another takes its place
PAUSED = "paused"  # at which step it waits, 0 where it does not
CALLED = "called"  # the last rung beyond which it may go
WITHDRAWN = "withdrawn"  # nobody wants it any more: fewer trials were asked for
_BEGUN = "begun"  # how often a worker has begun it without coming to an end, in this run of the command
_ENOUGH = 4  # times; then the trial itself is what its workers die of
_DRAWS = 100  # trials in a row that no constraint lets pass
_LOOK = 0.3  # seconds between two looks at what others do


@dataclass(frozen=True)
class Taken:
    """A trial in a worker's hands.

    Attributes:
        study: with the trial's own sampler.
        trial: for suggestions and reports.
        claim: held until the block of `Trials.taken` ends.
        reported: steps at which its score is known, from workers that had it before.
        over: whether it was only to be pruned, as better ones went on, and is.
    """

    study: Study
    trial: Trial
    claim: Claim
    reported: frozenset[int] = frozenset()
    over: bool = False


class Trials:
    """The trials of a study.

    Args:
        sweep: the declaration.
        storage: that holds the study.
        wanted: how many are to finish.
    """

    def __init__(self, sweep: Declaration, storage: BaseStorage, wanted: int) -> None:
        self.sweep, self.storage, self.wanted = sweep, storage, wanted
        self.rungs = Rungs.of(sweep)
        self._study = storage.get_study_id_from_name(sweep.study)
        self._claims = root() / ".lab" / "claims" / "sweeps" / sweep.study
        self._listed: list[FrozenTrial] | None = None  # when it was last asked which are finished

    def study(self, number: int = 0) -> Study:
        """The study, with the sampler of a trial."""
        import optuna

        return optuna.load_study(
            study_name=self.sweep.study,
            storage=self.storage,
            sampler=sampler_of(self.sweep, number),
            pruner=pruner_of(self.sweep),
        )

    def all(self) -> list[FrozenTrial]:
        """Trials that count or will, in order: not what was withdrawn, nor infeasible draws of a sampler."""
        trials = self.storage.get_all_trials(self._study, deepcopy=False)
        return [trial for trial in trials if WITHDRAWN not in trial.user_attrs and not self._redrawn(trial)]

    def finished(self) -> list[FrozenTrial]:
        """Trials that are over: complete, pruned, or failed."""
        self._listed = self.all()
        return [trial for trial in self._listed if trial.state.is_finished()]

    def now(self, number: int) -> FrozenTrial:
        """A trial as it stands in the storage."""
        return self.storage.get_trial(self._id(number))

    def fill(self) -> None:
        """Adds or withdraws waiting trials until as many as are wanted are there."""
        from optuna.trial import TrialState, create_trial

        with store_lock():
            there = self.all()
            for trial in reversed(there[self.wanted :]):
                if trial.state == TrialState.WAITING:
                    self.storage.set_trial_user_attr(self._id(trial.number), WITHDRAWN, True)
                    self.storage.set_trial_state_values(self._id(trial.number), TrialState.FAIL)
            points = self._points(len(there), max(0, self.wanted - len(there)))
            self.study().add_trials(
                create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": point})
                for point in points
            )

    def forgive(self) -> None:
        """Forgets how often trials were begun: what ended their workers before may have been the person."""
        for trial in self.all():
            if not trial.state.is_finished() and _BEGUN in trial.user_attrs and not self.held(trial.number):
                self.storage.set_trial_user_attr(self._id(trial.number), _BEGUN, 0)

    @contextmanager
    def taken(self) -> Iterator[Taken | None]:
        """The next trial to work on, for as long as the block lasts; None where all are finished.

        Waits while others work on trials that may yet need somebody.

        Raises:
            LabError: constraints let nothing pass.
        """
        while True:
            # What a worker saw when it told of its last trial will do: beginning one looks at it again, and a
            # listing of many trials takes a server longer than all else that is asked of it.
            trials, self._listed = self.all() if self._listed is None else self._listed, None
            for trial in self._to_do(trials):
                claim = Claim(self._place(trial.number), f"trial {trial.number}")
                try:
                    claim.__enter__()
                except ClaimedError:
                    continue
                try:
                    if (mine := self._begin(trial, claim)) is not None:
                        yield mine
                        return
                except KeyboardInterrupt:  # its worker leaves in order
                    self.storage.set_trial_user_attr(self._id(trial.number), _BEGUN, 0)
                    raise
                finally:
                    claim.__exit__()
                break  # what was seen is not so any more
            else:
                if len(trials) < self.wanted:
                    self._refuse_endless_draws()
                    self.fill()
                elif all(trial.state.is_finished() for trial in trials):
                    yield None
                    return
                else:
                    time.sleep(_LOOK)

    def held(self, number: int) -> bool:
        """Whether a living worker is at a trial."""
        if not self._place(number).exists():
            return False
        try:
            with Claim(self._place(number)):
                return False
        except ClaimedError:
            return True

    def _begin(self, seen: FrozenTrial, claim: Claim) -> Taken | None:
        """Makes a trial one's own under its claim; None where somebody else got on with it meanwhile."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import Trial, TrialState

        key, now = self._id(seen.number), seen
        if seen.state == TrialState.WAITING:  # nobody has written to it yet
            try:
                if not self.storage.set_trial_state_values(key, TrialState.RUNNING):
                    return None
            except UpdateFinishedTrialError:
                return None
        else:
            now = self.storage.get_trial(key)
            if now.state != seen.state or now.user_attrs.get(PAUSED, 0) != seen.user_attrs.get(PAUSED, 0):
                return None
        study, reported = self.study(seen.number), frozenset(now.intermediate_values)
        if now.user_attrs.get(PAUSED):
            if not self.rungs.goes_on(now, self.all()):
                study.tell(seen.number, state=TrialState.PRUNED)
                return Taken(study, Trial(study, key), claim, reported, over=True)
            self.storage.set_trial_user_attr(key, CALLED, reached(now))
            self.storage.set_trial_user_attr(key, PAUSED, 0)
        times = 0 if now.user_attrs.get(PAUSED) else now.user_attrs.get(_BEGUN, 0)
        if times >= _ENOUGH:
            reason = f"{times} workers died at it; does it need more memory than there is?"
            self.storage.set_trial_user_attr(key, REASON, reason)
            study.tell(seen.number, state=TrialState.FAIL)
            return None
        self.storage.set_trial_user_attr(key, _BEGUN, times + 1)
        return Taken(study, Trial(study, key), claim, reported)

    def _to_do(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Trials that may need a worker, the most urgent first: begun ones, promoted ones, waiting ones.

        Once nothing else is left, what still waits at a rung: the best go on, the others are over.
        """
        from optuna.trial import TrialState

        begun = [trial for trial in trials if trial.state == TrialState.RUNNING]
        paused = [trial for trial in begun if trial.user_attrs.get(PAUSED)]
        running = [trial for trial in begun if not trial.user_attrs.get(PAUSED)]
        waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
        last = not running and not waiting
        promoted = [trial for trial in paused if self.rungs.goes_on(trial, trials)]
        return [*running, *promoted, *waiting, *(paused if last and not promoted else [])]

    def _redrawn(self, trial: FrozenTrial) -> bool:
        known = INFEASIBLE in trial.user_attrs and trial.state.is_finished()
        return known and self.sweep.sampler not in DESIGNS

    def _refuse_endless_draws(self) -> None:
        latest = self.storage.get_all_trials(self._study, deepcopy=False)[-_DRAWS:]
        if len(latest) == _DRAWS and all(INFEASIBLE in trial.user_attrs for trial in latest):
            raise LabError(
                f"sweep {self.sweep.name}: constraints let none of {_DRAWS} draws pass, the last with "
                f"{latest[-1].user_attrs[INFEASIBLE]}; relax them or change the space"
            )

    def _points(self, first: int, count: int) -> list[dict[str, Any]]:
        """What is fixed of trials beforehand: all for designs, nothing where a sampler draws."""
        sweep = self.sweep
        if sweep.sampler == "grid":
            return list(grid(sweep.space))[first : first + count]
        if sweep.sampler == "qmc":
            return [
                low_discrepancy(sweep.space, number, sweep.seed) for number in range(first, first + count)
            ]
        return [{} for _ in range(count)]

    def _place(self, number: int) -> Path:
        return self._claims / f"trial-{number}"

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study, number)
