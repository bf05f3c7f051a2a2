"""What recording costs a training step: nothing recorded, SQLite, a server, a server that hangs.

    .venv/bin/python benchmarks/tracking.py [--turns 12] [--steps 60] [--every 1] [--write]

One process trains an arm of `params.yaml` as the stage `instruct` does, and records at every log point what
the stage records. The ways to record take turns, in another order each time. What recording costs is counted
where it arises, so that the noise of a step does not hide it: processor time of the calls in the training's
thread, as a share of the time of its steps, and of the thread that writes, which is at work in all turns, as
a share of the time of all steps. What a server's own process uses is no part of it. `--write` puts the table
into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from threading import Thread

sys.path.insert(0, str(Path(__file__).parent))
from arms_side_by_side import training
from page import ROOT, machine, table, write_between

sys.path.insert(0, str(ROOT / "tests" / "servers"))
from mlflow_server import running_server

MARKS = ("<!-- tracking: begin -->", "<!-- tracking: end -->")
OFF, SQLITE, SERVER, HANGING = "off", "SQLite", "server", "server that hangs"
LOSSES = ("caption", "inventory", "vqa", "text", "interleaved", "text_to_image", "edit")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=12, help="of each way to record (%(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="of a turn (%(default)s)")
    parser.add_argument("--every", type=int, default=1, help="steps between log points (%(default)s)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["LAB_TRACKING"] = "on"
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        (Path(scratch) / ".git").mkdir()
        text = measure(args.turns, args.steps, args.every, Path(scratch))
    print(text)
    if args.write:
        write_between(ROOT / "docs" / "benchmarks.md", MARKS, text)


@dataclass
class Cost:
    """What turns of one way to record came to, in seconds, and log points."""

    steps: list[float] = field(default_factory=list)  # processor time of the training's thread in each turn
    clock: list[float] = field(default_factory=list)  # of each turn
    calls: float = 0.0  # processor time
    waited: list[float] = field(default_factory=list)  # in each call
    writing: float = 0.0  # processor time

    def row(self, way: str, steps: int, whole: float) -> list[str]:
        """Of the table; `whole` is the time of all turns, in all of which the writer was at work."""
        shown = [f"{1000 * median(self.steps) / steps:.0f}", f"{1000 * median(self.clock) / steps:.0f}"]
        if way == OFF:
            return [way, *shown, "", "", ""]
        share = self.calls / sum(self.clock) + self.writing / whole
        point = f"{1e6 * self.calls / len(self.waited):.0f}", f"{1e6 * median(self.waited):.0f}"
        return [way, *shown, *point, f"{100 * share:.2f}"]


def measure(turns: int, steps: int, every: int, scratch: Path) -> str:
    """Runs all turns and says what each way came to."""
    train = training([])
    for _ in range(5):
        next(train)  # what is allocated once
    with recorders(scratch) as (ways, writers):
        costs = {way: Cost() for way in ways}
        before = {way: processor_time(writer) for way, writer in writers.items()}
        for turn in range(turns):
            for way in random.Random(turn).sample(list(ways), len(ways)):
                cost, begun, used = costs[way], time.perf_counter(), time.thread_time()
                for step in range(steps):
                    next(train)
                    if step % every == 0:
                        since, own = time.perf_counter(), time.thread_time()
                        ways[way](turn * steps + step)
                        cost.waited.append(time.perf_counter() - since)
                        cost.calls += time.thread_time() - own
                cost.steps.append(time.thread_time() - used)
                cost.clock.append(time.perf_counter() - begun)
        time.sleep(15)  # the writers send the rest
        for way, writer in writers.items():
            costs[way].writing = processor_time(writer) - before[way]
    whole = sum(sum(cost.clock) for cost in costs.values())
    head = ["recorded in", "step, ms of processor", "step, ms on the clock"]
    head += ["a log point, µs of processor", "it waits, µs", "recording, % of the steps' time"]
    rows = [head, *(cost.row(way, steps, whole) for way, cost in costs.items())]
    points = "at every step" if every == 1 else f"every {every} steps"
    return f"{machine()}; {turns} turns of {steps} steps each, a log point {points}.\n\n{table(rows)}"


def processor_time(thread: Thread) -> float:
    """Seconds that a thread has worked."""
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


@contextmanager
def recorders(scratch: Path) -> Iterator[tuple[dict[str, Callable[[int], None]], dict[str, Thread]]]:
    """Way -> what records a log point, and the thread that writes; all open at once in runs of their own."""
    from lab.tracking import start_run

    def recorder(way: str, uri: str) -> Callable[[int], None]:
        os.environ["MLFLOW_TRACKING_URI"] = uri
        known = set(threading.enumerate())
        opened = start_run(experiment="benchmark", arm="arm", stage="instruct", name=uri)
        run = opened.__enter__()
        (writers[way],) = (one for one in set(threading.enumerate()) - known if one.name == "lab-tracking")
        closing.append(lambda: opened.__exit__(None, None, None))

        def record(step: int) -> None:
            values = {f"train/loss_{name}": 1 / (step + 1) for name in LOSSES}
            run.metrics({**values, "train/loss": 1.0, "train/learning_rate": 1e-3}, step)
            run.metrics(
                {"perf/samples_per_second": 100.0, "budget/samples": step, "budget/tokens": step}, step
            )

        return record

    closing: list[Callable[[], None]] = []
    writers: dict[str, Thread] = {}
    places = [scratch / "one", scratch / "two"]
    for place in places:
        place.mkdir()
    one, two = (running_server(f"sqlite:///{place}/mlflow.db", place) for place in places)
    with one as serving, two as hanging:
        ways = {OFF: lambda step: None, SQLITE: recorder(SQLITE, f"sqlite:///{scratch}/mlflow.db")}
        ways |= {SERVER: recorder(SERVER, serving.uri), HANGING: recorder(HANGING, hanging.uri)}
        hanging.send(signal.SIGSTOP)
        yield ways, writers
        hanging.send(signal.SIGCONT)
        for close in closing:
            close()


if __name__ == "__main__":
    main()
