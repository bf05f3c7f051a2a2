"""Many processes that record at once: nothing is lost, nothing is there twice, whatever the store."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow_server import running_server

if TYPE_CHECKING:
    from postgres import Postgres

_WRITERS, _STEPS = 8, 300
# Imports once and forks, so that the writers arrive within milliseconds. Where the store is no file each is a
# machine of its own: it shares neither folder nor locks on files with the others.
_RACE = f"""
import os, sys, tempfile, mlflow
from lab.tracking import start_run
children = []
for writer in range({_WRITERS}):
    child = os.fork()
    if child == 0:
        if not os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite"):
            os.makedirs(f"{{writer}}/.git")
            os.chdir(str(writer))
            tempfile.tempdir = os.getcwd()
        with start_run(experiment="race", arm="one", stage="instruct", name=f"writer {{writer}}") as run:
            for step in range({_STEPS}):
                run.metrics({{"train/loss": writer + step, "train/text": 1.0}}, step)
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
"""


@pytest.fixture(params=["sqlite", "server", "postgres"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, empty_store: Path) -> str:
    """A store of each kind; the PostgreSQL's database is empty, so somebody has to make its tables."""
    if request.param == "server":
        return str(request.getfixturevalue("server_uri"))
    if request.param == "postgres":
        database: Postgres = request.getfixturevalue("postgres")
        return database.new_database()
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="module")
def server_uri(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    with running_server(f"sqlite:///{folder}/mlflow.db", folder) as server:
        yield server.uri


def test_eight_writers_lose_nothing(uri: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    environment = {**os.environ, "LAB_TRACKING": "on", "MLFLOW_TRACKING_URI": uri}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", _RACE], cwd=tmp_path, env=environment, check=True)
    assert not list(tmp_path.rglob("journal.jsonl"))
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("race")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert Counter(run.data.tags["level"] for run in runs) == {"stage": _WRITERS, "arm": 1}
    (arm,) = (run for run in runs if run.data.tags["level"] == "arm")
    assert arm.info.status == "FINISHED"
    for run in runs:
        if run is arm:
            continue
        writer = int(run.info.run_name.split()[1])
        assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", arm.info.run_id)
        points = client.get_metric_history(run.info.run_id, "train/loss")
        assert sorted((point.step, point.value) for point in points) == [
            (step, float(writer + step)) for step in range(_STEPS)
        ]
        assert len(client.get_metric_history(run.info.run_id, "train/text")) == _STEPS
