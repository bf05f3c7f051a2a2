"""The repository of one trial, and the runners that work in it."""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

MARK = "FAULTS_TRIAL"  # environment variable that marks every process of a trial
PATIENCE = 120.0  # seconds after which a process that does not end counts as hung
_DONE = ("works", "ended")  # what a process notes that has made an output


class Hung(Exception):
    """A process did not end in time."""


class Runner:
    """One `lab repro`.

    Args:
        pipeline: that it runs.
        words: its arguments.
        environment: on top of the pipeline's.
    """

    def __init__(self, pipeline: Pipeline, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self.log = pipeline.logs / f"{pipeline.mark}.{len(pipeline.runners)}.log"
        self.pipeline, self.began = pipeline, time.time()
        self.seen = len(pipeline.events())
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lab", "repro", *words],
                cwd=pipeline.folder,
                env={**pipeline.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def code(self, seconds: float = PATIENCE) -> int:
        """Its exit code, awaited."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise Hung(f"the runner has not ended after {seconds:.0f} s: {self.tail()}") from error

    def tail(self) -> str:
        """The end of what it said."""
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-4:])

    def work_began(self) -> bool:
        """Wait for its first node; False if it ended without one."""
        return self.wait(lambda: len(self.pipeline.events()) > self.seen)

    def resumed(self) -> bool:
        """Whether a node has gone on from a checkpoint since it began."""
        return any(event["event"] == "resumed" for event in self.pipeline.events()[self.seen :])

    def finds(self, pattern: str, passed: Sequence[str]) -> str:
        """Wait for a path of the pipeline's that was not there; "" if the runner ended before."""
        fresh: list[str] = []

        def look() -> bool:
            fresh.extend(path for path in self.pipeline.find(pattern) if path not in passed)
            return bool(fresh)

        return fresh[0] if self.wait(look, pause=0.0) else ""

    def changes(self, file: Path) -> bool:
        """Wait until a file is not what it was; False if the runner ended before."""
        before = _stamp(file)
        return self.wait(lambda: _stamp(file) != before, pause=0.0)

    def wait(self, ready: Callable[[], object], pause: float = 0.005) -> bool:
        """Wait for something; False if the runner ended before."""
        deadline = time.monotonic() + PATIENCE
        while not ready():
            if self.ended:
                return bool(ready())
            if time.monotonic() > deadline:
                raise Hung(f"waited {PATIENCE:.0f} s in vain: {self.tail()}")
            time.sleep(pause)
        return True

    def lasts(self, seconds: float) -> bool:
        """Wait so long; False if the runner ended before."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return not self.ended


class Pipeline:
    """The repository of one trial.

    Args:
        folder: a copy of the template.
        graph: node -> nodes whose outputs it takes.
        logs: folder for what runners say.
    """

    def __init__(self, folder: Path, graph: Mapping[str, Sequence[str]], logs: Path) -> None:
        self.folder, self.graph, self.logs = folder, graph, logs
        self.runners: list[Runner] = []
        self.mark = f"{folder.name}-{uuid.uuid4().hex[:12]}"
        self.environment = {
            **os.environ,
            MARK: self.mark,
            "PYTHONPATH": str(folder),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "DVC_SITE_CACHE_DIR": str(folder / ".lab" / "site"),  # on the same disk as all else
            "DVC_NO_ANALYTICS": "true",
            "LAB_TRACKING": "off",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *words: str, jobs: int = 2, **environment: str) -> Runner:
        """Start `lab repro`."""
        self.runners.append(Runner(self, ["--jobs", str(jobs), *words], environment))
        return self.runners[-1]

    def complete(self, *words: str) -> None:
        """Give the command until it succeeds: a node that was killed fails once, and so may its run.

        Raises:
            Hung: it does not end, or not well.
        """
        for _ in range(3):
            runner = self.start(*words)
            if runner.code() == 0:
                return
        raise Hung(f"exit code {runner.code()} again and again: {runner.tail()}")

    def node(self, name: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a node by hand, as a job of a cluster or another person would."""
        return subprocess.Popen(
            [sys.executable, "-P", "step.py", name, *self.graph[name]],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def dvc(self, *words: str) -> str:
        """What a DVC command says."""
        command = [sys.executable, "-m", "dvc", *words]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )
        return done.stdout + done.stderr

    def stale(self) -> list[str]:
        """The nodes that DVC finds changed."""
        return [address.rpartition(":")[2] for address in json.loads(self.dvc("status", "--json"))]

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """What nodes noted, in order."""
        try:
            lines = (self.folder / ".lab" / "events").read_bytes().split(b"\n")[:-1]
        except OSError:
            return []
        found = [json.loads(line) for line in lines if line.endswith(b"}")]
        return [event for event in found if not kinds or event["event"] in kinds]

    def find(self, pattern: str) -> list[str]:
        """Paths in the pipeline; those that vanish meanwhile do no harm."""
        return glob.glob(pattern, root_dir=self.folder)

    def recorded(self) -> set[str]:
        """Nodes that dvc.lock has."""
        lock = self.folder / "dvc.lock"
        return set(yaml.safe_load(lock.read_text())["stages"]) if lock.exists() else set()

    def published(self, node: str) -> list[int]:
        """Processes that have made and published the output of a node."""
        pids = {
            kind: [event["pid"] for event in self.events(kind) if event["node"] == node] for kind in _DONE
        }
        return [pid for pid in pids["works"] if pid in pids["ended"]]

    def at_work(self) -> list[int]:
        """Processes of nodes that have begun and still live."""
        pids = dict.fromkeys(event["pid"] for event in self.events("start"))
        return [pid for pid in pids if self.owns(pid)]

    def owns(self, pid: int) -> bool:
        """Whether a process belongs to this trial."""
        try:
            return self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def kill(self, pid: int, number: int = signal.SIGKILL) -> bool:
        """Signal a process of this trial, whether it was there."""
        if not self.owns(pid):
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    def await_end(self, pid: int) -> None:
        """Wait until a process is gone."""
        deadline = time.monotonic() + PATIENCE
        while self.owns(pid) and time.monotonic() < deadline:
            time.sleep(0.001)

    def processes(self) -> list[int]:
        """All that belongs to this trial."""
        return [pid for pid in psutil.pids() if self.owns(pid)]

    def result(self) -> dict[str, Any]:
        """All that has to be as in an undisturbed run."""
        files = {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for place in ("output", "metrics")
            for path in sorted((self.folder / place).rglob("*"))
            if path.is_file()
        }
        lock = yaml.safe_load((self.folder / "dvc.lock").read_text())
        return {"files": files, "lock": lock["stages"]}


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino
