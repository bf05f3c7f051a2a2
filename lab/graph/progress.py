"""How far a run is: what waits, what runs, what became of the rest, and how the console tells of it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lab.graph.logs import last_line
from lab.graph.processes import Running
from lab.graph.task import Pipeline, Task
from lab.graph.timings import Timings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

_HEARTBEAT = 30.0  # seconds between two reports of a running task where the output is no terminal


class Progress:
    """Where every task of a run stands.

    Attributes:
        chosen: all tasks that the run brings up to date, whether they are already or not.
        waiting, running, done, failed: those that are so now; one that is held back is in none of them.
        ended: how many ended in which way.
        codes: of failures.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        pipeline: Pipeline,
        chosen: set[str],
        waiting: set[str],
        jobs: int,
        timings: Timings,
    ) -> None:
        self.console, self.title, self.pipeline = console, title, pipeline
        self.chosen, self.waiting, self.jobs, self.timings = chosen, waiting, jobs, timings
        self.began = time.monotonic()
        self.running: dict[str, Running] = {}
        self.done = chosen - waiting
        self.failed: set[str] = set()
        self.ended = Counter({"up to date": len(self.done)})
        self.codes: list[int] = []

    def start(self, running: Running) -> None:
        """Note a task that has been started."""
        self.running[running.task.name] = running
        if not self.console.is_terminal:
            self.console.print(f"  {running.task.name}: started", markup=False)

    def succeed(self, task: Task, how: str, seconds: float | None = None) -> None:
        """Note a task that is up to date now; how, and after how many seconds if it ran."""
        self.ended[how] += 1
        self.done.add(task.name)
        took = "" if seconds is None else f", {seconds:.0f} s"
        self.console.print(f"[green]ok[/]  {task.name}: {how}{took}")

    def fail(self, task: Task, code: int, lines: Sequence[str], seconds: float | None = None) -> None:
        """Note a task that has failed, say why in some lines, and hold back what needs it."""
        self.ended["failed"] += 1
        self.failed.add(task.name)
        self.codes.append(code)
        took = "" if seconds is None else f", {seconds:.0f} s; all of it in {here(task.log)}"
        self.console.print(f"[red]failed[/]  {task.name}{took}")
        for line in lines:
            self.console.print(f"    {line}", markup=False)
        held = self.pipeline.descendants([task.name]) & self.waiting
        if held:
            self.waiting -= held
            self.ended["held back"] += len(held)
            self.console.print(f"[yellow]held back[/]  {', '.join(sorted(held))}")

    def tell(self, text: str) -> None:
        """Say what is out of the ordinary."""
        self.console.print(f"[yellow]note[/]  {text}")

    def heartbeat(self) -> None:
        """Say of every task that runs, now and then, how far it is."""
        for running in self.running.values():
            if time.monotonic() - running.reported >= _HEARTBEAT:
                running.reported = time.monotonic()
                line = last_line(running.task.log)
                self.console.print(
                    f"  {running.task.name}: {running.seconds():.0f} s  {line}  ({self._left()})",
                    markup=False,
                )

    def summary(self) -> str:
        """What became of all, in a line."""
        parts = [f"{count} {state}" for state, count in self.ended.items() if count]
        return f"{', '.join(parts)} in {time.monotonic() - self.began:.0f} s"

    def tree(self) -> Tree:
        """Stages with how far they are, and what runs now with its losses, for a terminal."""
        from rich.text import Text
        from rich.tree import Tree

        total, done = len(self.chosen), len(self.done)
        head = f"{self.title}  {done}/{total} done, {len(self.waiting)} waiting"
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
                    branch.add(line.append(last_line(running.task.log), style="dim"))
        return tree

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


def here(path: Path) -> Path:
    """The path as seen from the current folder."""
    return Path(os.path.relpath(path))
