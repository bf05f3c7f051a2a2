"""`lab ui`: where it leads, and what it refuses."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab.cli import main, ui


def experiments(*names: str) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(name=name, experiment_id=str(number), tags={}) for number, name in enumerate(names)
    ]


def test_links_lead_to_the_runs_of_this_folder_first() -> None:
    text = ui.links("http://127.0.0.1:5000", experiments("Default", "other", "mine"), "mine")
    assert text.splitlines() == [
        "MLflow, the runs of",
        "  mine: http://127.0.0.1:5000/#/experiments/2/runs?workflowType=machine_learning",
        "  other: http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning",
    ]
    assert "make run" in ui.links("http://x", experiments("Default"), None)


def test_a_taken_port_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 2
    assert f"lab ui --port {port + 1}" in capsys.readouterr().err


def test_serves_on_loopback_with_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lab.tracking.store as store

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = SimpleNamespace(search_experiments=list)
    monkeypatch.setattr(store, "locked_client", lambda: nullcontext(client))
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "")  # set by the verb, and taken back after the test
    served: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, command: served.append(command))
    assert main(["ui", "--port", "5999"]) == 0
    (command,) = served
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]
    assert "--no-serve-artifacts" in command
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--workers") + 1] == "1"
    assert os.environ["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
