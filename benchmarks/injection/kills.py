"""Runners and nodes that are killed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from injection.laboratory import EVERY, GRAPH, Laboratory, Outcome, Scenario
from injection.pipeline import Pipeline, Runner

Kill = Callable[[Pipeline, Runner, random.Random], int]


def at_random(kill: Kill, jobs: int = 2, kills: int = 4) -> Scenario:
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


def kill_runner(pipeline: Pipeline, runner: Runner, chance: random.Random) -> int:
    """The runner alone; its guard has the nodes save their state and end."""
    runner.process.kill()
    return 0


def kill_node(pipeline: Pipeline, runner: Runner, chance: random.Random) -> int:
    """One node, while its runner goes on."""
    runner.wait(pipeline.at_work)
    nodes = pipeline.at_work()
    return 1 if nodes and pipeline.kill(chance.choice(nodes)) else -1


def kill_both(pipeline: Pipeline, runner: Runner, chance: random.Random) -> int:
    """The runner and one of its nodes."""
    nodes = pipeline.at_work()
    runner.process.kill()
    return int(bool(nodes) and pipeline.kill(chance.choice(nodes)))


def kill_everything(pipeline: Pipeline, runner: Runner, chance: random.Random) -> int:
    """Every process, the guard too, as when a container is taken away."""
    nodes, pids = len(pipeline.at_work()), pipeline.processes()
    for pid in pids:
        pipeline.kill(pid)
    return nodes


def with_eight_at_work(laboratory: Laboratory, chance: random.Random) -> Outcome:
    """The runner with eight nodes at work."""
    laboratory.expected(GRAPH)
    pipeline, outcome = laboratory.pipeline(GRAPH), Outcome()
    runner = pipeline.start(jobs=8, PAUSE="0.05")
    if runner.wait(lambda: len(pipeline.at_work()) == 8):
        time.sleep(chance.uniform(0, 1.0))
        _strike(pipeline, runner, chance, kill_runner, outcome)
    return laboratory.finish(pipeline, outcome)


def after_resume(laboratory: Laboratory, chance: random.Random) -> Outcome:
    """Everything, then everything again in the first step that is resumed."""
    span = laboratory.seconds(GRAPH)
    pipeline, outcome = laboratory.pipeline(GRAPH), Outcome()
    runner = pipeline.start()
    if runner.work_began() and runner.lasts(chance.uniform(0, span)):
        _strike(pipeline, runner, chance, kill_everything, outcome)
    runner.code()
    for _ in range(2):
        runner = pipeline.start()
        if not runner.wait(runner.resumed, pause=0.001):
            break
        _strike(pipeline, runner, chance, kill_everything, outcome)
        runner.code()
    return laboratory.finish(pipeline, outcome)


def while_there_is(pattern: str, kills: int = 5) -> Scenario:
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
            writers = [int(part) for part in path.split(".") if part.isdigit() and pipeline.owns(int(part))]
            if writers and pipeline.kill(writers[0]):
                pipeline.await_end(writers[0])
                outcome.faults += (pipeline.folder / path).exists()  # otherwise it had finished writing
                outcome.allowed += EVERY
            runner.code()
            if outcome.faults == kills:
                break
        return laboratory.finish(pipeline, outcome)

    return trial


def while_it_writes(name: str, most: int) -> Scenario:
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
            _strike(pipeline, runner, chance, kill_runner, outcome)
            runner.code()
        return laboratory.finish(pipeline, outcome)

    return trial
