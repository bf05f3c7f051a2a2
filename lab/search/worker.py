"""A worker: takes trials of a study, tries them, tells what came of them, until all are finished."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import LabError, nearest
from lab.graph.claim import ClaimedError
from lab.search.declaration import Declaration, overrides
from lab.search.limits import excesses, said
from lab.search.trials import CALLED, INFEASIBLE, PAUSED, REASON, Taken, Trials
from lab.tracking import Run, start_run
from lab.training.preemption import Paused

if TYPE_CHECKING:
    from optuna.trial import TrialState

Report = Callable[[int, float], bool]
Measure = Callable[[dict[str, Any], Report, Collection[int]], Mapping[str, float]]
_PATIENCE = 3  # failures in a row after which the fault lies with all trials, not with one
_OWN = ("instruct", "evaluate")  # a trial's own stages; others serve all trials and have runs of their own


def _nothing(settings: Mapping[str, Any]) -> None:
    """Removes what a trial left that left nothing."""


@dataclass(frozen=True)
class Objective:
    """What a trial does.

    Attributes:
        measure: takes settings, `report(step, score)` and steps to report at (none: as it likes); gives
            metrics. A score is higher for what promises more. Where `report` says yes, it keeps its state and
            raises Paused, and goes on from there when it is called with the same settings again.
        forget: removes the state of settings that are not to go on.
    """

    measure: Measure
    forget: Callable[[Mapping[str, Any]], None] = _nothing


def training() -> Objective:
    """An instruction tuning on top of the pipeline's outputs, and its evaluation."""
    from lab.graph.arm import forget_trial, run_trial

    return Objective(run_trial, forget_trial)


class Worker:
    """One process that works on a study.

    Args:
        trials: of the study.
        objective: what a trial does.
        name: heads what is printed, "" where there is one worker.
    """

    def __init__(self, trials: Trials, objective: Objective, name: str = "") -> None:
        self.trials, self.objective = trials, objective
        self.sweep: Declaration = trials.sweep
        self.name = f"{name}  " if name else ""

    def work(self) -> None:
        """Works until all trials are finished.

        Raises:
            LabError: trials fail one after another, or constraints let nothing pass.
            KeyboardInterrupt: a signal asked to leave; the trial at hand goes on another time.
        """
        going = True
        while going:
            try:
                with self.trials.taken() as taken:
                    if going := taken is not None:
                        self._close(taken) if taken.over else self._try(taken)
            except ClaimedError as error:  # this worker was out of reach for long
                self._say(f"trial dropped: {error}")

    def _try(self, taken: Taken) -> None:
        """One trial, from its settings to what came of it."""
        from optuna.trial import TrialState

        place = str(taken.trial.number)
        start = time.monotonic()
        try:
            settings, words = self._settings(taken, place)
            if settings is None:
                return
            with self._tracked(taken, words, settings) as tracked:
                values = self._measure(taken, settings, tracked)
        except Paused as stop:
            self._spent(taken, start)
            taken.trial.set_user_attr(PAUSED, stop.step)
            self._say(f"trial {place} waits at step {stop.step}")
            return
        except KeyboardInterrupt:
            self._spent(taken, start)
            raise
        except ClaimedError:
            raise
        except Exception as error:  # recorded with its reason; the study goes on
            from lab.search.storage import broken

            if broken(error):
                raise
            self._spent(taken, start)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
            taken.trial.set_user_attr(REASON, reason)
            self._tell(taken, TrialState.FAIL)
            self._say(f"trial {place} failed: {reason}{self._progress()}")
            self._refuse_failures(reason)
            return
        seconds = self._spent(taken, start)
        if values is None:
            self._tell(taken, TrialState.PRUNED)
            self.objective.forget(settings)
            self._say(f"trial {place} pruned after {seconds:.0f} s{self._progress()}")
        else:
            self._tell(taken, TrialState.COMPLETE, values)
            reached = "  ".join(
                f"{name} {value:.4g}" for name, value in zip(self.sweep.objectives, values, strict=True)
            )
            self._say(f"trial {place}: {reached} in {seconds:.0f} s{self._progress()}")

    def _settings(self, taken: Taken, place: str) -> tuple[dict[str, Any] | None, str]:
        """A trial's settings, drawn where nobody has yet, and their words; None where they are infeasible."""
        from optuna.trial import TrialState

        known = taken.trial.user_attrs
        if "settings" in known:
            self._say(f"trial {place} goes on: {' '.join(overrides(known['chosen']))}")
            return known["settings"], self._words(known["chosen"])
        settings: dict[str, Any] = dict(self.sweep.fixed)
        chosen: dict[str, Any] = {}
        for dimension in self.sweep.space:
            if dimension.exists(chosen):
                drawn = dimension.draw(taken.trial)
                settings |= dimension.settings(drawn)
                chosen |= dimension.chosen(drawn)
        self._say(f"trial {place}: {' '.join(overrides(_rounded(chosen)))}")
        found = excesses(self.sweep, settings, Path.cwd())
        for name, (_, excess) in found.items():
            taken.trial.set_constraint(name, excess)
        if passed := said(self.sweep, found):
            taken.trial.set_user_attr("chosen", chosen)
            taken.trial.set_user_attr(INFEASIBLE, passed)
            self._tell(taken, TrialState.PRUNED)
            self._say(f"trial {place} infeasible: {passed}")
            return None, ""
        for name, value in {"chosen": chosen, "settings": settings}.items():
            taken.trial.set_user_attr(name, value)
        return settings, self._words(chosen)

    def _words(self, chosen: Mapping[str, Any]) -> str:
        """What a person calls a trial: what it chose among words."""
        named = (one.key for one in self.sweep.space if one.kind == "choices" and one.key in chosen)
        return " ".join(str(chosen[key]) for key in named)

    def _tracked(self, taken: Taken, words: str, settings: Mapping[str, Any]) -> Any:
        """The trial's run, nested under the study's: one, however often the trial is begun."""
        number = taken.trial.number
        return start_run(
            experiment=self.sweep.experiment,
            arm=f"sweep {self.sweep.study}",
            stage="trial",
            name=f"trial {number} {words}".rstrip(),
            identity=f"{self.sweep.study}-{number}",
            params=settings,
            tags={"study": self.sweep.study, "trial": number},
            collect=_OWN,
            command="lab sweep",
        )

    def _measure(self, taken: Taken, settings: dict[str, Any], tracked: Run) -> list[float] | None:
        """The objectives' values, or None when the trial was pruned."""
        import optuna

        trial, rungs = taken.trial, self._rungs(taken, settings)
        directions = list(self.sweep.objectives.values())
        better = 1 if directions[0] == "maximize" else -1

        def report(step: int, score: float) -> bool:
            tracked.metrics({"trial/score": score}, step)
            if len(directions) > 1:
                return False
            if step not in taken.reported:
                trial.report(better * score, step)
            if step in rungs:
                return self._waits(taken, rungs[step], score)
            if trial.should_prune():
                raise optuna.TrialPruned(f"at step {step}")
            return False

        if tracked.id is not None:
            trial.set_user_attr("mlflow_run_id", tracked.id)
        try:
            metrics = {
                name: float(value) for name, value in self.objective.measure(settings, report, rungs).items()
            }
        except Paused as stop:
            tracked.tags({"state": str(stop)})
            raise
        except optuna.TrialPruned as stopped:
            tracked.tags({"state": f"pruned {stopped}"})
            return None
        tracked.metrics(metrics)
        values = []
        for name in self.sweep.objectives:
            if name not in metrics:
                raise LabError(f"the trial gave no '{name}'{nearest(name, metrics)}")
            if not math.isfinite(metrics[name]):
                raise ValueError(f"{name} is {metrics[name]}")
            values.append(metrics[name])
        trial.set_user_attr("metrics", metrics)
        tracked.tags({"state": "complete"})
        return values

    def _waits(self, taken: Taken, rung: int, score: float) -> bool:
        """Notes a trial's score at a rung, and says whether it stops there for now."""
        trial = taken.trial
        if rung <= trial.user_attrs.get(CALLED, -1):  # its state was lost, and it comes by once more
            return False
        trial.set_user_attr("rungs", {**trial.user_attrs.get("rungs", {}), str(rung): score})
        if not self.trials.rungs.goes_on(self.trials.now(trial.number), self.trials.all()):
            return True
        trial.set_user_attr(CALLED, rung)
        return False

    def _rungs(self, taken: Taken, settings: Mapping[str, Any]) -> dict[int, int]:
        """Step -> rung of a trial; nothing where there are none."""
        if self.sweep.fidelity is None:
            return {}
        size = 1
        if self.sweep.fidelity.unit == "samples":
            from lab.config import load_params

            params = load_params(Path.cwd() / "params.yaml", overrides(settings))
            size = params.fitted("instruct").batch_size
        return self.trials.rungs.steps(taken.trial.number, size)

    def _tell(self, taken: Taken, state: TrialState, values: list[float] | None = None) -> None:
        """Says what came of a trial, unless another worker has taken it over meanwhile."""
        with taken.claim.fence():
            taken.study.tell(taken.trial.number, values, state=state)

    def _close(self, taken: Taken) -> None:
        """Cleans up after a trial that waited at a rung and was not called any more."""
        known = taken.trial.user_attrs
        step = max(taken.reported, default=0)
        with self._tracked(taken, self._words(known["chosen"]), known["settings"]) as tracked:
            tracked.tags({"state": f"pruned at step {step}"})
        self.objective.forget(known["settings"])
        self._say(f"trial {taken.trial.number} pruned at step {step}{self._progress()}")

    def _spent(self, taken: Taken, start: float) -> float:
        """Adds to what a trial has taken, in seconds, and gives it."""
        seconds = round(taken.trial.user_attrs.get("seconds", 0.0) + time.monotonic() - start, 1)
        taken.trial.set_user_attr("seconds", seconds)
        return seconds

    def _refuse_failures(self, reason: str) -> None:
        latest = sorted(self.trials.finished(), key=lambda one: str(one.datetime_complete))[-_PATIENCE:]
        if len(latest) == _PATIENCE and all(REASON in trial.user_attrs for trial in latest):
            raise LabError(
                f"sweep {self.sweep.name}: {_PATIENCE} trials in a row failed, the last with: {reason}"
            )

    def _progress(self) -> str:
        return f" ({len(self.trials.finished())} of {self.trials.wanted} done)"

    def _say(self, text: str) -> None:
        print(f"{self.name}{text}", flush=True)


def _rounded(chosen: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in chosen.items()
    }
