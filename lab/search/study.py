"""Runs a sweep: asks Optuna for settings, tries them, tells the outcome; the same command continues a study.

A study's trials are those of one declaration on one params.yaml: both are part of its name. The k-th finished
trial draws from a generator seeded with k, so an interrupted study continues as if nothing had happened.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lab.errors import LabError, nearest
from lab.search.declaration import Choice, Declaration, overrides, read
from lab.tracking import Run, arm_run, start_run
from lab.tracking.process import is_dead, signature
from lab.tracking.store import root, store_lock

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

Report = Callable[[int, float], None]
Objective = Callable[[dict[str, Any], Report], Mapping[str, float]]
_PATIENCE = 3  # failures in a row after which the fault lies with all trials, not with one
_OWN = ("instruct", "evaluate")  # a trial's own stages; others serve all trials and have runs of their own
_REASON = "reason"  # why a trial failed; a trial without one was killed and is tried again


def storage_url() -> str:
    """Where studies are kept unless a declaration says otherwise."""
    return f"sqlite:///{root() / '.lab' / 'optuna.db'}"


def run(declaration: str, trials: int | None = None, objective: Objective | None = None) -> None:
    """Runs or continues a sweep in the folder of a params.yaml.

    Args:
        declaration: The YAML file.
        trials: Finished trials in all, instead of the declaration's.
        objective: What a trial does: takes settings and `report(step, score)`, with a score that is higher
            for what promises more, and returns metrics. By default an instruction tuning on top of the
            pipeline's outputs.

    Raises:
        LabError: Mistakes in the declaration, all at once, or trials that fail one after another.
    """
    import optuna

    folder = Path.cwd()
    sweep = read(Path(declaration), folder)
    wanted = sweep.trials if trials is None else trials
    if wanted < 1:
        raise LabError(f"--trials: at least 1 is expected, not {wanted}")
    if objective is None:
        from lab.graph.arm import run_trial

        objective = run_trial
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _open(sweep, wanted)
    _retry_killed(study)
    done = len(_finished(study))
    print(f"study {sweep.study}: {min(done, wanted)} of {wanted} trials done", flush=True)
    failures = 0
    while (done := len(_finished(study))) < wanted:
        study.sampler = _sampler(sweep, wanted, done)
        failures = 0 if _try_one(study, sweep, objective, f"{done + 1}/{wanted}") else failures + 1
        if failures == _PATIENCE:
            reason = _finished(study)[-1].user_attrs[_REASON]
            raise LabError(f"sweep {sweep.name}: {_PATIENCE} trials in a row failed, the last with: {reason}")
    _conclude(study, sweep, folder / "output" / "sweeps" / sweep.name)


def _open(sweep: Declaration, trials: int) -> Study:
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    url = sweep.storage or storage_url()
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        with store_lock():  # two processes that create the tables at once would both fail
            return optuna.create_study(
                storage=url,
                study_name=sweep.study,
                direction=sweep.direction,
                pruner=_pruner(sweep, trials),
                load_if_exists=True,
            )
    except (ImportError, OSError, optuna.exceptions.OptunaError, SQLAlchemyError) as error:
        raise LabError(f"storage {url}: {' '.join(str(error).split())[:300]}") from error


def _sampler(sweep: Declaration, trials: int, done: int) -> BaseSampler:
    import optuna

    seed = sweep.seed * 10_000 + done
    if sweep.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(2, trials // 3)))


def _pruner(sweep: Declaration, trials: int) -> BasePruner:
    import optuna

    if sweep.pruner == "none":
        return optuna.pruners.NopPruner()
    if sweep.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=min(5, max(2, trials // 3)), n_min_trials=2)


def _finished(study: Study) -> list[FrozenTrial]:
    """Trials that count: complete, pruned, or failed for a reason of their own."""
    from optuna.trial import TrialState

    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return [trial for trial in ended if trial.state != TrialState.FAIL or _REASON in trial.user_attrs]


def _retry_killed(study: Study) -> None:
    """Puts trials whose process is gone back into the queue, with their settings."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if "pid" not in trial.user_attrs or is_dead(trial.user_attrs):
            _give_up(study, trial.number, trial.params)


def _give_up(study: Study, number: int, params: Mapping[str, Any]) -> None:
    from optuna.trial import TrialState

    study.tell(number, state=TrialState.FAIL)
    study.enqueue_trial(dict(params), user_attrs={"retry_of": number})


def _try_one(study: Study, sweep: Declaration, objective: Objective, place: str) -> bool:
    """One trial, from asking to telling; False when it failed."""
    from optuna.trial import TrialState

    trial = study.ask()
    for key, mark in signature().items():
        trial.set_user_attr(key, mark)
    chosen: dict[str, Any] = {}
    start = time.monotonic()
    try:
        for choice in sweep.space:
            if choice.exists(chosen):
                chosen[choice.key] = _suggest(trial, choice)
        words = " ".join(str(chosen[c.key]) for c in sweep.space if c.kind == "choices" and c.key in chosen)
        print(f"trial {place}: {' '.join(overrides(chosen))}", flush=True)
        with start_run(
            experiment=sweep.experiment,
            arm=f"sweep {sweep.study}",
            stage="trial",
            name=f"trial {trial.number} {words}".rstrip(),
            params={**sweep.fixed, **chosen},
            tags={"study": sweep.study, "trial": trial.number},
            collect=_OWN,
        ) as tracked:
            value = _measure(trial, sweep, objective, {**sweep.fixed, **chosen}, tracked)
    except KeyboardInterrupt:
        _give_up(study, trial.number, chosen)
        raise
    except Exception as error:  # recorded with its reason; the study goes on
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
        trial.set_user_attr(_REASON, reason)
        study.tell(trial, state=TrialState.FAIL)
        print(f"  failed: {reason}", flush=True)
        return False
    seconds = time.monotonic() - start
    trial.set_user_attr("seconds", round(seconds, 1))
    if value is None:
        study.tell(trial, state=TrialState.PRUNED)
        print(f"  pruned after {seconds:.0f} s", flush=True)
    else:
        study.tell(trial, value)
        print(f"  {sweep.objective} {value:.4g} in {seconds:.0f} s, best {study.best_value:.4g}", flush=True)
    return True


def _measure(
    trial: Trial, sweep: Declaration, objective: Objective, settings: dict[str, Any], tracked: Run
) -> float | None:
    """The objective's value, or None when the trial was pruned."""
    import optuna

    better = 1 if sweep.direction == "maximize" else -1

    def report(step: int, score: float) -> None:
        tracked.metrics({"trial/score": score}, step)
        trial.report(better * score, step)
        if trial.should_prune():
            raise optuna.TrialPruned(f"at step {step}")

    trial.set_user_attr("mlflow_run_id", tracked.id)
    try:
        metrics = dict(objective(settings, report))
    except optuna.TrialPruned as stopped:
        tracked.tags({"state": f"pruned {stopped}"})
        return None
    tracked.metrics(metrics)
    trial.set_user_attr("metrics", metrics)
    if sweep.objective not in metrics:
        raise LabError(f"the trial gave no '{sweep.objective}'{nearest(sweep.objective, metrics)}")
    value = float(metrics[sweep.objective])
    if not math.isfinite(value):
        raise ValueError(f"{sweep.objective} is {value}")
    tracked.tags({"state": "complete"})
    return value


def _suggest(trial: Trial, choice: Choice) -> Any:
    if choice.kind == "choices":
        return trial.suggest_categorical(choice.key, choice.values)
    if choice.kind == "int":
        return trial.suggest_int(choice.key, *choice.values)
    return trial.suggest_float(choice.key, *choice.values, log=choice.kind == "log")


def _conclude(study: Study, sweep: Declaration, output: Path) -> None:
    """Table, plots and the best trial as a declaration, on disk and in MLflow."""
    from optuna.trial import TrialState

    from lab.reports.sweep import Record, Sweep, report

    records = [
        Record(
            number=trial.number,
            state=trial.state.name.lower(),
            value=trial.value if trial.state == TrialState.COMPLETE else None,
            params=trial.params,
            seconds=trial.user_attrs.get("seconds"),
            curve=trial.intermediate_values,
            reason=trial.user_attrs.get(_REASON, ""),
        )
        for trial in _finished(study)
    ]
    complete = [record for record in records if record.value is not None]
    if not complete:
        raise LabError(f"sweep {sweep.name}: no trial completed; see the reasons above")
    result = Sweep(sweep.study, sweep.objective, sweep.direction, tuple(records), _importances(study))
    written = report(result, output)
    best = study.best_trial
    (output / "best.yaml").write_text(_ready(sweep, best), encoding="utf-8")
    print(f"The best trial as a declaration: lab train {output / 'best.yaml'}")
    with arm_run(sweep.experiment, f"sweep {sweep.study}") as parent:
        parent.params({"objective": sweep.objective, "sampler": sweep.sampler, "pruner": sweep.pruner})
        parent.metrics({name: round(value, 4) for name, value in best.user_attrs["metrics"].items()})
        for path in [*written, output / "best.yaml"]:
            parent.artifact(path, "plots" if path.suffix == ".png" else None)


def _importances(study: Study) -> dict[str, float]:
    import optuna

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that few trials tell little: a sweep's reader sees how many
            return dict(optuna.importance.get_param_importances(study))
    except (ValueError, RuntimeError):  # fewer than two complete trials, or all alike
        return {}


def _ready(sweep: Declaration, best: FrozenTrial) -> str:
    """What differs from params.yaml: a line a setting, keys as for `lab train KEY=VALUE`."""
    head = f"# The best of sweep {sweep.study}: trial {best.number}, {sweep.objective} {best.value:.4g}.\n"
    return head + yaml.safe_dump({**sweep.fixed, **best.params}, sort_keys=False)
