"""The processes below a runner: started, and ended whatever happens.

Stopping must leave nothing behind. Every process below the runner carries a mark in its environment, by which
it is found, and is asked to end, which training does after a checkpoint. A guard, a process that only waits
for the runner's end, does the same when the runner itself was killed.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

import psutil

from lab.graph.task import Task

if TYPE_CHECKING:
    from rich.console import Console

MARK = "LAB_RUNNER"  # environment variable that marks every process below a runner
_PATIENCE = 60.0  # seconds that a command has to write a checkpoint and end before it is killed


@dataclass
class Running:
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


def launch(task: Task, environment: Mapping[str, str]) -> Running:
    """Start a task's command."""
    # without a shell in between, a signal reaches the stage itself
    command = f"exec {task.command}" if task.command.startswith("lab ") else task.command
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("wb") as handle:
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            cwd=task.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the runner alone, which then ends all in order
        )
    return Running(task, process, time.monotonic(), time.monotonic())


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
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:  # it has ended, or it is somebody else's
            continue
    return found


@contextmanager
def guarded(mark: str, lock: TextIO) -> Iterator[None]:
    """Have a guard for as long as stages run. It shares the lock: a new runner starts after its work."""
    command = [sys.executable, "-c", f"from lab.graph.processes import guard; guard({mark!r})"]
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
def signals() -> Iterator[list[int]]:
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
