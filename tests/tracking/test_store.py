"""The store survives being created by several processes at once, and finds its place."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from lab.tracking import store

# Imports once and forks, so that four processes arrive within milliseconds and not within seconds.
_RACE = """
import os, mlflow
from lab.tracking import start_run
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        with start_run(experiment="race", arm="one", stage="instruct", name="worker", identity="") as run:
            run.metrics({"train/loss": 1.0}, step=1)
        os._exit(0 if run.id else 1)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
"""


def _environment() -> dict[str, str]:
    return {**os.environ, "LAB_TRACKING": "on", "PYTHONPATH": os.pathsep.join(sys.path)}


def test_four_processes_create_a_fresh_store_together(tmp_path: Path) -> None:
    environment = _environment()
    environment.pop("MLFLOW_TRACKING_URI", None)
    subprocess.run([sys.executable, "-c", _RACE], cwd=tmp_path, env=environment, check=True)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        names = [name for (name,) in database.execute("select name from runs order by name")]
        (points,) = database.execute("select count(*) from metrics where key = 'train/loss'").fetchone()
        (mode,) = database.execute("pragma journal_mode").fetchone()
    assert names == ["one", *["worker"] * 4]  # one arm, made once
    assert points == 4
    assert mode == "wal"
    assert not list(tmp_path.glob("mlflow.db.[0-9]*"))


@pytest.mark.parametrize("marker", [".git", ".dvc"])
def test_a_nested_pipeline_shares_the_store_of_its_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marker: str
) -> None:
    inner = tmp_path / "experiments" / "reference"
    inner.mkdir(parents=True)
    (inner / "params.yaml").touch()
    (tmp_path / marker).mkdir()
    monkeypatch.chdir(inner)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store.root() == tmp_path
    assert store.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    assert store.artifact_root() == f"file://{tmp_path}/mlartifacts"


def test_a_given_uri_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere/runs.db")
    assert store.artifact_root() == f"file://{tmp_path}/elsewhere/mlartifacts"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert store.artifact_root() is None


def test_nothing_heavy_is_imported_before_a_run_opens() -> None:
    heavy = "{'mlflow', 'torch', 'numpy', 'matplotlib'}"
    code = f"import lab.tracking, sys; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment()
    )
    assert done.stdout.strip() == "set()"
