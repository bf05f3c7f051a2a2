"""Runners that are asked to stop, and attempts that meet."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from injection.laboratory import EVERY, GRAPH, SMALL, STEPS, Laboratory, Outcome, Scenario
from injection.pipeline import PATIENCE, Pipeline


def asked(*numbers: int, linger: str = "0") -> Scenario:
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


def two_runners(laboratory: Laboratory, chance: random.Random) -> Outcome:
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


def many_attempts(laboratory: Laboratory, chance: random.Random) -> Outcome:
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


def paused(laboratory: Laboratory, chance: random.Random) -> Outcome:
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
