"""Studies: what is recorded, how a killed one continues, what becomes of trials that fail."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from lab.errors import LabError
from lab.search.study import run, storage_url
from lab.tracking import start_run


def objective(settings: dict[str, Any], report: Callable[[int, float], None]) -> dict[str, float]:
    """Best at a rate of 1e-3 with a Q-Former of 16 queries."""
    rate = settings["stages.instruct.learning_rate.connector"]
    value = 0.7 - 0.1 * abs(math.log10(rate) + 3)
    if settings["connector"] == "q_former":
        value += 0.1 - abs(settings["connector.num_queries"] - 16) / 200
    for step in (100, 200):
        report(step, value * step / 200)
    return {"understanding/vqa": value, "generation/scene": 0.3}


def study() -> optuna.Study:
    (name,) = optuna.get_all_study_names(storage_url())
    return optuna.load_study(study_name=name, storage=storage_url())


def states(trials: list[optuna.trial.FrozenTrial]) -> list[str]:
    return [trial.state.name for trial in trials]


def test_a_study_ends_with_a_table_plots_and_a_ready_declaration(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(str(sweep), objective=objective)
    trials = study().trials
    assert len(trials) == 6
    assert set(states(trials)) <= {"COMPLETE", "PRUNED"}
    for trial in trials:
        assert ("connector.num_queries" in trial.params) == (trial.params["connector"] == "q_former")
    output = sweep.parent / "output" / "sweeps" / "try"
    assert {path.name for path in output.iterdir()} >= {"best.yaml", "trials.csv", "history.png", "slice.png"}
    best = yaml.safe_load((output / "best.yaml").read_text())
    assert best == {"stages.instruct.steps": 200, **study().best_params}
    assert "trial 6/6" in capsys.readouterr().out


def test_a_finished_study_runs_nothing_and_grows_on_demand(sweep: Path) -> None:
    run(str(sweep), trials=2, objective=objective)
    run(str(sweep), trials=2, objective=objective)
    assert len(study().trials) == 2
    run(str(sweep), trials=3, objective=objective)
    assert len(study().trials) == 3


def test_another_declaration_or_other_parameters_are_another_study(sweep: Path) -> None:
    run(str(sweep), trials=1, objective=objective)
    sweep.write_text(sweep.read_text().replace("3.0e-3", "5.0e-3"))
    run(str(sweep), trials=1, objective=objective)
    params = sweep.parent / "params.yaml"
    params.write_text(params.read_text().replace("seed: 0", "seed: 1", 1))
    run(str(sweep), trials=1, objective=objective)
    assert len(optuna.get_all_study_names(storage_url())) == 3


def test_a_killed_study_continues_as_if_nothing_had_happened(sweep: Path) -> None:
    code = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_study import objective\n"
        "from lab.search.study import run\n"
        "calls = []\n"
        "def dying(settings, report):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 4: os.kill(os.getpid(), 9)\n"
        "    return objective(settings, report)\n"
        f"run({str(sweep)!r}, objective=dying)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert states(study().trials) == [*states(study().trials[:3]), "RUNNING"]
    run(str(sweep), objective=objective)
    trials = study().trials
    assert len(trials) == 7  # the killed one stands as failed, and was tried again with its settings
    assert trials[3].state.name == "FAIL"
    assert trials[4].params == trials[3].params
    assert trials[4].user_attrs["retry_of"] == 3
    finished = [trial.params for trial in trials if trial.state.name != "FAIL"]
    optuna.delete_study(study_name=study().study_name, storage=storage_url())
    run(str(sweep), objective=objective)  # once more, undisturbed
    assert [trial.params for trial in study().trials] == finished


def test_an_interrupted_trial_is_tried_again(sweep: Path) -> None:
    def interrupted(settings: dict[str, Any], report: Callable[[int, float], None]) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(str(sweep), objective=interrupted)
    run(str(sweep), trials=1, objective=objective)
    first, second = study().trials
    assert (first.state.name, second.params) == ("FAIL", first.params)


def test_a_failing_trial_is_recorded_and_the_study_goes_on(sweep: Path) -> None:
    calls: list[int] = []

    def fragile(settings: dict[str, Any], report: Callable[[int, float], None]) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("loss is NaN at step 7")
        if len(calls) == 2:
            return {"understanding/vqa": float("nan")}
        return objective(settings, report)

    run(str(sweep), trials=4, objective=fragile)
    trials = study().trials
    assert states(trials[:2]) == ["FAIL", "FAIL"]
    assert trials[0].user_attrs["reason"] == "RuntimeError: loss is NaN at step 7"
    assert "is nan" in trials[1].user_attrs["reason"]
    assert len(trials) == 4


def test_trials_that_all_fail_stop_the_study(sweep: Path) -> None:
    def broken(settings: dict[str, Any], report: Callable[[int, float], None]) -> dict[str, float]:
        return {"understanding/vqq": 1.0}

    with pytest.raises(LabError, match=r"3 trials in a row failed.*did you mean|have understanding/vqq"):
        run(str(sweep), objective=broken)
    assert len(study().trials) == 3


def test_the_best_trial_may_lack_what_others_chose(sweep: Path) -> None:
    def prefers_linear(settings: dict[str, Any], report: Callable[[int, float], None]) -> dict[str, float]:
        return {"understanding/vqa": float(settings["connector"] == "linear")}

    run(str(sweep), objective=prefers_linear)
    assert study().best_params["connector"] == "linear"
    assert (sweep.parent / "output" / "sweeps" / "try" / "slice.png").exists()


def test_a_fresh_storage_is_made_and_one_that_cannot_be_is_named(sweep: Path) -> None:
    text = sweep.read_text()
    sweep.write_text(f"{text}storage: sqlite:///{sweep.parent}/elsewhere/study.db\n")
    run(str(sweep), trials=1, objective=objective)
    assert (sweep.parent / "elsewhere" / "study.db").exists()
    sweep.write_text(f"{text}storage: nosuch://here\n")
    with pytest.raises(LabError, match="storage nosuch://here"):
        run(str(sweep), trials=1, objective=objective)


def test_bad_trials_are_pruned(sweep: Path) -> None:
    calls: list[int] = []

    def worse_and_worse(settings: dict[str, Any], report: Callable[[int, float], None]) -> dict[str, float]:
        calls.append(1)
        for step in range(3):
            report(step, -len(calls))
        return {"understanding/vqa": -float(len(calls))}

    run(str(sweep), objective=worse_and_worse)
    assert states(study().trials).count("PRUNED") >= 3


def test_scores_prune_the_same_way_when_less_is_better(sweep: Path) -> None:
    calls: list[int] = []

    def worse_and_worse(settings: dict[str, Any], report: Callable[[int, float], None]) -> dict[str, float]:
        calls.append(1)
        report(1, -len(calls))
        return {"generation/frechet": float(len(calls))}

    text = sweep.read_text().replace("understanding/vqa", "generation/frechet")
    sweep.write_text(f"{text}direction: minimize\n")
    run(str(sweep), objective=worse_and_worse)
    assert states(study().trials).count("PRUNED") >= 3
    assert study().best_trial.number == 0


def test_trials_are_nested_runs_of_the_study(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lab.tracking import store

    monkeypatch.setenv("LAB_TRACKING", "on")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stage = {"experiment": "quickstart", "arm": "linear-a", "stage": "instruct", "name": "instruct"}

    def with_stages(settings: dict[str, Any], report: Callable[[int, float], None]) -> dict[str, float]:
        with start_run(**{**stage, "arm": "shared", "stage": "encoder", "name": "encoder"}) as upstream:
            upstream.metrics({"train/loss": 9.0}, 1)
        with start_run(**stage, params={"of": "stage"}) as inner:
            inner.metrics({"train/loss": 1.0}, 1)
            return objective(settings, report)

    run(str(sweep), trials=2, objective=with_stages)
    with store.locked_client() as client:
        experiment = client.get_experiment_by_name("quickstart")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id])
    arms = {one.data.tags["arm"]: one for one in found if one.data.tags["level"] == "arm"}
    assert set(arms) == {"shared", f"sweep {study().study_name}"}
    parent = arms[f"sweep {study().study_name}"]
    trials = [one for one in found if one.data.tags.get("stage") == "trial"]
    assert parent.info.run_name == f"sweep {study().study_name}"
    assert {one.data.tags["mlflow.parentRunId"] for one in trials} == {parent.info.run_id}
    assert {one.info.status for one in found} == {"FINISHED"}
    assert len(trials) == 2  # a trial's own stages open no runs of their own, those that all share do
    assert all(one.data.metrics["train/loss"] == 1.0 and one.data.params["of"] == "stage" for one in trials)
    assert parent.data.metrics["understanding/vqa"] == round(study().best_value, 4)
    (first,) = [one for one in trials if one.data.tags["trial"] == "0"]
    assert json.loads(first.data.params["stages.instruct.steps"]) == 200
    assert first.info.run_id == study().trials[0].user_attrs["mlflow_run_id"]
    plots = {file.path for file in client.list_artifacts(parent.info.run_id, "plots")}
    assert "plots/history.png" in plots
