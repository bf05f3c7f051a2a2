"""A few of the faults that benchmarks/faults.py injects by the hundred, each at a moment that is certain."""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from injection import rivals
from injection.laboratory import EVERY, PART, SMALL, Laboratory, Outcome
from injection.pipeline import Pipeline


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    made = Laboratory(tmp_path_factory.mktemp("laboratory"))
    made.expected(SMALL)
    return made


@pytest.fixture
def pipeline(laboratory: Laboratory) -> Pipeline:
    return laboratory.pipeline(SMALL)


def test_nothing_is_lost_when_every_process_is_killed(laboratory: Laboratory, pipeline: Pipeline) -> None:
    runner = pipeline.start()
    assert runner.wait(lambda: len(pipeline.events("step")) > 2 * EVERY + 1, pause=0.001)
    for pid in pipeline.processes():
        pipeline.kill(pid)
    assert runner.code() == -signal.SIGKILL
    outcome = laboratory.finish(pipeline, Outcome(faults=1, allowed=EVERY))
    assert not outcome.problems


def test_dvc_lock_is_whole_when_the_runner_is_killed_while_it_writes(
    laboratory: Laboratory, pipeline: Pipeline
) -> None:
    for _ in range(2):
        runner = pipeline.start()
        assert runner.changes(pipeline.folder / "dvc.lock")
        runner.process.kill()
        runner.code()
    (pipeline.folder / ".dvc" / "tmp" / "rwlock").write_text("")  # what a killed `dvc repro` leaves
    assert not laboratory.finish(pipeline, Outcome(faults=2)).problems


def test_a_late_attempt_is_refused(laboratory: Laboratory) -> None:
    assert not rivals.paused(laboratory, random.Random(0)).problems


def test_nodes_run_the_code_that_they_were_submitted_with(laboratory: Laboratory, pipeline: Pipeline) -> None:
    runner = pipeline.start()
    assert runner.work_began()  # of the first node; those that use the file wait
    file = pipeline.folder / "components" / "quick" / "special.py"
    before = file.read_text()
    file.write_text(PART.format(salt="edited"))
    assert runner.code() == 0
    assert set(pipeline.stale()) == {"arm1", "arm2"}
    file.write_text(before)
    assert not laboratory.finish(pipeline, Outcome(faults=1)).problems
