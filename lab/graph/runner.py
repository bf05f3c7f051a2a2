"""Runs the tasks of a pipeline several at once: the lab schedules, DVC decides and records.

A task that is ready is judged by what DVC knows of it: it is unchanged, comes from DVC's cache, or runs. What
ran is recorded by one writer (record.py), so a plain `dvc repro` afterwards finds nothing to do. Ready tasks
start in the order of how much waits for them. A failure stops what depends on it and nothing else.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from lab.errors import LabError
from lab.graph.cores import cores
from lab.graph.logs import lines_of
from lab.graph.processes import MARK, Running, end, guarded, launch, only_runner, signals
from lab.graph.progress import Progress, here
from lab.graph.record import DamageError, Recorder
from lab.graph.snapshot import Snapshot, take_snapshot
from lab.graph.task import Pipeline, Task
from lab.graph.timings import Timings

_TAIL = 15  # lines of a failed task's log that are shown
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
        stack.enter_context(guarded(mark, lock))
        stop = stack.enter_context(signals())
        environment = _environment(snapshot, mark, jobs)
        timings = Timings(home / ".lab" / "timings.json")
        progress = Progress(console, title or home.name, pipeline, chosen, waiting, jobs, timings)
        return _Run(home, environment, recorder, stop, progress).work()


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
    return {"OMP_NUM_THREADS": threads, **os.environ, **environment_of(snapshot), MARK: mark}


class _Run:
    """One call of `run`: what starts next, and what follows from how it ends."""

    def __init__(
        self,
        home: Path,
        environment: Mapping[str, str],
        recorder: Recorder,
        stop: list[int],
        progress: Progress,
    ) -> None:
        self.home, self.environment, self.recorder = home, environment, recorder
        self.stop, self.progress = stop, progress
        self.console, self.pipeline = progress.console, progress.pipeline
        self.attempts: Counter[str] = Counter()
        self.not_before: dict[str, float] = {}
        self.weight = {name: len(self.pipeline.descendants([name])) for name in progress.chosen}

    def work(self) -> int:
        """Start and await tasks until nothing is left or a signal came."""
        from rich.live import Live

        progress, logs = self.progress, here(self.home / ".lab" / "logs")
        threads = self.environment["OMP_NUM_THREADS"]
        self.console.print(
            f"{len(progress.waiting)} of {len(progress.chosen)} stages may have changed; "
            f"{progress.jobs} at once, threads each: {threads}; logs in {logs}"
        )
        with ExitStack() as stack:
            live = None
            if self.console.is_terminal:
                live = stack.enter_context(Live(console=self.console, refresh_per_second=4, transient=True))
            while (progress.waiting or progress.running) and not self.stop:
                moved = self._start()
                for running in [one for one in progress.running.values() if one.ended()]:
                    self._finish(running)
                    moved = True
                if live is not None:
                    live.update(progress.tree())
                else:
                    progress.heartbeat()
                if not moved:
                    time.sleep(0.05)
        progress.timings.save()
        if self.stop:
            return self._stopped()
        self.console.print(progress.summary())
        return max(progress.codes, key=lambda code: code == 1, default=0)

    def _stopped(self) -> int:
        running = self.progress.running
        if running:
            self.console.print(f"stopping {', '.join(running)}; again Ctrl-C for at once")
        end(self.environment[MARK], lambda: len(self.stop) > 1)
        for one in list(running.values()):
            with suppress(ChildProcessError):
                one.process.returncode = one.process.wait()
            if one.process.returncode == 0:  # it was about to end by itself
                self._finish(one)
        self.console.print(
            f"stopped in {', '.join(running) or 'between stages'}; the same command goes on from there"
        )
        raise KeyboardInterrupt

    def _start(self) -> bool:
        """Judge the tasks that are ready, those with the most behind them first, and start those that run."""
        unfinished = self.progress.waiting | self.progress.running.keys()
        now = time.monotonic()
        ready = [
            name
            for name in self.progress.waiting
            if not self.pipeline.tasks[name].parents & unfinished and self.not_before.get(name, 0.0) <= now
        ]
        ready.sort(key=lambda name: (-self.weight[name], name))
        moved = False
        for name in ready:
            if len(self.progress.running) >= self.progress.jobs or self.stop:
                break
            task, moved = self.pipeline.tasks[name], True
            try:
                verdict = self.recorder.judge(task)
            except DamageError as error:
                self._mend(error, task)
                break
            except LabError as error:
                self.progress.waiting.remove(name)
                self.progress.fail(task, 2, [f"lab: error: {error}"])
                continue
            self.progress.waiting.remove(name)
            if verdict == "run":
                self.attempts[name] += 1
                self.progress.start(launch(task, self.environment))
            else:
                self.progress.succeed(task, verdict)
        return moved

    def _finish(self, running: Running) -> None:
        """Record a task that has ended, or hold back what needed it if it failed."""
        task, code = running.task, running.process.returncode
        del self.progress.running[task.name]
        again = code == _PREEMPTED and self.attempts[task.name] < _ATTEMPTS
        if code == _BUSY or again:
            self.progress.waiting.add(task.name)
            self.not_before[task.name] = time.monotonic() + _RETRY
            self.progress.tell(
                f"{task.name}: {'another attempt works on it' if code == _BUSY else 'interrupted'}; again"
            )
            return
        seconds = running.seconds()
        if code == 0:
            try:
                self.recorder.record(task)
            except LabError as error:
                self.progress.fail(task, 1, [str(error)], seconds)
                return
            self.progress.timings.note(task.name, seconds, running.memory_mb)
            self.progress.succeed(task, "ran", seconds)
            return
        text = task.log.read_text(encoding="utf-8", errors="replace")
        mistakes = [line for line in lines_of(text) if line.startswith("lab: error:")]
        killed = [f"killed by {signal.Signals(-code).name}"] if code < 0 else []
        lines = mistakes[-1:] or [*lines_of(text)[-_TAIL:], *killed]
        self.progress.fail(task, 2 if mistakes else 1, lines, seconds)

    def _mend(self, error: DamageError, task: Task) -> None:
        """Have the task run again whose output is damaged, from DVC's cache where that is whole."""
        owner = self.pipeline.tasks[error.task]
        self.attempts[f"mend {owner.name}"] += 1
        if self.attempts[f"mend {owner.name}"] >= _ATTEMPTS:
            self.progress.waiting.remove(task.name)
            self.progress.fail(task, 1, [f"{error}, again and again: is the disk sound?"])
            return
        self.progress.tell(f"{error}; it is made again")
        with (self.home / ".lab" / "events.log").open("a") as log:
            log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} damaged {error}\n")
        self.recorder.discard(owner)
        self.progress.done.discard(owner.name)
        self.progress.waiting.add(owner.name)
