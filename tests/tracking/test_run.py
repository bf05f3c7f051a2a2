"""Runs: what reaches the store, under which names, with which status; and that nothing stops a training."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lab.cli import main
from lab.tracking import arm_run, journal, log_arm, log_view, process, start_run, view
from lab.tracking.measurements import Measurements

if TYPE_CHECKING:
    import mlflow.entities
    from mlflow import MlflowClient

STAGE: dict[str, Any] = {
    "experiment": "mix",
    "arm": "linear-a",
    "stage": "instruct",
    "name": "instruct linear-a",
}


def runs(client: MlflowClient, level: str) -> list[mlflow.entities.Run]:
    experiment = client.get_experiment_by_name("mix")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.level = '{level}'")
    return list(found)


def test_a_stage_is_recorded_under_its_arm(client: MlflowClient) -> None:
    params = {
        "seed": 0,
        "learning_rate": {"connector": 1e-3},
        "trainable": ["connector", "visual_head"],
        "lora": False,
    }
    with start_run(
        **STAGE, identity="i1", params=params, tags={"connector": "linear"}, dataset=("scenes", "8d77.dir")
    ) as run:
        for step in range(250):
            run.metrics({"train/loss": 1 / (step + 1), "recall@1": 0.5, "train/bad": float("nan")}, step)
        run.image("samples/generated", np.zeros((3, 8, 8)), step=3)
    (stage,), (arm,) = runs(client, "stage"), runs(client, "arm")
    assert stage.info.run_id == run.id
    assert arm.inputs.dataset_inputs[0].dataset.name == "scenes"
    assert (stage.info.run_name, stage.info.status) == ("instruct linear-a", "FINISHED")
    assert (arm.info.run_name, arm.info.status) == ("linear-a", "FINISHED")
    assert stage.data.tags["mlflow.parentRunId"] == arm.info.run_id
    assert stage.data.params == {
        "seed": "0",
        "learning_rate.connector": "0.001",
        "trainable": "connector, visual_head",
        "lora": "false",
    }
    measured = {name for name in stage.data.metrics if name.startswith("system/")}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= measured
    assert set(stage.data.metrics) - measured == {"train/loss", "recall_at_1"}
    assert len(client.get_metric_history(stage.info.run_id, "train/loss")) == 250
    assert stage.data.tags["connector"] == "linear"
    assert stage.inputs.dataset_inputs[0].dataset.digest == "8d77.dir"
    pictures = [file.path for file in client.list_artifacts(stage.info.run_id, "images")]
    assert [path.split("+timestamp+")[0] for path in pictures] == ["images/samples~generated+step+3"] * 2
    assert not list(journal.spool().glob("*"))  # all was sent


def test_a_run_says_by_which_command_one_gets_it(client: MlflowClient) -> None:
    with start_run(**STAGE):
        pass
    with start_run(experiment="mix", arm=None, stage="compare", name="compare", command="lab compare"):
        pass
    found = {run.data.tags["stage"]: run.data.tags["mlflow.source.name"] for run in runs(client, "stage")}
    assert found == {"instruct": "lab stage instruct", "compare": "lab compare"}


def test_a_failing_stage_is_failed_and_continued_by_the_same_identity(client: MlflowClient) -> None:
    def fail() -> None:
        with start_run(**STAGE, identity="i1") as run:
            run.metrics({"train/loss": 1.0}, 1)
            raise RuntimeError("loss is NaN at step 7")

    with pytest.raises(RuntimeError):
        fail()
    (stage,), (arm,) = runs(client, "stage"), runs(client, "arm")
    assert (stage.info.status, arm.info.status) == ("FAILED", "FAILED")
    assert stage.data.tags["error"] == "RuntimeError: loss is NaN at step 7"
    with start_run(**STAGE, identity="i1") as again:
        pass
    (stage,), (arm,) = runs(client, "stage"), runs(client, "arm")
    assert again.id == stage.info.run_id
    assert (stage.info.status, arm.info.status) == ("FINISHED", "FINISHED")
    with start_run(**STAGE, identity="i1") as third:  # finished: whoever repeats it does so anew
        pass
    assert third.id != again.id
    assert len(runs(client, "arm")) == 1


def test_a_measurement_that_fails_costs_no_run(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Measurements) -> dict[str, float]:
        raise AttributeError("partially initialized module 'torch' has no attribute 'cuda'")

    monkeypatch.setattr(Measurements, "sample", fail)
    with start_run(**STAGE) as run:
        run.metrics({"train/loss": 1.0}, 1)
    (stage,) = runs(client, "stage")
    assert (stage.info.status, stage.data.metrics) == ("FINISHED", {"train/loss": 1.0})


def test_what_mlflow_does_not_take_holds_up_no_other_run(
    client: MlflowClient, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    head = {"kind": "arm", "experiment": "mix", "arm": "odd", "system": "", "time": journal.now()}
    odd = journal.Journal.new(head)
    odd.append({"kind": "model", "time": journal.now()})  # by another version, say, and nothing to go on
    odd.close()
    for _ in range(2):
        with start_run(**STAGE) as run:
            run.metrics({"train/loss": 1.0}, 1)
    assert {run.info.status for run in runs(client, "stage")} == {"FINISHED"}
    assert "stays on this machine" in caplog.text
    assert main(["sync"]) == 2
    assert f"MLflow does not take 1 run: {odd.folder}" in capsys.readouterr().err
    assert journal.left() == [odd.folder]


def test_a_killed_stage_is_reaped_or_continued(client: MlflowClient) -> None:
    code = (
        "import os; from lab.tracking import start_run\n"
        f"with start_run(**{STAGE!r}, identity='i1') as run:\n"
        "    run.metrics({'train/loss': 1.0}, 1); run.flush(); os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [run.info.status for run in runs(client, "stage")] == ["RUNNING"]
    killed_at = int(time.time() * 1000)
    time.sleep(0.05)
    other = {**STAGE, "arm": "linear-b", "name": "instruct linear-b"}
    with start_run(**other, identity="i2"):
        pass
    assert {run.info.run_name: run.info.status for run in runs(client, "stage")} == {
        "instruct linear-a": "KILLED",
        "instruct linear-b": "FINISHED",
    }
    assert {run.info.run_name: run.info.status for run in runs(client, "arm")}["linear-a"] == "FAILED"
    assert runs(client, "stage")[-1].info.end_time <= killed_at
    with start_run(**STAGE, identity="i1") as run:
        run.metrics({"train/loss": 0.5}, 2)
    assert len(runs(client, "stage")) == 2
    assert run.id is not None
    assert [point.step for point in client.get_metric_history(run.id, "train/loss")] == [1, 2]
    assert client.get_run(run.id).data.tags["restarts"] == "1"


def test_a_living_stage_of_the_same_identity_is_left_alone(client: MlflowClient) -> None:
    with start_run(**STAGE, identity="i1") as first, start_run(**STAGE, identity="i1") as second:
        assert first.id != second.id
        assert {run.info.status for run in runs(client, "stage")} == {"RUNNING"}
        assert [run.info.status for run in runs(client, "arm")] == ["RUNNING"]


def test_an_arm_carries_its_choices_and_final_numbers(client: MlflowClient) -> None:
    words = {"connector": "linear", "encoder": "vit", "mix": "a"}
    with start_run(**STAGE, identity="i1", tags=words):
        pass
    log_arm("mix", "linear-a", words, {"understanding/vqa": 0.7, "generation/digit": float("inf")})
    log_arm("mix", "linear-a", words, {"understanding/vqa": 0.8})  # again, after more training
    (arm,) = runs(client, "arm")
    assert arm.data.params == words
    assert arm.data.metrics == {"understanding/vqa": 0.8}
    log_arm("mix", "linear-a", {**words, "encoder": "patches"}, {"understanding/vqa": 0.6})  # another arm
    assert sorted(arm.data.params["encoder"] for arm in runs(client, "arm")) == ["patches", "vit"]


def test_the_page_of_arms_has_its_columns(client: MlflowClient) -> None:
    log_view("mix", ["understanding/vqa", "generation/scene"])
    experiment = client.get_experiment_by_name("mix")
    assert experiment is not None
    page = "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
    assert view.link("http://127.0.0.1:5000", experiment) == f"{page}&viewStateShareKey=arms"
    tag = json.loads(experiment.tags["mlflow.sharedViewState.arms"])
    state = json.loads(zlib.decompress(base64.b64decode(tag["state"].removeprefix("deflate;"))))
    assert state["columnOrder"] == ["metrics.`understanding/vqa`", "metrics.`generation/scene`"]
    bare = client.get_experiment(client.create_experiment("bare"))
    assert view.link("http://127.0.0.1:5000", bare).endswith("machine_learning")


def test_an_artifact_on_the_arm(client: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "table.md").write_text("| a |")
    with arm_run("mix", "comparison") as run:
        run.artifact(tmp_path / "table.md", "plots")
    assert run.id is not None
    assert [file.path for file in client.list_artifacts(run.id, "plots")] == ["plots/table.md"]


def test_off_means_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAB_TRACKING", "off")
    with start_run(**STAGE) as run:
        run.metrics({"a": 1.0})
    log_arm("mix", "linear-a", {}, {"a": 1.0})
    assert run.id is None
    assert list(tmp_path.iterdir()) == []


def test_a_process_is_dead_only_when_that_is_certain() -> None:
    marks = process.signature()
    assert not process.is_dead(marks)
    assert process.is_dead({**marks, "pid_started": "1"})  # the pid belongs to another process now
    assert not process.is_dead({**marks, "host": "elsewhere", "pid_started": "1"})


def test_stages_of_an_ablation_that_know_different_words_are_below_one_arm(client: MlflowClient) -> None:
    """Instruction tuning does not read the image decoder's word; evaluation does."""
    words = {"connector": "linear", "encoder": "vit", "ablation": "trial"}
    for stage, more in (("instruct", {}), ("evaluate", {"image_decoder": "transformer"})):
        with start_run(**{**STAGE, "stage": stage, "name": stage}, identity=stage, tags={**words, **more}):
            pass
    log_arm("mix", "linear-a", {**words, "image_decoder": "transformer"}, {"understanding/vqa": 1})
    (arm,) = runs(client, "arm")
    assert arm.data.metrics == {"understanding/vqa": 1}
    assert len(runs(client, "stage")) == 2
