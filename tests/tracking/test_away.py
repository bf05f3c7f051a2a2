"""An MLflow server that is killed, absent or hanging: trainings end well, and nothing of them is lost."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from mlflow_server import MlflowServer, running_server

from lab.cli import main
from lab.tracking import journal, log_arm, log_view, start_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TRAINING = """
import sys, time
from lab.tracking import start_run
with start_run(experiment="killed", arm="a", stage="instruct", name="instruct a", identity="k") as run:
    for step in range(400):
        run.metrics({"train/loss": 1 / (step + 1), "train/text": step}, step)
        time.sleep(0.005)
        if step == 100:
            print("now", flush=True)
            sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    with running_server(f"sqlite:///{folder}/mlflow.db", folder) as started:
        yield started


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: MlflowServer) -> MlflowClient:
    """Tracking switched on, to the server."""
    from lab.tracking import store

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAB_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    with store.locked_client() as made:
        return made


def found(client: MlflowClient, experiment: str, level: str = "stage") -> list[Any]:
    place = client.get_experiment_by_name(experiment)
    return client.search_runs([place.experiment_id], f"tags.level = '{level}'") if place else []


def points(client: MlflowClient, run_id: str, name: str) -> list[int]:
    return sorted(point.step for point in client.get_metric_history(run_id, name))


def waiting() -> list[Path]:
    return list(journal.spool().glob("*"))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_a_server_killed_during_a_training_has_every_point_once(
    client: MlflowClient, server: MlflowServer
) -> None:
    training = subprocess.Popen(
        [sys.executable, "-c", _TRAINING],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert training.stdout is not None
    assert training.stdout.readline() == "now\n"
    server.kill()
    _, said = training.communicate("go on\n")
    assert training.returncode == 0
    assert "lab sync" in said
    assert len(waiting()) == 1
    server.start()
    assert main(["sync"]) == 0
    (run,) = found(client, "killed")
    assert run.info.status == "FINISHED"
    for name in ("train/loss", "train/text"):
        assert points(client, run.info.run_id, name) == list(range(400))
    assert waiting() == []


def test_runs_that_no_server_saw_are_made_later_as_they_were(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: MlflowServer
) -> None:
    with socket.socket() as probe:  # nobody listens there afterwards
        probe.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nowhere)
    (tmp_path / "table.md").write_text("| a |")
    began = time.time() * 1000
    stage = {"experiment": "absent", "arm": "linear-a", "stage": "instruct", "name": "instruct linear a"}
    words = {"connector": "linear"}

    def train(attempt: int) -> None:
        opened = start_run(**stage, identity="i", params={"seed": 0}, tags=words, dataset=("scenes", "1"))
        with opened as run:
            assert run.id is None
            run.metrics({"train/loss": 1.0}, attempt)
            run.image("drawn", np.zeros((8, 8, 3)), step=1)
            run.artifact(tmp_path / "table.md", "plots")
            if attempt == 0:
                raise RuntimeError("loss is NaN")

    with pytest.raises(RuntimeError):
        train(0)
    train(1)  # goes on with the run of the first attempt
    log_arm("absent", "linear-a", words, {"understanding/vqa": 0.5})
    log_view("absent", ["understanding/vqa"])
    ended = time.time() * 1000
    kept = journal.spool()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    kept.rename(journal.spool())  # as if this server had been away
    assert main(["sync"]) == 0
    (run,), (arm,) = found(client, "absent"), found(client, "absent", "arm")
    assert began <= run.info.start_time <= run.info.end_time <= ended
    assert (run.info.status, arm.info.status) == ("FINISHED", "FINISHED")
    assert arm.info.end_time == run.info.end_time
    assert run.data.params == {"seed": "0"}
    assert run.data.tags["restarts"] == "1"
    assert run.data.tags["error"] == "RuntimeError: loss is NaN"
    assert run.inputs.dataset_inputs[0].dataset.name == "scenes"
    assert points(client, run.info.run_id, "train/loss") == [0, 1]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "plots")] == ["plots/table.md"]
    assert len(client.list_artifacts(run.info.run_id, "images")) == 4  # two pictures and their previews
    assert arm.data.metrics == {"understanding/vqa": 0.5}
    assert "mlflow.sharedViewState.arms" in client.get_experiment_by_name("absent").tags


def test_a_hanging_server_holds_nobody_up_for_long(
    client: MlflowClient,
    server: MlflowServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from lab.tracking import writer

    monkeypatch.setattr(writer, "_PATIENCE", 0.5)
    server.send(signal.SIGSTOP)
    try:
        with start_run(experiment="hanging", arm="a", stage="instruct", name="hangs", identity="h") as run:
            run.metrics({"train/loss": 1.0}, 1)
    finally:
        server.send(signal.SIGCONT)
    assert run.id is None
    assert "lab sync" in caplog.text
    with start_run(experiment="hanging", arm="a", stage="instruct", name="later", identity="l"):
        pass
    end = time.monotonic() + 60
    while waiting():  # the writer that hung may still be at it
        assert time.monotonic() < end
        assert main(["sync"]) == 0
        time.sleep(0.2)
    assert {run.info.run_name: run.info.status for run in found(client, "hanging")} == {
        "hangs": "FINISHED",
        "later": "FINISHED",
    }


def test_a_sender_killed_midway_neither_loses_nor_repeats(
    client: MlflowClient, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = {"experiment": "midway", "arm": "a", "stage": "instruct", "name": "midway", "identity": "m"}
    marks = {"level": "stage", "stage": "instruct", "arm": "a", "identity": "m"}
    left = journal.Journal.new({"kind": "stage", **head, "system": "", "tags": marks, "start": journal.now()})
    for step in range(3000):
        left.append({"kind": "metrics", "time": journal.now(), "values": {"a": step, "b": 1.0}, "step": step})
    left.append({"kind": "end", "time": journal.now(), "status": "FINISHED"})
    left.close()
    dying = (
        "import os; from lab.tracking import delivery, journal, writer\n"
        "mark = journal.Journal.mark\n"
        "def die(self, sent=None):\n"
        "    if sent is not None and sent >= {at}: os.kill(os.getpid(), 9)\n"
        "    mark(self, sent)\n"
        "journal.Journal.mark = die\n"
        "writer.send_left()\n"
    )
    for at in (0, 200_000):  # after it has sent something, before it knows of it
        died = subprocess.run([sys.executable, "-c", dying.format(at=at)], env=environment(), check=False)
        assert died.returncode == -signal.SIGKILL
    assert main(["sync"]) == 0
    (run,) = found(client, "midway")
    assert run.info.status == "FINISHED"
    assert points(client, run.info.run_id, "a") == points(client, run.info.run_id, "b") == list(range(3000))
