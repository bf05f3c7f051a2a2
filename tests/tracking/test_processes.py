"""A journal and several processes: others that send what is left, forks, signals that end its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab.cli import main
from lab.tracking import journal

if TYPE_CHECKING:
    from mlflow import MlflowClient

_RUN = 'experiment="e", arm=None, stage="instruct", name="a", identity="i"'
# Makes and removes journals, as runs do that begin and end.
_OWNER = """
from lab.tracking.journal import Journal
for count in range(1500):
    made = Journal.new({"kind": "view", "count": count})
    made.append({"kind": "metrics"})
    made.remove()
print("done", flush=True)
"""
_SENDER = """
import sys
from lab.tracking.journal import Journal, left
print("ready", flush=True)
while True:
    for folder in left():
        if (taken := Journal.adopt(folder)) is not None:
            print("taken", taken.head(), flush=True)
            taken.remove()
"""
_RUNS = f"""
from lab.tracking import start_run
for number in range(8):
    with start_run({_RUN.replace('"i"', "str(number)")}) as run:
        for step in range(50):
            run.metrics({{"train/loss": step}}, step)
"""
_SYNC = """
from lab.cli import main
from lab.tracking import store
store._import()
print("ready", flush=True)
while True:
    main(["sync"])
"""
# A child that records and leaves its parent's block by an exception of its own, then one that stays.
_FORKS = f"""
import os, sys, time
from lab.tracking import start_run
with start_run({_RUN}) as run:
    run.metrics({{"train/loss": 0.0}}, 0)
    if os.fork() == 0:
        run.metrics({{"train/loss": 1.0}}, 1)
        sys.exit(0)
    os.wait()
    run.metrics({{"train/loss": 2.0}}, 2)
    run.flush()
    if (child := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    sys.stdin.readline()
"""
_STOPPED = f"""
import sys, time
from lab.tracking import start_run
from lab.training.preemption import Preempted, install
install()
try:
    with start_run({_RUN}) as run:
        run.metrics({{"train/loss": 0.0}}, 0)
        print("now", flush=True)
        time.sleep(60)
except Preempted as stop:
    sys.exit(stop.code)
"""


def begin(code: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ended(process: subprocess.Popen[str]) -> str:
    """Kills it; what it has said since."""
    process.kill()
    return process.communicate()[0]


def steps(client: MlflowClient) -> dict[str, tuple[str, list[int]]]:
    """Identity of a run -> its status and the steps that it has recorded."""
    place = client.get_experiment_by_name("e")
    runs = client.search_runs([place.experiment_id]) if place else []
    found = {}
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "train/loss")
        recorded = sorted(point.step for point in history)
        assert run.data.tags["identity"] not in found
        found[run.data.tags["identity"]] = (run.info.status, recorded)
    return found


def test_nobody_takes_a_journal_that_begins_or_ends(client: MlflowClient) -> None:
    sender = begin(_SENDER)
    assert first_line(sender) == "ready"
    owner = begin(_OWNER)
    said = owner.communicate(timeout=100)[0]
    assert ended(sender) == ""
    assert (owner.returncode, said) == (0, "done\n")
    assert journal.left() == []


def test_sync_leaves_the_runs_alone_that_send_for_themselves(client: MlflowClient) -> None:
    sync = begin(_SYNC)
    assert first_line(sync) == "ready"
    runs = begin(_RUNS)
    runs.communicate(timeout=100)
    said = ended(sync)
    assert runs.returncode == 0
    assert said.count("1 run still being recorded") >= 8
    assert said.count(" 0 runs sent") == said.count(" sent,")
    assert steps(client) == {str(number): ("FINISHED", list(range(50))) for number in range(8)}


def test_a_fork_records_but_neither_ends_the_run_nor_keeps_its_journal(
    client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = begin(_FORKS)
    child = int(first_line(parent))
    try:
        assert steps(client)["i"][0] == "RUNNING"
        parent.kill()
        parent.wait()
        assert Path(f"/proc/{child}").exists()
        assert main(["sync"]) == 0
        assert "1 run sent, 0 runs still being recorded" in capsys.readouterr().out
    finally:
        os.kill(child, signal.SIGKILL)
    assert steps(client) == {"i": ("KILLED", [0, 1, 2])}


@pytest.mark.parametrize("handled", [True, False])
def test_a_signal_that_ends_a_run_loses_nothing(client: MlflowClient, handled: bool) -> None:
    """SLURM's before a preemption; also where the program does not know it."""
    code = _STOPPED if handled else _STOPPED.replace("install()\n", "")
    stopped = begin(code)
    assert first_line(stopped) == "now"
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(60) == (75 if handled else -signal.SIGTERM)
    assert len(journal.left()) == (0 if handled else 1)
    assert main(["sync"]) == 0
    assert steps(client) == {"i": ("KILLED", [0])}
