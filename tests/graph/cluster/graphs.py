"""Graphs of quick nodes to run on a SLURM: what their stages do is said for each (fake/stage.py)."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.graph.ablation import Resources
from lab.graph.cluster.jobs import JobState
from lab.graph.cluster.slurm import states, submit
from lab.graph.task import Task


def needs(**more: Any) -> Resources:
    """Little, so that all nodes of a test run at once."""
    return Resources(**{"memory": "50M", "time": "5", **more})


@dataclass
class Graph:
    """A graph in a folder, with what its stages do and what became of them."""

    folder: Path
    code: Path
    tasks: dict[str, Task] = field(default_factory=dict)
    resources: dict[str, Resources] = field(default_factory=dict)
    plan: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, *parents: str, resources: Resources | None = None, **plan: Any) -> None:
        """A node; `plan` says what its stage does (fake/stage.py)."""
        self.tasks[name] = Task(
            name=name,
            command=f"python -m stage {name}",
            folder=self.folder,
            file=self.folder / "dvc.yaml",
            deps=(),
            outs=(),
            parents=frozenset(parents),
            home=self.folder,
        )
        self.resources[name] = resources or needs()
        self.expect(name, **plan)

    def expect(self, name: str, **plan: Any) -> None:
        """Change what a stage does."""
        self.plan[name] = plan
        (self.folder / "plan.json").write_text(json.dumps(self.plan))

    def submit(self, waiting: Collection[str] | None = None) -> dict[str, str]:
        """Submit what is not recorded."""

        def stale() -> Collection[str]:
            return set(self.tasks) - set(self.recorded()) if waiting is None else waiting

        return submit(self.tasks, stale, self.folder, self.code, lambda name: self.resources[name])

    def newer_code(self) -> None:
        """Another snapshot, after an edit."""
        self.code = Path(shutil.copytree(self.code, self.code.with_name(self.code.name + "+")))

    def recorded(self) -> list[str]:
        file = self.folder / "recorded"
        return file.read_text().split() if file.exists() else []

    def events(self, name: str, kind: str) -> list[dict[str, Any]]:
        file = self.folder / "events"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line for line in lines if line["node"] == name and line["event"] == kind]

    def log(self, name: str) -> str:
        return self.tasks[name].log.read_text()

    def until(
        self, ready: Callable[[Mapping[str, JobState]], bool], seconds: float = 60
    ) -> dict[str, JobState]:
        """Wait for a state of the jobs."""
        end = time.monotonic() + seconds
        while not ready(now := states(self.folder)):
            assert time.monotonic() < end, {name: str(state) for name, state in now.items()}
            time.sleep(0.2)
        return now

    def until_ended(self, seconds: float = 60) -> dict[str, str]:
        """Wait until nothing is live; what became of each node."""
        now = self.until(lambda now: not any(state.live for state in now.values()), seconds)
        return {name: state.state for name, state in now.items()}

    def until_started(self, *names: str, times: int = 1) -> None:
        """Wait until stages work, and know signals."""
        self.until(lambda _: all(len(self.events(name, "start")) >= times for name in names))


def new_graph(folder: Path) -> Graph:
    """An empty graph, in folders whose names need care."""
    home, code = folder / "an 100% ablation", folder / "code's"
    home.mkdir()
    shutil.copytree(Path(__file__).parent / "fake", code, ignore=shutil.ignore_patterns("__pycache__"))
    return Graph(home, code)
