"""Studies of one worker: what is recorded, how a killed one continues, what becomes of trials that fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import optuna
import pytest
import toys
import yaml
from toys import RATED

from lab.errors import LabError
from lab.search.results import load
from lab.search.storage import default_url, open_storage
from lab.search.study import run
from lab.search.worker import Objective, Report
from lab.tracking import start_run

Settings = dict[str, Any]


def study(several: bool = False) -> optuna.Study:
    storage = open_storage(default_url("", several))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def states(trials: list[optuna.trial.FrozenTrial]) -> list[str]:
    return [trial.state.name for trial in trials]


def failing(*faults: Exception | float) -> Objective:
    """The first trials raise, or give such a value."""
    left = list(faults)

    def measure(settings: Settings, report: Report, rungs: Collection[int]) -> dict[str, float]:
        if not left:
            return toys.rated(settings, report)
        fault = left.pop(0)
        if isinstance(fault, Exception):
            raise fault
        return {"understanding/vqa": fault}

    return Objective(measure)


def test_a_study_ends_with_a_table_plots_and_a_ready_declaration(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(str(sweep), objective=RATED)
    trials = study().trials
    assert len(trials) == 6
    assert set(states(trials)) <= {"COMPLETE", "PRUNED"}
    for trial in trials:
        assert ("connector.num_queries" in trial.params) == (trial.params["connector"] == "q_former")
    output = sweep.parent / "output" / "sweeps" / "try"
    plots = {"history.png", "slice.png", "importance.png", "parallel.png", "sweep.html"}
    assert {path.name for path in output.iterdir()} == {"best.yaml", "trials.csv", *plots}
    best = yaml.safe_load((output / "best.yaml").read_text())
    assert best["connectors"] == [study().best_params["connector"]]
    assert best["stages"]["instruct"]["steps"] == 200
    assert "(6 of 6 done)" in capsys.readouterr().out
    page = (output / "sweep.html").read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']?(http|//)", page)  # nothing from elsewhere
    assert page.count("Plotly.newPlot(") >= 3
    records = load(sweep).records
    assert [record.values[0] for record in records if record.values] == [
        trial.value for trial in trials if trial.state.name == "COMPLETE"
    ]
    assert all(record.metrics["generation/scene"] > 0 for record in records if record.state == "complete")


def test_two_objectives_end_with_a_front(sweep: Path) -> None:
    text = sweep.read_text().replace("maximize}", "maximize, generation/scene: maximize}")
    sweep.write_text(text.replace("space:", "space:\n  mix: {simplex: [vqa, text_to_image]}"))
    run(str(sweep), objective=RATED)  # what is gained in one is lost in the other: no trial beats another
    output = sweep.parent / "output" / "sweeps" / "try"
    fronts = sorted(output.glob("front-*.yaml"))
    assert len(fronts) == len(load(sweep).best) > 1
    assert (output / "front.png").exists()
    assert not (output / "best.yaml").exists()
    for path in fronts:
        tree = yaml.safe_load(path.read_text())
        assert set(tree["mixes"]) == {"swept"}
        assert sum(tree["mixes"]["swept"].values()) == pytest.approx(1, abs=1e-3)
    assert load(sweep).keys[0] == "mix.vqa"


def test_a_finished_study_runs_nothing_and_grows_and_shrinks_on_demand(sweep: Path, no_plots: None) -> None:
    run(str(sweep), trials=2, objective=RATED)
    run(str(sweep), trials=2, objective=failing(RuntimeError("must not run")))
    assert states(study().trials) == ["COMPLETE"] * 2
    with pytest.raises(LabError):
        run(str(sweep), trials=8, objective=failing(*[ValueError("no")] * 3))
    run(str(sweep), trials=5, objective=failing(RuntimeError("must not run")))
    assert [record.state for record in load(sweep).records] == ["complete"] * 2 + ["failed"] * 3
    run(str(sweep), trials=6, objective=RATED)
    assert len(load(sweep).records) == 6


def test_another_declaration_or_other_parameters_are_another_study(sweep: Path, no_plots: None) -> None:
    run(str(sweep), trials=1, objective=RATED)
    sweep.write_text(sweep.read_text().replace("3.0e-3", "5.0e-3"))
    run(str(sweep), trials=1, objective=RATED)
    params = sweep.parent / "params.yaml"
    params.write_text(params.read_text().replace("seed: 0", "seed: 1", 1))
    run(str(sweep), trials=1, objective=RATED)
    assert len(optuna.get_all_study_names(open_storage(default_url("", False)))) == 3


def test_a_killed_study_continues_as_if_nothing_had_happened(sweep: Path, no_plots: None) -> None:
    code = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import toys\n"
        "from lab.search.study import run\n"
        "calls = []\n"
        "def dying(settings, report, rungs):\n"
        "    calls.append(1)\n"
        "    report(50, 0.0)\n"
        "    if len(calls) == 4: os.kill(os.getpid(), 9)\n"
        "    return toys.rated(settings, report)\n"
        f"run({str(sweep)!r}, objective=toys.Objective(dying))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert states(study().trials)[3:] == ["RUNNING", "WAITING", "WAITING"]
    assert [record.state for record in load(sweep).records][3:] == ["interrupted", "waiting", "waiting"]
    killed = study().trials[3].params

    def steady(settings: Settings, report: Report, rungs: Collection[int]) -> dict[str, float]:
        report(50, 0.0)  # what it said before the kill: no second time
        return toys.rated(settings, report)

    run(str(sweep), objective=Objective(steady))
    trials = study().trials
    assert len(trials) == 6  # the killed one went on, under its number and with its settings
    assert trials[3].params == killed
    assert all(trial.state.is_finished() for trial in trials)
    assert set(trials[3].intermediate_values) >= {50, 100}
    finished = [trial.params for trial in trials]
    optuna.delete_study(study_name=study().study_name, storage=open_storage(default_url("", False)))
    run(str(sweep), objective=Objective(steady))  # once more, undisturbed
    assert [trial.params for trial in study().trials] == finished


def test_an_interrupted_trial_goes_on(sweep: Path, no_plots: None) -> None:
    def interrupted(settings: Settings, report: Report, rungs: Collection[int]) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(str(sweep), objective=Objective(interrupted))
    params = study().trials[0].params
    run(str(sweep), trials=1, objective=RATED)
    assert len(load(sweep).records) == 1
    assert study().trials[0].params == params
    assert study().trials[0].state.name == "COMPLETE"


def test_a_failing_trial_is_recorded_and_the_study_goes_on(sweep: Path, no_plots: None) -> None:
    faults = (RuntimeError("loss is NaN at step 7"), float("nan"), MemoryError("cannot allocate"))
    run(str(sweep), trials=2, objective=failing(*faults[:2]))
    run(str(sweep), trials=5, objective=RATED)
    trials = study().trials
    assert states(trials[:2]) == ["FAIL", "FAIL"]
    assert trials[0].user_attrs["reason"] == "RuntimeError: loss is NaN at step 7"
    assert "is nan" in trials[1].user_attrs["reason"]
    run(str(sweep), trials=6, objective=failing(faults[2]))
    assert study().trials[5].user_attrs["reason"] == "MemoryError: cannot allocate"


def test_trials_that_all_fail_stop_the_study(sweep: Path) -> None:
    def broken(settings: Settings, report: Report, rungs: Collection[int]) -> dict[str, float]:
        return {"understanding/vqq": 1.0}

    with pytest.raises(LabError, match=r"3 trials in a row failed.*did you mean 'understanding/vqq'"):
        run(str(sweep), objective=Objective(broken))
    assert states(study().trials) == ["FAIL"] * 3 + ["WAITING"] * 3


def test_a_storage_that_cannot_be_is_named(sweep: Path, no_plots: None) -> None:
    text = sweep.read_text()
    sweep.write_text(f"{text}storage: sqlite:///{sweep.parent}/elsewhere/study.db\n")
    run(str(sweep), trials=1, objective=RATED)
    assert (sweep.parent / "elsewhere" / "study.db").exists()
    with pytest.raises(LabError, match="SQLite serves one worker"):
        run(str(sweep), workers=2, objective=RATED)
    for url, said in (
        ("nosuch://here", "storage nosuch: unknown"),
        ("postgresql://lab:secret@127.0.0.1:1/none", r"storage postgresql\+psycopg://lab:\*\*\*@127.0.0.1"),
    ):
        sweep.write_text(f"{text}storage: {url}\n")
        with pytest.raises(LabError, match=said) as caught:
            run(str(sweep), trials=1, objective=RATED)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("metric", "direction"), [("understanding/vqa", 1), ("generation/frechet", -1)])
def test_bad_trials_are_pruned_whichever_way_is_better(
    sweep: Path, no_plots: None, metric: str, direction: int
) -> None:
    calls: list[int] = []

    def worse_and_worse(settings: Settings, report: Report, rungs: Collection[int]) -> dict[str, float]:
        calls.append(1)
        report(1, -len(calls))
        return {metric: -direction * float(len(calls))}

    word = {1: "maximize", -1: "minimize"}[direction]
    sweep.write_text(sweep.read_text().replace("understanding/vqa: maximize", f"{metric}: {word}"))
    run(str(sweep), objective=Objective(worse_and_worse))
    assert states(study().trials).count("PRUNED") >= 3
    assert study().best_trial.number == 0


@pytest.mark.parametrize("sampler", ["nsga2", "gp", "cmaes", "qmc"])
def test_every_sampler_runs(sweep: Path, no_plots: None, sampler: str) -> None:
    head = sweep.read_text().partition("space:")[0]
    rate = "stages.instruct.learning_rate.connector: {log: [3.0e-4, 3.0e-3]}"
    mix = "mix: {simplex: [caption, vqa, text_to_image]}"
    sweep.write_text(f"{head}sampler: {sampler}\npruner: none\nspace:\n  {rate}\n  {mix}\n")
    run(str(sweep), trials=6, objective=RATED)
    trials = study().trials
    assert states(trials) == ["COMPLETE"] * 6
    assert len({str(trial.params) for trial in trials}) == 6


def test_a_trial_asks_the_storage_for_little(sweep: Path, no_plots: None) -> None:
    """A server takes its time for every statement, and many workers share it."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    said: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *others: Any) -> None:
        said.append(statement)

    def statements(trials: int) -> int:
        before = len(said)
        run(str(sweep), trials=trials, objective=RATED)
        return len(said) - before

    text = sweep.read_text().partition("space:")[0]
    sweep.write_text(f"{text}sampler: random\npruner: none\nspace: {{seed: {{int: [0, 1000]}}}}\n")
    event.listen(Engine, "before_cursor_execute", note)
    try:
        few = statements(5)
        assert statements(15) - few < 5 * 60  # of ten new trials against five: both calls begin alike
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_a_grid_tries_every_point_once(sweep: Path, no_plots: None) -> None:
    sweep.write_text(
        "objectives: {understanding/vqa: maximize}\nsampler: grid\npruner: none\nspace:\n"
        "  connector: {choices: [linear, q_former]}\n"
        "  connector.num_queries: {choices: [8, 16], when: {connector: q_former}}\n"
        "  seed: {int: [0, 1]}\n"
    )
    run(str(sweep), objective=RATED)
    points = [tuple(trial.params.values()) for trial in study().trials]
    assert len(points) == len(set(points)) == 6
    with pytest.raises(LabError, match="no more than 6 points"):
        run(str(sweep), trials=7, objective=RATED)


def test_infeasible_trials_cost_nothing_and_are_told_to_the_sampler(
    sweep: Path, no_plots: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Q-Former has many times the parameters of a linear map: only its settings pass the limit."""
    tried: list[Settings] = []

    def counting(settings: Settings, report: Report, rungs: Collection[int]) -> dict[str, float]:
        tried.append(settings)
        return toys.rated(settings, report)

    sweep.write_text(f"{sweep.read_text()}constraints: {{parameters: 2.1e+6, memory: 5000}}\npruner: none\n")
    run(str(sweep), trials=6, objective=Objective(counting))
    assert [settings["connector"] for settings in tried] == ["linear"] * 6
    refused = [trial for trial in study().trials if "infeasible" in trial.user_attrs]
    assert refused
    for trial in refused:
        assert trial.params["connector"] == "q_former"
        assert trial.constraints["parameters"] > 0 > trial.constraints["memory"]
        assert trial.user_attrs["infeasible"].startswith("parameters 2.")
    assert all(trial.constraints["parameters"] <= 0 for trial in study().trials if trial not in refused)
    assert len(load(sweep).records) == 6
    sweep.write_text(sweep.read_text().replace("2.1e+6", "1.0e+3"))
    monkeypatch.setattr("lab.search.trials._DRAWS", 5)
    with pytest.raises(LabError, match="constraints let none of 5 draws pass"):
        run(str(sweep), trials=1, objective=Objective(counting))


def test_trials_are_nested_runs_of_the_study(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path
) -> None:
    from lab.tracking import store

    shutil.copy(empty_store, sweep.parent / "mlflow.db")
    monkeypatch.setenv("LAB_TRACKING", "on")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stage = {"experiment": "quickstart", "arm": "linear-a", "stage": "instruct", "name": "instruct"}
    stops = [1]

    def with_stages(settings: Settings, report: Report, rungs: Collection[int]) -> dict[str, float]:
        with start_run(**{**stage, "arm": "shared", "stage": "encoder", "name": "encoder"}) as upstream:
            upstream.metrics({"train/loss": 9.0}, 1)
        with start_run(**stage, params={"of": "stage"}) as inner:
            inner.metrics({"train/loss": 1.0}, 1)
            if stops:
                stops.pop()
                raise KeyboardInterrupt
            return toys.rated(settings, report)

    objective = Objective(with_stages)
    with pytest.raises(KeyboardInterrupt):
        run(str(sweep), trials=2, objective=objective)
    run(str(sweep), trials=2, objective=objective)
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
    assert len(trials) == 2  # one a trial, also of the interrupted one; its own stages open no runs
    assert all(one.data.metrics["train/loss"] == 1.0 and one.data.params["of"] == "stage" for one in trials)
    assert parent.data.metrics["understanding/vqa"] == round(study().best_value, 4)
    (first,) = [one for one in trials if one.data.tags["trial"] == "0"]
    assert json.loads(first.data.params["stages.instruct.steps"]) == 200
    assert first.info.run_id == study().trials[0].user_attrs["mlflow_run_id"]
    plots = {file.path for file in client.list_artifacts(parent.info.run_id, "plots")}
    assert plots >= {"plots/history.png", "plots/sweep.html"}
