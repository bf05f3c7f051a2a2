"""Runs the stages of a dvc.yaml several at once: the lab schedules, DVC decides and records.

Each stage is one `dvc repro --single-item`, so DVC alone judges whether it runs, comes from its cache or
has not changed, and a plain `dvc repro` afterwards finds nothing to do. Ready stages start in the order
of how much waits for them. A failure stops what depends on it and nothing else.

Stopping must leave nothing behind. Every process below the runner carries a mark in its environment, by
which it is found. A command is ended before the dvc above it: dvc then leaves without recording, whereas
a dvc that is killed could leave half a dvc.lock, and its command running. A guard, a process that only
waits for the runner's end, does the same when the runner itself was killed.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

import psutil

from lab.errors import LabError, nearest

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_MARK = "LAB_RUNNER"  # environment variable that marks every process below a runner
_PATIENCE = 10.0  # seconds that a command has to end by itself before it is killed
_TAIL = 15  # lines of a failed stage's log that are shown
_HEARTBEAT = 30.0  # seconds between two reports of a running stage where the output is no terminal
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Pipeline:
    """The stages of one dvc.yaml.

    Attributes:
        parents: each stage's name with the names of those whose outputs it takes.
        stale: the stages that DVC finds changed, by themselves or by files that are missing.
    """

    parents: dict[str, set[str]]
    stale: set[str]

    def ancestors(self, names: Iterable[str]) -> set[str]:
        """All that the named stages need, themselves included."""
        return _reach(self.parents, names)

    def descendants(self, names: Iterable[str]) -> set[str]:
        """All that needs the named stages, themselves included."""
        children: dict[str, set[str]] = {name: set() for name in self.parents}
        for name, parents in self.parents.items():
            for parent in parents:
                children[parent].add(name)
        return _reach(children, names)

    def select(self, targets: Sequence[str]) -> set[str]:
        """Turn `align`, `align@linear` or `align@*` into stages, with all that they need.

        Raises:
            LabError: a target that names no stage.
        """
        chosen: set[str] = set()
        for target in targets:
            found = {n for n in self.parents if n.split("@")[0] == target or fnmatchcase(n, target)}
            if not found:
                groups = {name.split("@")[0] for name in self.parents}
                raise LabError(
                    f"no stage '{target}'{nearest(target, self.parents if '@' in target else groups)}"
                )
            chosen |= found
        return self.ancestors(chosen) if targets else set(self.parents)


def read_pipeline(folder: Path) -> Pipeline:
    """Ask DVC for the stages of a folder's dvc.yaml, their edges and what is out of date.

    Raises:
        LabError: there is no pipeline here, or DVC cannot read it.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    file = folder / "dvc.yaml"
    if not file.exists():
        raise LabError(f"no dvc.yaml in {folder}; run this in the folder of a pipeline")
    try:
        with Repo(str(folder), _wait_for_lock=True) as repo:
            stages = repo.stage.load_all(str(file))
            names = {stage.addressing: stage.name for stage in stages}
            parents: dict[str, set[str]] = {name: set() for name in names.values()}
            for stage, needed in repo.index.graph.edges:
                if stage.addressing in names and needed.addressing in names:
                    parents[names[stage.addressing]].add(names[needed.addressing])
            stale = {names[address] for address in repo.status(targets=[str(file)]) if address in names}
    except DvcException as error:
        raise LabError(" ".join(f"DVC: {error}".split())) from error
    return Pipeline(parents, stale)


def reproduce(folder: Path, targets: Sequence[str], jobs: int) -> int:
    """Bring a pipeline up to date.

    Args:
        folder: where its dvc.yaml is.
        targets: stages or groups of stages, which are run with all that they need; none means everything.
        jobs: how many stages may run at once.

    Returns:
        0 when all is up to date; 2 when only mistakes failed that the person can mend; 1 for other failures.

    Raises:
        LabError: the pipeline cannot be read or a target names no stage.
        KeyboardInterrupt: stopped by SIGINT, SIGTERM or SIGHUP, after all processes have ended.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        lock = stack.enter_context(_only_runner(folder, console))
        pipeline = read_pipeline(folder)
        chosen = pipeline.select(targets)
        waiting = pipeline.descendants(pipeline.stale & chosen) & chosen
        if not waiting:
            console.print(f"{len(chosen)} stages, all up to date")
            return 0
        mark = uuid.uuid4().hex
        stack.enter_context(_guarded(mark, lock))
        stop = stack.enter_context(_signals())
        return _Run(folder, pipeline, waiting, len(chosen), jobs, mark, console, stop).work()


def default_jobs() -> int:
    """Stages at once where nobody says: one a physical core."""
    return max(1, min(psutil.cpu_count(logical=False) or 1, cores()))


def cores() -> int:
    """Cores this process may use, containers' quotas included."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(available, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or `max`
        return available


@dataclass
class _Stage:
    """One stage that runs now."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    started: float
    reported: float

    def seconds(self) -> float:
        return time.monotonic() - self.started


class _Run:
    """One call of `reproduce`: what waits, what runs, and what became of the rest."""

    def __init__(
        self,
        folder: Path,
        pipeline: Pipeline,
        waiting: set[str],
        total: int,
        jobs: int,
        mark: str,
        console: Console,
        stop: list[int],
    ) -> None:
        self.folder, self.pipeline, self.waiting, self.jobs = folder, pipeline, waiting, jobs
        self.mark, self.console, self.stop = mark, console, stop
        self.began = time.monotonic()
        self.running: dict[str, _Stage] = {}
        self.ended = Counter({"up to date": total - len(waiting)})
        self.failures: list[int] = []  # exit codes
        self.weight = {name: len(pipeline.descendants([name])) for name in waiting}
        threads = str(max(1, cores() // jobs))
        self.environment = {
            "OMP_NUM_THREADS": threads,
            **os.environ,
            _MARK: mark,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONUNBUFFERED": "1",  # progress should reach the log as it is made
        }

    def work(self) -> int:
        """Start and await stages until nothing is left or a signal came."""
        from rich.live import Live

        threads = self.environment["OMP_NUM_THREADS"]
        self.console.print(
            f"{len(self.waiting)} of {self.ended['up to date'] + len(self.waiting)} stages may have changed; "
            f"{self.jobs} at once, threads each: {threads}; logs in .lab/logs"
        )
        with ExitStack() as stack:
            live = None
            if self.console.is_terminal:
                live = stack.enter_context(Live(console=self.console, refresh_per_second=4, transient=True))
            while (self.waiting or self.running) and not self.stop:
                self._start()
                for stage in [s for s in self.running.values() if s.process.poll() is not None]:
                    self._finish(stage)
                if live is not None:
                    live.update(self._table())
                else:
                    self._heartbeat()
                time.sleep(0.1)
        if self.stop:
            unfinished = ", ".join(self.running)
            end(self.mark)
            self.console.print(
                f"stopped in {unfinished or 'between stages'}; the same command goes on from there"
            )
            raise KeyboardInterrupt
        parts = [f"{count} {state}" for state, count in self.ended.items() if count]
        self.console.print(f"{', '.join(parts)} in {time.monotonic() - self.began:.0f} s")
        return max(self.failures, key=lambda code: code == 1, default=0)

    def _start(self) -> None:
        """Start stages whose parents are done, those with the most behind them first."""
        unfinished = self.waiting | self.running.keys()
        ready = [name for name in self.waiting if not self.pipeline.parents[name] & unfinished]
        ready.sort(key=lambda name: (-self.weight[name], name))
        for name in ready[: self.jobs - len(self.running)]:
            log = self.folder / ".lab" / "logs" / f"{name}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            # --wait-for-lock is dvc's, not repro's; without it stages that end together lose their records
            command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", name]
            with log.open("wb") as handle:
                process = subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=handle,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches the runner alone, which then ends all in order
                )
            self.waiting.remove(name)
            self.running[name] = _Stage(name, process, log, time.monotonic(), time.monotonic())
            if not self.console.is_terminal:
                self.console.print(f"  {name}: started")

    def _finish(self, stage: _Stage) -> None:
        """Report a stage that has ended and hold back what needed it if it failed."""
        del self.running[stage.name]
        text = stage.log.read_text(encoding="utf-8", errors="replace")
        seconds = f"{stage.seconds():.0f} s"
        if stage.process.returncode == 0:
            state = _outcome(text)
            self.ended[state] += 1
            self.console.print(f"[green]ok[/]  {stage.name}: {state}, {seconds}")
            return
        self.ended["failed"] += 1
        mistakes = [line for line in _lines(text) if line.startswith("lab: error:")]
        self.failures.append(2 if mistakes else 1)
        self.console.print(
            f"[red]failed[/]  {stage.name}, {seconds}; all of it in {stage.log.relative_to(self.folder)}"
        )
        for line in mistakes[-1:] or _lines(text)[-_TAIL:]:
            self.console.print(f"    {line}", markup=False)
        held = self.pipeline.descendants([stage.name]) & self.waiting
        if held:
            self.waiting -= held
            self.ended["held back"] += len(held)
            self.console.print(f"[yellow]held back[/]  {', '.join(sorted(held))}")

    def _heartbeat(self) -> None:
        for stage in self.running.values():
            if time.monotonic() - stage.reported >= _HEARTBEAT:
                stage.reported = time.monotonic()
                self.console.print(
                    f"  {stage.name}: {stage.seconds():.0f} s  {_last(stage.log)}", markup=False
                )

    def _table(self) -> Table:
        """What runs now and how much is left, for a terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for stage in self.running.values():
            line = Text(_last(stage.log), style="dim", no_wrap=True, overflow="ellipsis")
            table.add_row(Text(stage.name, style="bold"), f"{stage.seconds():.0f} s", line)
        table.add_row(Text(f"{len(self.waiting)} waiting", style="dim"))
        return table


def end(mark: str) -> None:
    """End every process that carries a mark: commands first, and dvc by itself, as long as patience lasts."""
    deadline = time.monotonic() + _PATIENCE
    while marked := _marked(mark):
        pids = {process.pid for process in marked}
        for process in marked:
            try:
                if time.monotonic() > deadline:
                    process.kill()
                elif process.ppid() in pids:  # below a dvc, which is the topmost with this mark
                    process.terminate()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.1)


def guard(mark: str) -> None:
    """Wait until the runner is gone, whatever became of it, and end what it left."""
    sys.stdin.read()  # the runner holds the other end; it closes with the runner
    end(mark)


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:  # it has ended, or it is somebody else's
            continue
    return found


@contextmanager
def _guarded(mark: str, lock: TextIO) -> Iterator[None]:
    """Have a guard for as long as stages run. It shares the lock: a new runner starts after its work."""
    command = [sys.executable, "-c", f"from lab.graph.runner import guard; guard({mark!r})"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, pass_fds=[lock.fileno()], start_new_session=True
    ) as process:
        try:
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()


@contextmanager
def _only_runner(folder: Path, console: Console) -> Iterator[TextIO]:
    """Let one runner at a time work in a folder; a second one waits. The lock dies with its holders."""
    path = folder / ".lab" / "runner.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("another run works in this folder; waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that mean stop, instead of being torn out of the middle of something."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {
        number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(log: str) -> str:
    """Read from DVC's own words what it did with a stage."""
    if "\nRunning stage" in f"\n{log}":
        return "ran"
    return "from cache" if "is cached - skipping run" in log else "unchanged"


def _lines(text: str) -> list[str]:
    """The lines of a log as a terminal would have left them, progress bars at their last state."""
    lines = (line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
    return [plain for line in lines if (plain := _CONTROL.sub("", line).rstrip())]


def _last(log: Path) -> str:
    """The last line that a running stage has printed."""
    with log.open("rb") as handle:
        handle.seek(max(0, handle.seek(0, os.SEEK_END) - 4096))
        lines = _lines(handle.read().decode(errors="replace"))
    return lines[-1].strip() if lines else ""


def _reach(edges: Mapping[str, set[str]], names: Iterable[str]) -> set[str]:
    reached: set[str] = set()
    border = list(names)
    while border:
        name = border.pop()
        if name not in reached:
            reached.add(name)
            border += edges[name]
    return reached
