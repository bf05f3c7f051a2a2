"""Makes the pipelines of trials, and says whether one came to what an undisturbed run comes to."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from page import ROOT, checkout

from injection.pipeline import Hung, Pipeline

EVERY = 10  # steps between two checkpoints of a node
STEPS = 40  # of a node

GRAPH: dict[str, list[str]] = {
    "data": [],
    "encoder": ["data"],
    "judge": ["data"],
    **{f"arm{number}": ["encoder"] for number in range(1, 9)},
    "compare": [*(f"arm{number}" for number in range(1, 9)), "judge"],
}
SMALL: dict[str, list[str]] = {"data": [], "arm1": ["data"], "arm2": ["data"], "compare": ["arm1", "arm2"]}

PART = '''
"""Code that nodes run."""

import hashlib


def step(state: bytes, done: int, value: int) -> bytes:
    return hashlib.sha256(state + b"%d %d {salt}" % (done, value)).digest()
'''

# `lab graph record` knows ablations alone; in a pipeline of quick nodes it records as well; the rest is as it
# was.
RECORD = """
import os, sys
from pathlib import Path

if sys.argv[1:3] == ["graph", "record"]:
    from lab.graph.record import Recorder
    from lab.graph.snapshot import take_snapshot

    with Recorder(Path.cwd(), take_snapshot()) as recorder:
        recorder.record(recorder.read_pipeline(Path.cwd() / "dvc.yaml").tasks[sys.argv[3]])
else:
    from lab.cli import main

    sys.exit(main())
"""

T = TypeVar("T")
Scenario = Callable[["Laboratory", random.Random], "Outcome"]


class Skipped(Exception):
    """Why this machine cannot show a scenario."""


@dataclass
class Outcome:
    """What became of one trial.

    Attributes:
        faults: injected.
        problems: what should have held and did not.
        lost: steps that were executed more than once.
        allowed: how many of them the checkpoints explain.
        recovery: seconds from a command that was given again to the first node that it started, each.
    """

    faults: int = 0
    problems: list[str] = field(default_factory=list)
    lost: int = 0
    allowed: int = 0
    recovery: list[float] = field(default_factory=list)


class Laboratory:
    """Makes pipelines and knows what they come to when nothing happens.

    Args:
        folder: for all of them.

    Attributes:
        at_end: what has to be done after the last trial.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.code = folder / "code"
        checkout(self.code)
        (self.code / "lab" / "__main__.py").write_text(RECORD)
        quick = self.code / "components" / "quick"
        quick.mkdir()
        for part in ("common", "special"):
            (quick / f"{part}.py").write_text(PART.format(salt=part))
        (quick / "__init__.py").touch()
        self._templates: dict[str, Path] = {}
        self._expected: dict[str, dict[str, Any]] = {}
        self.span: dict[str, float] = {}  # seconds of work of an undisturbed run
        self._shared: dict[Any, Any] = {}
        self._count = 0
        self.at_end = ExitStack()

    def pipeline(self, graph: Mapping[str, Sequence[str]], folder: Path | None = None) -> Pipeline:
        """A fresh one.

        Args:
            graph: of its nodes.
            folder: to make, one of the laboratory's own if not stated.
        """
        key = _key(graph)
        if key not in self._templates:
            self._templates[key] = self._template(graph, self.folder / f"template{len(self._templates)}")
        self._count += 1
        place = folder or self.folder / f"trial{self._count}"
        return Pipeline(Path(shutil.copytree(self._templates[key], place, symlinks=True)), graph, self.folder)

    def expected(self, graph: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The result of an undisturbed run."""
        key = _key(graph)
        if key not in self._expected:
            pipeline = self.pipeline(graph)
            pipeline.complete()
            times = [event["time"] for event in pipeline.events()]
            self.span[key] = max(times) - min(times)
            self._expected[key] = pipeline.result()
            if problems := self.check(pipeline, 0)[0]:
                raise SystemExit(f"an undisturbed run fails: {problems}")
            self.drop(pipeline)
        return self._expected[key]

    def seconds(self, graph: Mapping[str, Sequence[str]]) -> float:
        """How long an undisturbed run works."""
        self.expected(graph)
        return self.span[_key(graph)]

    def check(self, pipeline: Pipeline, allowed: int) -> tuple[list[str], int]:
        """What of a completed trial is not as it has to be, and the steps that were executed in vain."""
        expected, problems = self._expected[_key(pipeline.graph)], []
        found = pipeline.result()
        for kind in ("files", "lock"):
            for name in sorted(expected[kind].keys() | found[kind].keys()):
                if expected[kind].get(name) != found[kind].get(name):
                    problems.append(f"{kind}: {name} differs")
        executed = len(pipeline.events("step"))
        lost = executed - STEPS * len(pipeline.graph)
        if not 0 <= lost <= allowed:
            problems.append(f"{lost} steps in vain, {allowed} allowed")
        said = pipeline.dvc("repro")
        if "up to date" not in said or len(pipeline.events("step")) != executed:
            problems.append(f"dvc repro: {' '.join(said.split())[-200:]}")
        problems += [f"cache: {name}" for name in _damaged_objects(pipeline.folder)]
        problems += self._left(pipeline)
        return problems, lost

    def finish(self, pipeline: Pipeline, outcome: Outcome) -> Outcome:
        """Complete a trial and look at what it came to."""
        try:
            pipeline.complete()
            problems, outcome.lost = self.check(pipeline, outcome.allowed)
            outcome.problems += problems
            outcome.recovery = list(_recovery(pipeline))
        except Hung as error:
            outcome.problems.append(str(error))
        for pid in pipeline.processes():
            pipeline.kill(pid)
        if not outcome.problems:
            self.drop(pipeline)
        return outcome

    def once(self, make: Callable[[Laboratory], T]) -> T:
        """What several trials share, made when the first of them asks."""
        if make not in self._shared:
            self._shared[make] = make(self)
        return cast(T, self._shared[make])

    def drop(self, pipeline: Pipeline) -> None:
        """Remove a pipeline and the logs of its runners."""
        shutil.rmtree(pipeline.folder, ignore_errors=True)
        for runner in pipeline.runners:
            runner.log.unlink()

    def _left(self, pipeline: Pipeline) -> list[str]:
        """What should not be there after the end."""
        home = pipeline.folder
        patterns = (".lab/work/*", "output/.*", "metrics/.*", ".lab/claims/*")
        places = [path for pattern in patterns for path in home.glob(pattern)]
        # beside a claim, its lock stays; and a draft where a process died in the midst of claiming
        unclaimed = [path for path in places if path.parent.name != "claims" or not path.suffix]
        problems = [f"left: {path.relative_to(home)}" for path in unclaimed]
        git = subprocess.run(["git", "status", "-s", "-uall"], cwd=home, capture_output=True, text=True)
        allowed = {"dvc.lock", *(f"metrics/{name}.json" for name in pipeline.graph)}
        problems += [f"git: {line}" for line in git.stdout.splitlines() if line[3:] not in allowed]
        deadline = time.monotonic() + 5
        while (processes := pipeline.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return problems + [f"process {pid} is left" for pid in processes]

    def _template(self, graph: Mapping[str, Sequence[str]], folder: Path) -> Path:
        shutil.copytree(self.code, folder)
        smoke = ROOT / "experiments" / "ablations" / "smoke" / "params.yaml"
        shutil.copyfile(smoke, folder / "params.yaml")  # `lab repro` wants one, the nodes do not
        (folder / ".lab").mkdir()
        shutil.copyfile(Path(__file__).with_name("node.py"), folder / "step.py")
        settings = {name: settings_of(name) for name in graph}
        (folder / "nodes.json").write_text(json.dumps(settings, indent=1))
        stages = {
            name: {
                "cmd": " ".join(["python", "-P", "step.py", name, *needs]),
                "params": [{"nodes.json": [name]}],
                "deps": [
                    "step.py",
                    f"components/quick/{settings[name]['part']}.py",
                    *(f"output/{need}" for need in needs),
                ],
                "outs": [f"output/{name}"],
                "metrics": [{f"metrics/{name}.json": {"cache": False}}],
            }
            for name, needs in graph.items()
        }
        (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
        environment = {**os.environ, "DVC_SITE_CACHE_DIR": str(folder / ".lab" / "site")}
        for command in (
            ["git", "init", "-q", "."],
            [sys.executable, "-m", "dvc", "init", "-q"],
            ["git", "add", "-A"],
            ["git", "-c", "user.name=lab", "-c", "user.email=lab@localhost", "commit", "-qm", "graph"],
        ):
            subprocess.run(command, cwd=folder, env=environment, check=True)
        shutil.rmtree(folder / ".lab" / "site", ignore_errors=True)
        return folder


def settings_of(name: str) -> dict[str, Any]:
    part = "special" if name in ("arm1", "arm2", "arm3", "arm4") else "common"
    return {"steps": STEPS, "every": EVERY, "pause": 0.005, "value": 1, "part": part, "bytes": 200_000}


def _key(graph: Mapping[str, Sequence[str]]) -> str:
    return json.dumps({name: list(needs) for name, needs in graph.items()})


def _recovery(pipeline: Pipeline) -> Iterator[float]:
    starts = [event["time"] for event in pipeline.events("start")]
    ends = [*(runner.began for runner in pipeline.runners[1:]), float("inf")]
    for runner, end in list(zip(pipeline.runners, ends, strict=True))[1:]:
        if within := [start for start in starts if runner.began < start < end]:
            yield min(within) - runner.began


def _damaged_objects(folder: Path) -> Iterator[str]:
    """Files of DVC's cache that are not what their names say."""
    for path in sorted((folder / ".dvc" / "cache" / "files" / "md5").glob("??/*")):
        name = f"{path.parent.name}{path.name}"
        if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != name.removesuffix(".dir"):
            yield name
