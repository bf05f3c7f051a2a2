"""Daemons of a SLURM that are killed."""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from page import ROOT

from injection.laboratory import EVERY, GRAPH, Laboratory, Outcome, Scenario, Skipped
from injection.pipeline import PATIENCE, Pipeline

if TYPE_CHECKING:
    from lab.graph.cluster.jobs import JobState

SUBMIT = """
from pathlib import Path
from lab.graph.ablation import Resources
from lab.graph.cluster.slurm import submit
from lab.graph.record import Recorder
from lab.graph.snapshot import take_snapshot

home = Path.cwd()
with Recorder(home) as recorder:
    pipeline = recorder.read_pipeline(home / "dvc.yaml")
needs = Resources(memory="100M", time="10")
waiting = pipeline.descendants(pipeline.stale)
submit(pipeline.tasks, lambda: waiting, home, take_snapshot().folder, lambda name: needs)
"""

_STUCK = ("held", "Dependency", "Nodes required")  # in the reasons of jobs that nothing but a person helps


def on_slurm(kill: Callable[[Any, Pipeline, random.Random], int]) -> Scenario:
    """Kill daemons of a SLURM at random moments.

    Args:
        kill: does it, on a cluster; returns how many nodes of the graph died of it.
    """

    def trial(laboratory: Laboratory, chance: random.Random) -> Outcome:
        laboratory.expected(GRAPH)
        cluster = laboratory.once(start_cluster)
        pipeline, outcome = laboratory.pipeline(GRAPH), Outcome()
        for attempt in range(3):
            for name in cluster.nodes:  # as an administrator would: a lost controller drains nodes
                cluster.run("scontrol", "update", f"nodename={name}", "state=resume")
            command = [sys.executable, "-c", SUBMIT]
            done = subprocess.run(command, cwd=pipeline.folder, env=pipeline.environment, capture_output=True)
            if done.returncode:
                outcome.problems.append(f"submission: {done.stderr.decode()[-300:]}")
                break
            for _ in range(0 if attempt else 2):
                _ended(pipeline, chance.uniform(2, 12))
                outcome.faults += 1
                outcome.allowed += EVERY * kill(cluster, pipeline, chance)
            if not _ended(pipeline, 2 * PATIENCE):
                outcome.problems.append(f"jobs do not end: {_shown(pipeline)}")
                break
            if len(pipeline.recorded()) == len(GRAPH):
                break
        else:
            outcome.problems.append(f"not recorded, given again: {_shown(pipeline)}")
        return laboratory.finish(pipeline, outcome)

    return trial


def start_cluster(laboratory: Laboratory) -> Any:
    """A SLURM of three nodes on this machine, the one that tests use.

    Raises:
        Skipped: there can be none here.
    """
    sys.path.insert(0, str(ROOT / "tests" / "graph" / "cluster"))
    slurm = importlib.import_module("cluster")
    cluster = slurm.temporary_cluster(nodes=3, spare=0)
    laboratory.at_end.callback(slurm.remove, cluster)
    os.environ["SLURM_CONF"] = str(cluster.conf)
    try:
        cluster.start()
    except slurm.Unavailable as error:
        raise Skipped(str(error)) from error
    return cluster


def kill_daemon(cluster: Any, pipeline: Pipeline, chance: random.Random) -> int:
    """A node's daemon; what runs there goes on, unseen. It comes back after SLURM has missed it."""
    name = chance.choice(cluster.nodes)
    cluster.kill_node(name)
    time.sleep(chance.choice([1.0, 25.0]))
    cluster.start_node(name)
    return 0


def lose_machine(cluster: Any, pipeline: Pipeline, chance: random.Random) -> int:
    """A node's daemon and all that runs there, as when a machine loses power."""
    name = chance.choice(cluster.nodes)
    cluster.kill_node(name)
    mark = f"SLURMD_NODENAME={name}\0".encode()
    lost = 0
    for pid in psutil.pids():
        with suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            if mark in environment and f"SLURM_CONF={cluster.conf}\0".encode() in environment:
                lost += pid in pipeline.at_work()
                os.kill(pid, signal.SIGKILL)
    time.sleep(chance.choice([1.0, 25.0]))
    cluster.start_node(name)
    return lost


def kill_controller(cluster: Any, pipeline: Pipeline, chance: random.Random) -> int:
    """The controller, which comes back and reads what it had saved."""
    os.kill(int((cluster.base / "run" / "slurmctld").read_text()), signal.SIGKILL)
    time.sleep(chance.uniform(0.5, 5))
    cluster.start_controller()
    return 0


def _shown(pipeline: Pipeline) -> str:
    return ", ".join(f"{name} {state}" for name, state in _states(pipeline).items() if state.state != "done")


def _states(pipeline: Pipeline) -> dict[str, JobState]:
    from lab.graph.cluster.slurm import states

    return states(pipeline.folder)


def _ended(pipeline: Pipeline, seconds: float) -> bool:
    """Wait, at most so long, until nothing goes on by itself; whether it has come to that."""
    from lab.errors import LabError

    deadline, still = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        with suppress(LabError):  # while the controller is away
            live = [state for state in _states(pipeline).values() if state.live]
            still = (
                still + 1 if all("held" in one.reason or "Dependency" in one.reason for one in live) else 0
            )
            if not live or still > 20:
                return True
        time.sleep(0.5)
    return False
