"""Fault injection: what becomes of a graph when runners, nodes, disks and files fail.

    .venv/bin/python benchmarks/faults.py [SCENARIO ...] [--trials N] [--seed 0] [--write]

Every trial is a git and DVC repository of its own in a temporary folder, with a copy of the lab's code and a
graph of quick nodes, which `lab repro` runs. A node's steps are chained by hashes, so its output follows from
every step, from its settings and from its inputs. After the faults of a trial the same command is given until
the graph is complete; then all of this has to hold, or the trial has failed:

- every output, every metrics file and every entry of dvc.lock is that of an undisturbed run, byte for byte;
- `dvc repro` finds nothing to do, and git sees no file that should not be there;
- every object in DVC's cache has the hash that its name says;
- no process, no claim, no resumable state and no unfinished output is left;
- no more steps were repeated than lie between two checkpoints, for each node that was killed.

`--write` replaces the table in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import atexit
import glob
import hashlib
import importlib
import json
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
MARKS = "<!-- faults: begin -->", "<!-- faults: end -->"
MARK = "FAULTS_TRIAL"  # environment variable that marks every process of a trial
PATIENCE = 120.0  # seconds after which a process that does not end counts as hung
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

STEP = '''
"""A quick node. What happens around its work is what happens around every stage: `execute`."""

import hashlib, importlib, json, os, signal, sys, time, types
from pathlib import Path

sys.modules["torch"] = types.SimpleNamespace(set_num_threads=id, manual_seed=id)  # takes seconds to import

from lab.errors import LabError
from lab.graph.claim import ClaimedError
from lab.graph.execution import WORK, Context, execute
from lab.graph.node import Node, content_of, identify, identity_of

name, *needs = sys.argv[1:]
home, told, size = Path.cwd(), [], int(os.environ.get("CHECKPOINT", "1"))
settings = json.loads((home / "nodes.json").read_text())[name]
events = os.open(home / ".lab" / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(event, **more):
    line = {"node": name, "event": event, "pid": os.getpid(), "time": time.time(), **more}
    os.write(events, (json.dumps(line) + "\\n").encode())


def write(path, data):
    with open(path, "wb") as file:
        for at in range(0, len(data), 1 << 16):
            file.write(data[at : at + (1 << 16)])
        file.flush()
        os.fsync(file.fileno())


def blob(state):
    return hashlib.shake_256(state).digest(settings["bytes"])


def save(work, done, state):
    work.mkdir(parents=True, exist_ok=True)
    draft = work / f"last.{os.getpid()}.partial"
    try:
        write(draft, f"{done}\\n{state.hex()}\\n".encode() + blob(state) * size)
        os.replace(draft, work / "last")
    finally:
        draft.unlink(missing_ok=True)
    for left in work.glob("last.*.partial"):
        if not Path("/proc", left.name.split(".")[1]).exists():
            left.unlink(missing_ok=True)


def train(work, state):
    part, done, last = importlib.import_module("components.quick." + settings["part"]), 0, work / "last"
    if last.exists():
        with open(last, "rb") as file:
            done, state = int(file.readline()), bytes.fromhex(file.readline().decode())
            rest = file.read()
            if not rest or rest != blob(state) * (len(rest) // settings["bytes"]):
                sys.exit("a damaged checkpoint carries the name of a whole one")
        note("resumed", step=done)
    while done < settings["steps"]:
        time.sleep(float(os.environ.get("PAUSE", settings["pause"])))
        state, done = part.step(state, done, settings["value"]), done + 1
        note("step", step=done)
        if told:
            time.sleep(float(os.environ.get("LINGER", "0")))
        if told or done % settings["every"] == 0:
            save(work, done, state)
        if told:
            note("preempted", step=done)
            sys.exit(75)
    return state


def quick(context):
    note("works")
    digest = hashlib.sha256(json.dumps(settings).encode())
    for place in context.inputs.values():
        digest.update((place / "weights").read_bytes())
    state = train(context.node.work, digest.digest())
    (context.out / "parts").mkdir()
    write(context.out / "weights", blob(state))
    write(context.out / "parts" / "head", state)
    return {"score": int.from_bytes(state[:4], "big") / 2**32}


for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda *_: told.append(1))
note("start", code=os.environ["PYTHONPATH"].split(os.pathsep)[0])
while "GATE" in os.environ and not Path(os.environ["GATE"]).exists():
    time.sleep(0.001)
try:
    inputs = {need: home / "output" / need for need in needs}
    upstream = {need: identity_of(place) for need, place in inputs.items()}
    content = content_of("quick", name, settings, [f"components/quick/{settings['part']}.py"], upstream)
    node = Node("quick", name, content, home / "output" / name, home / ".lab" / "work" / identify(content))
    WORK["quick"] = quick
    params = types.SimpleNamespace(name="faults", seed=0, system="", threads=1, words=dict)
    numbers = home / "metrics" / f"{name}.json"
    execute(Context(home, params, "quick", "", "", "", node, inputs, {}, {}, numbers, {}))
    note("ended")
except LabError as error:
    if isinstance(error, ClaimedError):
        note("refused", why=str(error))
    print(f"lab: error: {error}", file=sys.stderr)
    sys.exit(error.code)
'''

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

_DONE = ("works", "ended")  # what a process notes that has made an output


class Hung(Exception):
    """A process did not end in time."""


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
            [sys.executable, "step.py", name, *self.graph[name]],
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


class Laboratory:
    """Makes pipelines and knows what they come to when nothing happens.

    Args:
        folder: for all of them.
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
        self._training: Training | None = None
        self._cluster: Any = None
        self._count = 0

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

    def cluster(self) -> Any:
        """A SLURM of three nodes on this machine, the one that tests use."""
        if self._cluster is None:
            sys.path.insert(0, str(ROOT / "tests" / "graph" / "cluster"))
            slurm = importlib.import_module("cluster")
            made = slurm.temporary_cluster(nodes=3, spare=0)
            os.environ["SLURM_CONF"] = str(made.conf)
            try:
                made.start()
            except slurm.Unavailable as error:
                slurm.remove(made)
                raise Skipped(str(error)) from error
            self._cluster = made
        return self._cluster

    def close(self) -> None:
        """End the cluster, if there is one."""
        if self._cluster is not None:
            importlib.import_module("cluster").remove(self._cluster)

    def training(self) -> Training:
        """A tiny training pipeline, complete up to its last training stage."""
        if self._training is None:
            self._training = Training(self)
        return self._training

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
        (folder / "step.py").write_text(STEP)
        settings = {name: _settings(name) for name in graph}
        (folder / "nodes.json").write_text(json.dumps(settings, indent=1))
        stages = {
            name: {
                "cmd": " ".join(["python", "step.py", name, *needs]),
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


def checkout(folder: Path) -> None:
    """Copy the lab's code, as it is now, to a folder of its own."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for package in ("lab", "components"):
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    shutil.copyfile(ROOT / ".dvcignore", folder / ".dvcignore")
    (folder / ".gitignore").write_text("output/\n.lab/\n__pycache__/\n")


def _settings(name: str) -> dict[str, Any]:
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


# -- kills ---------------------------------------------------------------------------------------------------

Scenario = Callable[[Laboratory, random.Random], Outcome]
Kill = Callable[[Pipeline, Runner, random.Random], int]


def _at_random(kill: Kill, jobs: int = 2, kills: int = 4) -> Scenario:
    """Kill something several times at random moments of the work, and start again each time.

    Args:
        kill: what; returns how many nodes it killed, -1 where there was nothing to kill.
        jobs: nodes at once.
        kills: at most, in a trial.
    """

    def trial(laboratory: Laboratory, chance: random.Random) -> Outcome:
        span = laboratory.seconds(GRAPH) / 2  # or trials would end before their last kill
        pipeline, outcome = laboratory.pipeline(GRAPH), Outcome()
        for _ in range(kills):
            runner = pipeline.start(jobs=jobs)
            if not runner.work_began() or not runner.lasts(chance.uniform(0, span)):
                break
            _strike(pipeline, runner, chance, kill, outcome)
            runner.code()
        return laboratory.finish(pipeline, outcome)

    return trial


def _strike(pipeline: Pipeline, runner: Runner, chance: random.Random, kill: Kill, outcome: Outcome) -> None:
    nodes = kill(pipeline, runner, chance)
    if nodes >= 0:
        outcome.faults += 1
        outcome.allowed += EVERY * nodes


def _runner(pipeline: Pipeline, runner: Runner, chance: random.Random) -> int:
    """The runner alone; its guard has the nodes save their state and end."""
    runner.process.kill()
    return 0


def _node(pipeline: Pipeline, runner: Runner, chance: random.Random) -> int:
    """One node, while its runner goes on."""
    runner.wait(pipeline.at_work)
    nodes = pipeline.at_work()
    return 1 if nodes and pipeline.kill(chance.choice(nodes)) else -1


def _both(pipeline: Pipeline, runner: Runner, chance: random.Random) -> int:
    """The runner and one of its nodes."""
    nodes = pipeline.at_work()
    runner.process.kill()
    return int(bool(nodes) and pipeline.kill(chance.choice(nodes)))


def _everything(pipeline: Pipeline, runner: Runner, chance: random.Random) -> int:
    """Every process, the guard too, as when a container is taken away."""
    nodes, pids = len(pipeline.at_work()), pipeline.processes()
    for pid in pids:
        pipeline.kill(pid)
    return nodes


def _eight(laboratory: Laboratory, chance: random.Random) -> Outcome:
    """The runner with eight nodes at work."""
    laboratory.expected(GRAPH)
    pipeline, outcome = laboratory.pipeline(GRAPH), Outcome()
    runner = pipeline.start(jobs=8, PAUSE="0.05")
    if runner.wait(lambda: len(pipeline.at_work()) == 8):
        time.sleep(chance.uniform(0, 1.0))
        _strike(pipeline, runner, chance, _runner, outcome)
    return laboratory.finish(pipeline, outcome)


def _after_resume(laboratory: Laboratory, chance: random.Random) -> Outcome:
    """Everything, then everything again in the first step that is resumed."""
    span = laboratory.seconds(GRAPH)
    pipeline, outcome = laboratory.pipeline(GRAPH), Outcome()
    runner = pipeline.start()
    if runner.work_began() and runner.lasts(chance.uniform(0, span)):
        _strike(pipeline, runner, chance, _everything, outcome)
    runner.code()
    for _ in range(2):
        runner = pipeline.start()
        if not runner.wait(runner.resumed, pause=0.001):
            break
        _strike(pipeline, runner, chance, _everything, outcome)
        runner.code()
    return laboratory.finish(pipeline, outcome)


def _while_there_is(pattern: str, kills: int = 5) -> Scenario:
    """Kill nodes in the midst of writing.

    Args:
        pattern: of what is there while they write; a process id is part of its path.
        kills: in a trial.
    """

    def trial(laboratory: Laboratory, chance: random.Random) -> Outcome:
        laboratory.expected(GRAPH)
        pipeline, outcome = laboratory.pipeline(GRAPH), Outcome()
        for _ in range(2 * kills):
            runner = pipeline.start(CHECKPOINT="40")
            passed, path = pipeline.find(pattern), ""
            for _ in range(chance.randint(1, 5)):
                if not (path := runner.finds(pattern, passed)):
                    break
                passed.append(path)
            if not path:
                if runner.code() == 0:
                    break
                continue
            time.sleep(chance.uniform(0, 0.01))
            pid = next(int(part) for part in path.split(".") if part.isdigit())
            if pipeline.kill(pid):
                pipeline.await_end(pid)
                outcome.faults += (pipeline.folder / path).exists()  # otherwise it had finished writing
                outcome.allowed += EVERY
            runner.code()
            if outcome.faults == kills:
                break
        return laboratory.finish(pipeline, outcome)

    return trial


def _while_it_writes(name: str, most: int) -> Scenario:
    """Kill the runner as soon as it changes a file that DVC keeps its records in.

    Args:
        name: of the file.
        most: it is killed at one of so many changes.
    """

    def trial(laboratory: Laboratory, chance: random.Random) -> Outcome:
        laboratory.expected(GRAPH)
        pipeline, outcome = laboratory.pipeline(GRAPH), Outcome()
        file = pipeline.folder / name
        for _ in range(4):
            runner = pipeline.start()
            if not all(runner.changes(file) for _ in range(chance.randint(1, most))):
                break
            _strike(pipeline, runner, chance, _runner, outcome)
            runner.code()
        return laboratory.finish(pipeline, outcome)

    return trial


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino


# -- signals, rivals -----------------------------------------------------------------------------------------


def _asked(*numbers: int, linger: str = "0") -> Scenario:
    """Ask the runner to stop, once or twice, up to three times in a trial.

    Args:
        numbers: the signals, a moment apart.
        linger: seconds that a node takes to stop.
    """

    def trial(laboratory: Laboratory, chance: random.Random) -> Outcome:
        span = laboratory.seconds(GRAPH)
        pipeline, outcome = laboratory.pipeline(GRAPH), Outcome()
        for _ in range(3):
            runner = pipeline.start(LINGER=linger)
            if not runner.work_began() or not runner.lasts(chance.uniform(0, span)):
                break
            busy, began = len(pipeline.at_work()), time.monotonic()
            for number in numbers:
                runner.process.send_signal(number)
                time.sleep(chance.uniform(0.1, 0.3) if len(numbers) > 1 else 0)
            code, took = runner.code(), time.monotonic() - began
            outcome.faults += 1
            outcome.allowed += EVERY * busy if len(numbers) > 1 else 0
            if code != 130 and "up to date" not in runner.tail() and " in " not in runner.tail():
                outcome.problems.append(f"exit code {code}: {runner.tail()}")
            if took > 10:
                outcome.problems.append(f"took {took:.0f} s to stop")
            if left := pipeline.at_work():
                outcome.problems.append(f"still at work: {left}")
        return laboratory.finish(pipeline, outcome)

    return trial


def _two(laboratory: Laboratory, chance: random.Random) -> Outcome:
    """Two runners at once: every node is executed exactly once."""
    laboratory.expected(SMALL)
    pipeline, outcome = laboratory.pipeline(SMALL), Outcome(faults=1)
    first = pipeline.start()
    time.sleep(chance.choice([0.0, chance.uniform(0, 0.5), chance.uniform(0, 3)]))
    second = pipeline.start()
    codes = first.code(), second.code()
    if codes != (0, 0):
        outcome.problems.append(f"exit codes {codes}: {first.tail()} | {second.tail()}")
    for kind in ("start", "works", "ended"):
        counts = Counter(event["node"] for event in pipeline.events(kind))
        if counts != Counter(SMALL.keys()):
            outcome.problems.append(f"{kind}: {dict(counts)}")
    return laboratory.finish(pipeline, outcome)


def _rivals(laboratory: Laboratory, chance: random.Random) -> Outcome:
    """32 attempts at one node of a repository where nothing has run yet; one gets it."""
    laboratory.expected(SMALL)
    pipeline, outcome = laboratory.pipeline(SMALL), Outcome(faults=32)
    gate = pipeline.folder / ".lab" / "gate"
    rivals = [pipeline.node("data", GATE=str(gate)) for _ in range(outcome.faults)]
    deadline = time.monotonic() + PATIENCE
    while len(pipeline.events("start")) < len(rivals) and time.monotonic() < deadline:
        time.sleep(0.05)
    gate.touch()
    codes = Counter(rival.wait(PATIENCE) for rival in rivals)
    if set(codes) - {0, 74} or len(pipeline.published("data")) != 1:
        outcome.problems.append(f"exit codes {dict(codes)}")
    outcome.problems += _claimed_together(pipeline)
    return laboratory.finish(pipeline, outcome)


def _claimed_together(pipeline: Pipeline) -> Iterator[str]:
    """Attempts that executed steps of one node in turns."""
    for node in pipeline.graph:
        workers = [event["pid"] for event in pipeline.events("step") if event["node"] == node]
        turns = [pid for pid, before in zip(workers, [None, *workers], strict=False) if pid != before]
        if len(turns) > len(set(turns)):
            yield f"{node}: several attempts at once"


def _paused(laboratory: Laboratory, chance: random.Random) -> Outcome:
    """A node is stopped for longer than its lease, another attempt takes over, then it goes on."""
    laboratory.expected(SMALL)
    pipeline, outcome = laboratory.pipeline(SMALL), Outcome(faults=1)
    runner = pipeline.start(LAB_LEASE_SECONDS="1")
    runner.wait(lambda: pipeline.events("works"))
    name, late = (pipeline.events("works")[0][key] for key in ("node", "pid"))
    time.sleep(chance.uniform(0, 0.3))
    done = bool(pipeline.published(name))
    pipeline.kill(late, signal.SIGSTOP)
    time.sleep(1.5)
    rival = pipeline.node(name, LAB_LEASE_SECONDS="1")
    with suppress(subprocess.TimeoutExpired):  # where it was stopped while its output took its place
        rival.wait(5)
    ended = rival.poll()
    pipeline.kill(late, signal.SIGCONT)
    rival.wait(PATIENCE)
    runner.code()
    published = pipeline.published(name)
    if len(published) != 1:
        outcome.problems.append(f"{name} was published {len(published)} times")
    refused = late in [event["pid"] for event in pipeline.events("refused")]
    if ended == 0 and not done and late not in published and not refused:
        outcome.problems.append("the late attempt was not told")
    outcome.allowed = STEPS  # both may do all of them
    return laboratory.finish(pipeline, outcome)


# -- SLURM ---------------------------------------------------------------------------------------------------

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


def _on_slurm(kill: Callable[[Any, Pipeline, random.Random], int]) -> Scenario:
    """Kill daemons of a SLURM at random moments.

    Args:
        kill: does it, on a cluster; returns how many nodes of the graph died of it.
    """

    def trial(laboratory: Laboratory, chance: random.Random) -> Outcome:
        laboratory.expected(GRAPH)
        cluster = laboratory.cluster()
        pipeline, outcome = laboratory.pipeline(GRAPH), Outcome()
        for attempt in range(3):
            command = [sys.executable, "-c", SUBMIT]
            done = subprocess.run(command, cwd=pipeline.folder, env=pipeline.environment, capture_output=True)
            if done.returncode:
                outcome.problems.append(f"submission: {done.stderr.decode()[-300:]}")
                break
            for _ in range(0 if attempt else 2):
                _slurm_ended(pipeline, chance.uniform(2, 12))
                outcome.faults += 1
                outcome.allowed += EVERY * kill(cluster, pipeline, chance)
            if not _slurm_ended(pipeline, 2 * PATIENCE):
                outcome.problems.append(f"jobs do not end: {_slurm_states(pipeline)}")
                break
            if len(pipeline.recorded()) == len(GRAPH):
                break
        else:
            outcome.problems.append(f"not recorded: {sorted(GRAPH.keys() - pipeline.recorded())}")
        return laboratory.finish(pipeline, outcome)

    return trial


def _slurm_states(pipeline: Pipeline) -> dict[str, str]:
    from lab.graph.cluster.slurm import states

    return {name: str(state) for name, state in states(pipeline.folder).items()}


def _slurm_ended(pipeline: Pipeline, seconds: float) -> bool:
    """Wait until SLURM has nothing left to do, at most so long; whether it has."""
    from lab.errors import LabError
    from lab.graph.cluster.slurm import states

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(LabError):  # while the controller is away
            if not any(state.live for state in states(pipeline.folder).values()):
                return True
        time.sleep(0.5)
    return False


def _daemon(cluster: Any, pipeline: Pipeline, chance: random.Random) -> int:
    """A node's daemon; what runs there goes on, unseen. It comes back after SLURM has missed it."""
    name = chance.choice(cluster.nodes)
    cluster.kill_node(name)
    time.sleep(chance.choice([1.0, 25.0]))
    cluster.start_node(name)
    return 0


def _machine(cluster: Any, pipeline: Pipeline, chance: random.Random) -> int:
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


def _controller(cluster: Any, pipeline: Pipeline, chance: random.Random) -> int:
    """The controller, which comes back and reads what it had saved."""
    os.kill(int((cluster.base / "run" / "slurmctld").read_text()), signal.SIGKILL)
    time.sleep(chance.uniform(0.5, 5))
    cluster.start_controller()
    return 0


# -- files and disks -----------------------------------------------------------------------------------------


def _flip(path: Path, chance: random.Random) -> None:
    """Change one bit of a file; its times stay as they were."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(data)
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _flipped(in_cache: bool) -> Scenario:
    """One bit of an output that nodes still have to read is another.

    Args:
        in_cache: flip it in what DVC's cache has of the output as well.
    """

    def trial(laboratory: Laboratory, chance: random.Random) -> Outcome:
        laboratory.expected(GRAPH)
        pipeline, outcome = laboratory.pipeline(GRAPH), Outcome(faults=1)
        target = chance.choice(["encoder", "arm3", "judge"])
        pipeline.complete(target)
        ready = [name for name in GRAPH if (pipeline.folder / "output" / name).exists()]
        waiting = {need for name in GRAPH if name not in ready for need in GRAPH[name]}
        owner = chance.choice([name for name in ready if name in waiting])
        file = chance.choice([*filter(Path.is_file, (pipeline.folder / "output" / owner).rglob("*"))])
        if in_cache:
            md5 = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
            _flip(pipeline.folder / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:], chance)
            outcome.allowed = STEPS
        _flip(file, chance)
        runner = pipeline.start()
        if runner.code() != 0:
            outcome.problems.append(f"exit code {runner.code()}: {runner.tail()}")
        log = pipeline.folder / ".lab" / "events.log"
        if not log.exists() or f"/{owner} " not in log.read_text():
            outcome.problems.append(f"no event tells of the damage to {file.name} of {owner}")
        return laboratory.finish(pipeline, outcome)

    return trial


def _lost_outputs(laboratory: Laboratory, chance: random.Random) -> Outcome:
    """Outputs are gone, and one object of DVC's cache, from which they come back, is damaged."""
    laboratory.expected(GRAPH)
    pipeline, outcome = laboratory.pipeline(GRAPH), Outcome(faults=1, allowed=STEPS)
    pipeline.complete()
    objects = sorted((pipeline.folder / ".dvc" / "cache" / "files" / "md5").glob("??/*"))
    _flip(chance.choice(objects), chance)
    shutil.rmtree(pipeline.folder / "output")
    if chance.random() < 0.5:
        shutil.rmtree(pipeline.folder / "metrics")
    runner = pipeline.start()
    if runner.code() != 0:
        outcome.problems.append(f"exit code {runner.code()}: {runner.tail()}")
    return laboratory.finish(pipeline, outcome)


def _full(laboratory: Laboratory, chance: random.Random) -> Outcome:
    """The disk is full at a random moment; after space is made, the same command completes the graph."""
    laboratory.expected(GRAPH)
    with _disk(laboratory.folder / "disk", "24M") as disk:
        pipeline, outcome = laboratory.pipeline(GRAPH, disk / "trial"), Outcome()
        ballast = disk / "ballast"
        for _ in range(3):
            free = shutil.disk_usage(disk).free
            size = free - chance.randrange(100_000, 3_000_000)
            if size <= 0:
                break
            ballast.write_bytes(bytes(size))
            runner = pipeline.start()
            try:
                code = runner.code(40)
            except Hung as error:
                outcome.problems.append(str(error))
                code = 1
            if code:
                outcome.faults += 1
                outcome.allowed += 2 * EVERY
                said = runner.log.read_text()
                if "Traceback" in said or "space" not in said:
                    outcome.problems.append(f"exit code {code} says: {' | '.join(said.splitlines()[-5:])}")
            ballast.unlink()
            if not code:
                break
            runner.code()
        return laboratory.finish(pipeline, outcome)


@contextmanager
def _disk(place: Path, size: str) -> Iterator[Path]:
    """A small disk of its own."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "lab-faults", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Skipped(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def _edited(laboratory: Laboratory, chance: random.Random) -> Outcome:
    """Code is edited while nodes wait: they run the copy; afterwards the nodes that use it are stale."""
    span = laboratory.seconds(GRAPH)
    pipeline, outcome = laboratory.pipeline(GRAPH), Outcome()
    part = chance.choice(["common", "special"])
    file = pipeline.folder / "components" / "quick" / f"{part}.py"
    before, status = file.read_bytes(), file.stat()
    runner = pipeline.start()
    if runner.work_began() and runner.lasts(chance.uniform(0, span / 2)):
        outcome.faults += 1
        file.write_text(PART.format(salt="edited"))
        if runner.code() != 0:
            outcome.problems.append(f"exit code {runner.code()}: {runner.tail()}")
        stale = json.loads(pipeline.dvc("status", "--json"))
        uses = {name for name in GRAPH if _settings(name)["part"] == part}
        if {name.partition(":")[2] or name for name in stale} != uses:
            outcome.problems.append(f"stale: {sorted(stale)}, not {sorted(uses)}")
        file.write_bytes(before)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    return laboratory.finish(pipeline, outcome)


# -- real training -------------------------------------------------------------------------------------------

_STAGES = (["encoder"], ["align", "linear"], ["instruct", "linear", "understanding"])
_BEFORE = (["data"], ["judge"], ["encoder"], ["text_decoder"], ["image_decoder"], ["align", "linear"])
_TRAINING_EVERY = 5  # steps between two checkpoints
_MEASURED = ("cost/train_seconds", "cost/peak_memory_mb")  # what differs from run to run


class Training:
    """A pipeline so small that a stage trains in seconds, by `lab stage`.

    Args:
        laboratory: whose code it runs.
    """

    def __init__(self, laboratory: Laboratory) -> None:
        self.laboratory = laboratory
        self.folder = laboratory.folder / "training"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(laboratory.code),
            "LAB_TRACKING": "off",
            "OMP_NUM_THREADS": "1",
        }
        self.folder.mkdir()
        params = yaml.safe_load((ROOT / "experiments" / "ablations" / "smoke" / "params.yaml").read_text())
        params |= {"root": ".", "data": {"train_scenes": 80, "validation_scenes": 40, "test_scenes": 40}}
        params["judge"]["steps"] = 5
        for name, stage in params["stages"].items():
            if name != "evaluate":
                stage |= {"log_every": 1, "checkpoint_every": _TRAINING_EVERY}
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        self.seconds: dict[str, float] = {}
        self.steps = {name: params["stages"][name]["steps"] for name in ("encoder", "align", "instruct")}
        for words in (*_BEFORE, _STAGES[-1]):
            began = time.monotonic()
            process, log = self.start(self.folder, words)
            if process.wait():
                raise Skipped(f"stage {words[0]} does not run: {log.read_text()[-500:]}")
            self.seconds[words[0]] = time.monotonic() - began

    def start(self, folder: Path, words: Sequence[str]) -> tuple[subprocess.Popen[bytes], Path]:
        """Start a stage; it and its log."""
        log = folder / f"{uuid.uuid4().hex[:8]}.log"
        with log.open("wb") as handle:
            command = [sys.executable, "-m", "lab", "stage", *words]
            process = subprocess.Popen(
                command, cwd=folder, env=self.environment, stdout=handle, stderr=subprocess.STDOUT
            )
        return process, log

    def made(self, folder: Path, words: Sequence[str]) -> dict[str, Any]:
        """What a stage made, but for the time it took."""
        place = "/".join([words[0], "-".join(words[1:])]).rstrip("/")
        output = folder / "output" / place
        files = {path.relative_to(output).as_posix(): path for path in sorted(output.rglob("*"))}
        made: dict[str, Any] = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
        numbers = json.loads((folder / "metrics" / f"{place}.json").read_text())
        return made | {"metrics": {key: value for key, value in numbers.items() if key not in _MEASURED}}


def _trained(number: int) -> Scenario:
    """Signal a stage that trains, up to twice at random moments."""

    def trial(laboratory: Laboratory, chance: random.Random) -> Outcome:
        training = laboratory.training()
        words, outcome = chance.choice(_STAGES), Outcome()
        folder = Path(shutil.copytree(training.folder, laboratory.folder / f"training.{chance.random()}"))
        for place in ("output", "metrics"):
            for path in (folder / place).glob(f"{words[0]}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        logs = []
        for _ in range(3):
            process, log = training.start(folder, words)
            logs.append(log)
            if len(logs) <= 2:
                _training_step(process, log, chance)
                if process.poll() is None:
                    began = time.monotonic()
                    process.send_signal(number)
                    code = process.wait(PATIENCE)
                    took = time.monotonic() - began
                    outcome.faults += 1
                    outcome.allowed += _TRAINING_EVERY if number == signal.SIGKILL else 0
                    if number != signal.SIGKILL and (code not in (0, 75, 130, -number) or took > 10):
                        outcome.problems.append(f"exit code {code} after {took:.1f} s")
                    if code:
                        continue
            if process.wait(PATIENCE):
                outcome.problems.append(log.read_text()[-300:])
            break
        executed = sum(len(_steps(log)) for log in logs)
        outcome.lost = executed - training.steps[words[0]]
        if not 0 <= outcome.lost <= outcome.allowed:
            outcome.problems.append(f"{outcome.lost} steps in vain, {outcome.allowed} allowed")
        expected, found = training.made(training.folder, words), training.made(folder, words)
        outcome.problems += [
            f"{name} differs"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]
        outcome.problems += [f"left: {path.name}" for path in folder.glob(".lab/work/*")]
        if not outcome.problems:
            shutil.rmtree(folder)
        return outcome

    return trial


def _steps(log: Path) -> list[str]:
    """The steps that a stage has reported."""
    return re.findall(r"  (\d+)/\d+  ", log.read_text(errors="replace"))


def _training_step(process: subprocess.Popen[bytes], log: Path, chance: random.Random) -> None:
    """Wait for a random moment from the first step on, or now and then before it."""
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0, 3))
        return
    wanted = chance.randint(1, 25)
    while process.poll() is None and len(_steps(log)) < wanted:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))


SCENARIOS: dict[str, tuple[str, int, Scenario]] = {
    "runner": ("runner killed at random moments", 25, _at_random(_runner)),
    "node": ("a node killed at random moments", 25, _at_random(_node)),
    "both": ("runner and a node killed together", 15, _at_random(_both)),
    "everything": ("every process killed, guard included", 15, _at_random(_everything)),
    "eight": ("runner killed with eight nodes at work", 10, _eight),
    "resume": ("killed again in the first step after a resume", 15, _after_resume),
    "checkpoint": (
        "a node killed while it writes a checkpoint",
        10,
        _while_there_is(".lab/work/*/last.*.partial"),
    ),
    "publish": ("a node killed while it publishes", 10, _while_there_is("output/.*.partial/weights")),
    "record": ("runner killed while it writes dvc.lock", 10, _while_it_writes("dvc.lock", 4)),
    "busy": ("runner killed while DVC notes what it works on", 10, _while_it_writes(".dvc/tmp/rwlock", 12)),
    "sigterm": ("SIGTERM to the runner", 10, _asked(signal.SIGTERM)),
    "interrupt": ("Ctrl-C once", 10, _asked(signal.SIGINT)),
    "twice": ("Ctrl-C twice, nodes slow to stop", 10, _asked(signal.SIGINT, signal.SIGINT, linger="20")),
    "two": ("two runners on one graph", 100, _two),
    "rivals": ("32 attempts at one node of a new repository", 10, _rivals),
    "paused": ("a node paused beyond its lease", 20, _paused),
    "flip": ("a bit flipped in an output", 20, _flipped(in_cache=False)),
    "flips": ("a bit flipped in an output and in DVC's cache", 20, _flipped(in_cache=True)),
    "cache": ("outputs lost, a bit flipped in DVC's cache", 20, _lost_outputs),
    "full": ("disk full", 20, _full),
    "edited": ("code edited while nodes wait", 10, _edited),
    "slurmd": ("daemon of a SLURM node killed", 5, _on_slurm(_daemon)),
    "machine": ("a SLURM node lost with all that ran on it", 5, _on_slurm(_machine)),
    "slurmctld": ("SLURM's controller killed", 5, _on_slurm(_controller)),
    "training": ("`lab stage` killed while it trains", 20, _trained(signal.SIGKILL)),
    "preempted": ("SIGTERM to `lab stage` while it trains", 10, _trained(signal.SIGTERM)),
}


@dataclass
class Row:
    """The outcomes of one scenario."""

    title: str
    outcomes: list[Outcome] = field(default_factory=list)
    skipped: str = ""

    def cells(self) -> list[str]:
        """Of the table."""
        if self.skipped:
            return [self.title, f"skipped: {self.skipped}", *["-"] * 5]
        recovery = [seconds for one in self.outcomes for seconds in one.recovery]
        lost, faults = sum(one.lost for one in self.outcomes), sum(one.faults for one in self.outcomes)
        allowed = sum(one.allowed for one in self.outcomes)
        return [
            self.title,
            str(len(self.outcomes)),
            str(faults),
            str(sum(bool(one.problems) for one in self.outcomes)),
            f"{lost} of {allowed}" if allowed else "0" if not lost else f"{lost} of 0",
            f"{statistics.median(recovery):.1f}" if recovery else "-",
            f"{max(recovery):.1f}" if recovery else "-",
        ]


HEAD = ["fault", "trials", "faults", "failed", "steps in vain", "back at work, median s", "worst s"]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown, the first row as its head."""
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def machine() -> str:
    """What the figures were taken on, in a line."""
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), model)
    memory = psutil.virtual_memory().total / 2**30
    versions = f"Python {platform.python_version()}, DVC {version('dvc')}"
    return f"{model}, {os.cpu_count()} hardware threads, {memory:.0f} GB, {platform.system()}, {versions}"


def write_between(page: Path, marks: tuple[str, str], text: str) -> None:
    """Replace what stands between two marks of a page."""
    before, _, rest = page.read_text().partition(marks[0])
    _, _, after = rest.partition(marks[1])
    page.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{after}")


def _written(rows: Mapping[str, Row]) -> list[list[str]]:
    """The rows of the page with those that were measured now in their places."""
    text = PAGE.read_text().partition(MARKS[0])[2].partition(MARKS[1])[0]
    found = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if "|" in line
    ]
    known = {cells[0]: cells for cells in found[2:]}
    known |= {row.title: row.cells() for row in rows.values()}
    return [known[title] for title, _, _ in SCENARIOS.values() if title in known]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", metavar="SCENARIO", nargs="*", help=f"of {', '.join(SCENARIOS)}; all")
    parser.add_argument("--trials", type=int, help="of each scenario, instead of its own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"the table to {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    if unknown := set(args.scenarios) - set(SCENARIOS):
        parser.error(f"no scenario {', '.join(sorted(unknown))}; have {', '.join(SCENARIOS)}")
    folder = Path(tempfile.mkdtemp(prefix="lab-faults-"))
    laboratory, rows = Laboratory(folder), {}
    atexit.register(laboratory.close)
    for name in args.scenarios or SCENARIOS:
        title, trials, scenario = SCENARIOS[name]
        rows[name] = row = Row(title)
        for number in range(args.trials or trials):
            try:
                outcome = scenario(laboratory, random.Random(f"{name} {args.seed} {number}"))
            except Skipped as reason:
                row.skipped = str(reason)
                break
            row.outcomes.append(outcome)
            for problem in outcome.problems:
                print(f"{name}, trial {number}: {problem}", file=sys.stderr, flush=True)
        print(f"| {' | '.join(row.cells())} |", file=sys.stderr, flush=True)
    print(table([HEAD, *(row.cells() for row in rows.values())]))
    if args.write:
        write_between(PAGE, MARKS, f"{machine()}.\n\n{table([HEAD, *_written(rows)])}")
    if any(outcome.problems for row in rows.values() for outcome in row.outcomes):
        raise SystemExit(f"what is left of the failed trials: {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
