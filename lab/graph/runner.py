"""Runs the tasks of a pipeline several at once: the lab schedules, DVC decides and records.

A task that is ready is judged by what DVC knows of it: it is unchanged, comes from DVC's cache, or runs. What
ran is recorded by one writer (record.py), so a plain `dvc repro` afterwards finds nothing to do. Ready tasks
start in the order of how much waits for them. A failure stops what depends on it and nothing else.

Stopping must leave nothing behind. Every process below the runner carries a mark in its environment, by which
it is found, and is asked to end, which training does after a checkpoint. A guard, a process that only waits
for the runner's end, does the same when the runner itself was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

import psutil

from lab.errors import LabError
from lab.graph.record import DamageError, Recorder
from lab.graph.snapshot import Snapshot, take_snapshot
from lab.graph.task import Pipeline, Task

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

_MARK = "LAB_RUNNER"  # environment variable that marks every process below a runner
_PATIENCE = 60.0  # seconds that a command has to write a checkpoint and end before it is killed
_TAIL = 15  # lines of a failed task's log that are shown
_HEARTBEAT = 30.0  # seconds between two reports of a running task where the output is no terminal
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BUSY, _PREEMPTED = 74, 75  # exit codes: another attempt works on it; stopped by a signal, after a checkpoint
_RETRY = 5.0  # seconds until a busy task is tried again
_ATTEMPTS = 3  # at a task that was preempted, or whose output was damaged


def reproduce(folder: Path, targets: Sequence[str], jobs: int) -> int:
    """Bring the pipeline of a folder's dvc.yaml up to date.

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
    file = folder / "dvc.yaml"
    if not file.exists():
        raise LabError(f"no dvc.yaml in {folder}; run this in the folder of a pipeline")
    return run(folder, lambda recorder: recorder.read_pipeline(file), targets, jobs)


def run(
    home: Path, read: Callable[[Recorder], Pipeline], targets: Sequence[str], jobs: int, title: str = ""
) -> int:
    """Bring tasks up to date.

    Args:
        home: folder whose `.lab` gets logs and locks; one runner at a time works there.
        read: gives the tasks and which of them are stale; called when no other runner works.
        targets, jobs: as in `reproduce`.
        title: of the tree that a terminal shows.

    Returns, raises: as `reproduce`.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        lock = stack.enter_context(only_runner(home, console))
        snapshot = take_snapshot()
        recorder = stack.enter_context(Recorder(home, snapshot))
        pipeline = read(recorder)
        chosen = pipeline.select(targets)
        waiting = pipeline.descendants(pipeline.stale & chosen) & chosen
        if not waiting:
            console.print(f"{len(chosen)} stages, all up to date")
            return 0
        needed = pipeline.ancestors(waiting) - waiting
        recorder.trust(pipeline.tasks[name] for name in needed)
        mark = uuid.uuid4().hex
        stack.enter_context(_guarded(mark, lock))
        stop = stack.enter_context(_signals())
        environment = _environment(snapshot, mark, jobs)
        return _Run(home, pipeline, waiting, chosen, jobs, environment, recorder, console, stop, title).work()


def environment_of(snapshot: Snapshot) -> dict[str, str]:
    """What the environment of a task has to hold so that it runs the code of a snapshot."""
    paths = [str(snapshot.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",  # progress should reach the log as it is made
    }


def _environment(snapshot: Snapshot, mark: str, jobs: int) -> dict[str, str]:
    threads = str(max(1, cores() // jobs))
    return {"OMP_NUM_THREADS": threads, **os.environ, **environment_of(snapshot), _MARK: mark}


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
class _Running:
    """One task that runs now."""

    task: Task
    process: subprocess.Popen[bytes]
    started: float
    reported: float
    memory_mb: float = 0.0

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def ended(self) -> bool:
        """Whether it has ended; notes the peak of its memory."""
        if self.process.returncode is None:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                self.memory_mb = usage.ru_maxrss / 1024
        return self.process.returncode is not None


class _Run:
    """One call of `run`: what waits, what runs, and what became of the rest."""

    def __init__(
        self,
        home: Path,
        pipeline: Pipeline,
        waiting: set[str],
        chosen: set[str],
        jobs: int,
        environment: Mapping[str, str],
        recorder: Recorder,
        console: Console,
        stop: list[int],
        title: str,
    ) -> None:
        self.home, self.pipeline, self.waiting, self.chosen = home, pipeline, waiting, chosen
        self.jobs, self.environment, self.recorder = jobs, environment, recorder
        self.console, self.stop, self.title = console, stop, title
        self.began = time.monotonic()
        self.running: dict[str, _Running] = {}
        self.ended = Counter({"up to date": len(chosen) - len(waiting)})
        self.done = chosen - waiting
        self.failed: set[str] = set()
        self.codes: list[int] = []  # of failures
        self.attempts: Counter[str] = Counter()
        self.not_before: dict[str, float] = {}
        self.weight = {name: len(pipeline.descendants([name])) for name in chosen}
        self.timings = _Timings(home / ".lab" / "timings.json")

    def work(self) -> int:
        """Start and await tasks until nothing is left or a signal came."""
        from rich.live import Live

        threads = self.environment["OMP_NUM_THREADS"]
        self.console.print(
            f"{len(self.waiting)} of {len(self.chosen)} stages may have changed; "
            f"{self.jobs} at once, threads each: {threads}; logs in {_here(self.home / '.lab' / 'logs')}"
        )
        with ExitStack() as stack:
            live = None
            if self.console.is_terminal:
                live = stack.enter_context(Live(console=self.console, refresh_per_second=4, transient=True))
            while (self.waiting or self.running) and not self.stop:
                moved = self._start()
                for running in [one for one in self.running.values() if one.ended()]:
                    self._finish(running)
                    moved = True
                if live is not None:
                    live.update(self._tree())
                else:
                    self._heartbeat()
                if not moved:
                    time.sleep(0.05)
        self.timings.save()
        if self.stop:
            return self._stopped()
        parts = [f"{count} {state}" for state, count in self.ended.items() if count]
        self.console.print(f"{', '.join(parts)} in {time.monotonic() - self.began:.0f} s")
        return max(self.codes, key=lambda code: code == 1, default=0)

    def _stopped(self) -> int:
        unfinished = ", ".join(self.running)
        if unfinished:
            self.console.print(f"stopping {unfinished}; again Ctrl-C for at once")
        end(self._mark, lambda: len(self.stop) > 1)
        for running in list(self.running.values()):
            with suppress(ChildProcessError):
                running.process.returncode = running.process.wait()
            if running.process.returncode == 0:  # it was about to end by itself
                self._finish(running)
        self.console.print(
            f"stopped in {', '.join(self.running) or 'between stages'}; the same command goes on from there"
        )
        raise KeyboardInterrupt

    @property
    def _mark(self) -> str:
        return self.environment[_MARK]

    def _start(self) -> bool:
        """Judge the tasks that are ready, those with the most behind them first, and start those that run."""
        unfinished = self.waiting | self.running.keys()
        now = time.monotonic()
        ready = [
            name
            for name in self.waiting
            if not self.pipeline.tasks[name].parents & unfinished and self.not_before.get(name, 0.0) <= now
        ]
        ready.sort(key=lambda name: (-self.weight[name], name))
        moved = False
        for name in ready:
            if len(self.running) >= self.jobs or self.stop:
                break
            task, moved = self.pipeline.tasks[name], True
            try:
                verdict = self.recorder.judge(task)
            except DamageError as error:
                self._mend(error, task)
                break
            except LabError as error:
                self.waiting.remove(name)
                self._fail(task, 2, [f"lab: error: {error}"])
                continue
            self.waiting.remove(name)
            if verdict == "run":
                self._launch(task)
            else:
                self._succeed(task, verdict)
        return moved

    def _launch(self, task: Task) -> None:
        # without a shell in between, a signal reaches the stage itself
        command = f"exec {task.command}" if task.command.startswith("lab ") else task.command
        task.log.parent.mkdir(parents=True, exist_ok=True)
        with task.log.open("wb") as handle:
            process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                cwd=task.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the runner alone, which then ends all in order
            )
        self.attempts[task.name] += 1
        self.running[task.name] = _Running(task, process, time.monotonic(), time.monotonic())
        if not self.console.is_terminal:
            self.console.print(f"  {task.name}: started", markup=False)

    def _finish(self, running: _Running) -> None:
        """Record a task that has ended, or hold back what needed it if it failed."""
        task, code = running.task, running.process.returncode
        del self.running[task.name]
        again = code == _PREEMPTED and self.attempts[task.name] < _ATTEMPTS
        if code == _BUSY or again:
            self.waiting.add(task.name)
            self.not_before[task.name] = time.monotonic() + _RETRY
            self._tell(
                f"{task.name}: {'another attempt works on it' if code == _BUSY else 'interrupted'}; again"
            )
            return
        seconds = running.seconds()
        if code == 0:
            try:
                self.recorder.record(task)
            except LabError as error:
                self._fail(task, 1, [str(error)], seconds)
                return
            self.timings.note(task.name, seconds, running.memory_mb)
            self._succeed(task, "ran", seconds)
            return
        text = task.log.read_text(encoding="utf-8", errors="replace")
        mistakes = [line for line in _lines(text) if line.startswith("lab: error:")]
        killed = [f"killed by {signal.Signals(-code).name}"] if code < 0 else []
        self._fail(task, 2 if mistakes else 1, mistakes[-1:] or [*_lines(text)[-_TAIL:], *killed], seconds)

    def _succeed(self, task: Task, how: str, seconds: float | None = None) -> None:
        self.ended[how] += 1
        self.done.add(task.name)
        took = "" if seconds is None else f", {seconds:.0f} s"
        self.console.print(f"[green]ok[/]  {task.name}: {how}{took}")

    def _fail(self, task: Task, code: int, lines: Sequence[str], seconds: float | None = None) -> None:
        self.ended["failed"] += 1
        self.failed.add(task.name)
        self.codes.append(code)
        took = "" if seconds is None else f", {seconds:.0f} s; all of it in {_here(task.log)}"
        self.console.print(f"[red]failed[/]  {task.name}{took}")
        for line in lines:
            self.console.print(f"    {line}", markup=False)
        held = self.pipeline.descendants([task.name]) & self.waiting
        if held:
            self.waiting -= held
            self.ended["held back"] += len(held)
            self.console.print(f"[yellow]held back[/]  {', '.join(sorted(held))}")

    def _mend(self, error: DamageError, task: Task) -> None:
        """Have the task run again whose output is damaged, from DVC's cache where that is whole."""
        owner = self.pipeline.tasks[error.task]
        self.attempts[f"mend {owner.name}"] += 1
        if self.attempts[f"mend {owner.name}"] >= _ATTEMPTS:
            self.waiting.remove(task.name)
            self._fail(task, 1, [f"{error}, again and again: is the disk sound?"])
            return
        self._tell(f"{error}; it is made again")
        with (self.home / ".lab" / "events.log").open("a") as log:
            log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} damaged {error}\n")
        self.recorder.discard(owner)
        self.done.discard(owner.name)
        self.waiting.add(owner.name)

    def _tell(self, text: str) -> None:
        self.console.print(f"[yellow]note[/]  {text}")

    def _heartbeat(self) -> None:
        for running in self.running.values():
            if time.monotonic() - running.reported >= _HEARTBEAT:
                running.reported = time.monotonic()
                line = _last(running.task.log)
                self.console.print(
                    f"  {running.task.name}: {running.seconds():.0f} s  {line}  ({self._left()})",
                    markup=False,
                )

    def _left(self) -> str:
        """How long the rest takes, as far as earlier runs tell."""
        running = [(name, one.seconds()) for name, one in self.running.items()]
        waiting = [(name, 0.0) for name in self.waiting]
        seconds, unknown = 0.0, 0
        for name, spent in running + waiting:
            expected = self.timings.expected(name)
            seconds += max(0.0, expected - spent) if expected is not None else 0.0
            unknown += expected is None
        rest = f", and {unknown} of unknown length" if unknown else ""
        minutes = round(seconds / self.jobs / 60)
        return f"about {minutes} min left{rest}" if minutes else f"less than a minute left{rest}"

    def _tree(self) -> Tree:
        """Stages with how far they are, and what runs now with its losses, for a terminal."""
        from rich.text import Text
        from rich.tree import Tree

        total, done = len(self.chosen), len(self.done)
        head = f"{self.title or self.home.name}  {done}/{total} done, {len(self.waiting)} waiting"
        tree = Tree(Text(f"{head}, {self._left()}", style="bold"))
        groups: dict[str, list[str]] = {}
        for name in sorted(self.chosen, key=list(self.pipeline.tasks).index):
            groups.setdefault(name.split("@")[0], []).append(name)
        for stage, names in groups.items():
            finished = sum(name in self.done for name in names)
            style = (
                "green" if finished == len(names) else "dim" if not set(names) & self.running.keys() else ""
            )
            branch = tree.add(Text(f"{stage}  {finished}/{len(names)}", style=style))
            for name in names:
                if name in self.failed:
                    branch.add(Text(f"{name}  failed", style="red"))
                if running := self.running.get(name):
                    line = Text(f"{name}  {running.seconds():.0f} s  ", no_wrap=True, overflow="ellipsis")
                    branch.add(line.append(_last(running.task.log), style="dim"))
        return tree


class _Timings:
    """How long tasks took and what memory they needed, over runs: `.lab/timings.json`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, dict[str, float]] = {}
        with suppress(OSError, ValueError):
            self.known = json.loads(file.read_text())

    def note(self, name: str, seconds: float, memory_mb: float) -> None:
        self.known[name] = {"seconds": round(seconds, 1), "memory_mb": round(memory_mb)}

    def expected(self, name: str) -> float | None:
        """Seconds, from the task itself or else from the mean of its stage; None where neither has run."""
        if name in self.known:
            return self.known[name]["seconds"]
        stage = name.split("@")[0]
        alike = [entry["seconds"] for other, entry in self.known.items() if other.split("@")[0] == stage]
        return sum(alike) / len(alike) if alike else None

    def save(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        draft.write_text(json.dumps(self.known, indent=1, sort_keys=True) + "\n")
        os.replace(draft, self.file)


def end(mark: str, at_once: Callable[[], bool] = lambda: False) -> None:
    """Ask every process that carries a mark to end, and kill what has not when patience is over.

    Args:
        mark: of the runner.
        at_once: asked over and over; True ends the patience.
    """
    deadline = time.monotonic() + _PATIENCE
    asked: set[int] = set()
    while marked := _marked(mark):
        for process in marked:
            with suppress(psutil.NoSuchProcess):
                if at_once() or time.monotonic() > deadline:
                    process.kill()
                elif process.pid not in asked:
                    asked.add(process.pid)
                    process.terminate()
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
def only_runner(folder: Path, console: Console) -> Iterator[TextIO]:
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


def _here(path: Path) -> Path:
    """The path as seen from the current folder."""
    return Path(os.path.relpath(path))


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
