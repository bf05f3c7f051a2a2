"""A run that was cut off anywhere and continued is, bit for bit, the run that nothing disturbed."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lab.errors import LabError
from lab.training.fit import FitSettings
from lab.training.stage_module import StageModule

Training = Callable[..., tuple[StageModule, Any]]
ROOT = Path(__file__).parents[2]


class Stopped(Exception):
    pass


def stop(trainer: pl.Trainer) -> None:
    raise Stopped


def assert_equal(one: StageModule, two: StageModule) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("kind", ["unified", "text", "contrastive", "image"])
def test_continued_is_undisturbed(
    training: Training, at: Any, settings: FitSettings, tmp_path: Path, kind: str
) -> None:
    """Cut off at step 7 of 12, within an epoch, two steps after a checkpoint."""
    whole, expected = training(kind, "whole")
    with pytest.raises(Stopped):
        training(kind, "cut", settings, at(7, stop))
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["last.ckpt"]
    continued, record = training(kind, "cut")
    assert_equal(whole, continued)
    assert sorted(record.steps) == list(range(6, 13))
    for step in range(6, 13):
        assert record.steps[step] == expected.steps[step]  # every loss and the learning rate, bit for bit


def test_also_cut_off_twice_and_between_log_points(
    training: Training, at: Any, settings: FitSettings
) -> None:
    sparse = replace(settings, log_every=4, checkpoint_every=3)
    whole, expected = training("unified", "whole", sparse)
    for step in (5, 10):
        with pytest.raises(Stopped):
            training("unified", "cut", sparse, at(step, stop))
    continued, record = training("unified", "cut", sparse)
    assert_equal(whole, continued)
    assert record.steps[12] == expected.steps[12]  # means over steps 9 to 12, of which 9 was before the cut


def test_all_that_a_checkpoint_has_behind_it_is_recorded(training: Training) -> None:
    """A kill loses what waits to be written, and a resumed run never logs those steps again."""
    _, record = training()
    assert record.flushed == [5, 10]


def test_cut_off_after_the_last_step_nothing_is_trained_again(
    training: Training, settings: FitSettings
) -> None:
    ended = replace(settings, checkpoint_every=6)
    whole, _ = training("unified", "work", ended)
    again, record = training("unified", "work", ended)
    assert_equal(whole, again)
    assert record.steps == {}


def test_random_states_continue(training: Training, at: Any, settings: FitSettings) -> None:
    """Who draws after a step draws what it would have drawn."""
    import random

    import numpy as np

    drawn: dict[str, list[float]] = {}

    def draw(into: str) -> Callable[[pl.Trainer], None]:
        return lambda trainer: drawn.setdefault(into, []).extend(
            [torch.rand(1).item(), np.random.rand(), random.random()]
        )

    np.random.seed(5)
    random.seed(5)
    training("unified", "whole", settings, at(8, draw("whole")))
    np.random.seed(5)
    random.seed(5)
    with pytest.raises(Stopped):
        training("unified", "cut", settings, at(7, stop))
    np.random.seed(6)
    training("unified", "cut", settings, at(8, draw("cut")))
    assert drawn["cut"] == drawn["whole"]


KILLED = """
import os, signal, socket, sys
import pytest
from lab.training.checkpoints import LastCheckpoint

save = LastCheckpoint.save
def killed(self, trainer):
    if trainer.global_step == 10:  # half of a checkpoint is written
        path = self.path.with_name(f"last.{socket.gethostname()}.{os.getpid()}.partial")
        path.write_bytes(self.path.read_bytes()[: self.path.stat().st_size // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, trainer)
LastCheckpoint.save = killed
sys.exit(pytest.main([*sys.argv[1:], "-q", "-p", "no:cacheprovider"]))
"""


def test_killed_while_it_writes_a_checkpoint(training: Training, tmp_path: Path) -> None:
    """kill -9 in the middle of the second checkpoint: the first is whole, and the run continues from it."""
    place = tmp_path / "work"
    process = subprocess.run(
        [sys.executable, "-c", KILLED, f"{__file__}::test_what_is_killed"],
        env={**os.environ, "LAB_TEST_WORK": str(place)},
        cwd=ROOT,
        capture_output=True,
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL, process.stdout.decode()
    half = [path.name for path in place.glob("last.*.partial")]
    assert {path.name for path in place.iterdir()} == {"last.ckpt", *half}
    assert len(half) == 1
    checkpoint = torch.load(place / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 5
    continued, record = training("unified", "work")
    assert [path.name for path in place.iterdir()] == ["last.ckpt"]  # and the half is gone
    assert min(record.steps) == 6
    whole, expected = training("unified", "whole")
    assert_equal(whole, continued)
    assert record.steps[12] == expected.steps[12]


@pytest.mark.skipif("LAB_TEST_WORK" not in os.environ, reason="runs below the test of kill -9")
def test_what_is_killed(training: Training) -> None:
    training("unified", os.environ["LAB_TEST_WORK"])


def test_checkpoints_are_data_not_programs(
    training: Training, at: Any, settings: FitSettings, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        training("unified", "work", settings, at(6, stop))
    checkpoint = torch.load(tmp_path / "work" / "last.ckpt", weights_only=True)
    assert {"state_dict", "optimizer_states", "lr_schedulers", "callbacks"} <= checkpoint.keys()

    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "harm"),)

    (tmp_path / "work" / "last.ckpt").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(LabError, match=r"last\.ckpt"):
        training("unified", "work")
    assert not (tmp_path / "harm").exists()


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(
    training: Training, at: Any, settings: FitSettings, together: Callable[..., Any], tmp_path: Path
) -> None:
    """No file may grow beyond half a checkpoint from step 7 on, as if a quota were reached."""

    def fill(trainer: pl.Trainer) -> None:
        half = (tmp_path / "work" / "last.ckpt").stat().st_size // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (half, resource.RLIM_INFINITY))

    with pytest.raises(LabError, match=r"unified: could not write to .*/work: .*File too large.*free some"):
        together(1, lambda: training("unified", "work", settings, at(7, fill)))
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "work" / "last.ckpt", weights_only=True)["global_step"] == 5
    continued, _ = training("unified", "work")
    assert_equal(training("unified", "whole")[0], continued)


def test_what_others_write_now_is_left_alone(training: Training, tmp_path: Path) -> None:
    here, work = socket.gethostname(), tmp_path / "work"
    work.mkdir()
    alive, dead = os.getppid(), 2**22 + 1  # more than the kernel's largest
    for name in (f"{here}.{alive}", f"{here}.{dead}", f"elsewhere.{dead}", f"gone.{dead}"):
        (work / f"last.{name}.partial").touch()
    os.utime(work / f"last.gone.{dead}.partial", (0, 0))
    training()
    left = {path.name for path in work.glob("*.partial")}
    assert left == {f"last.{here}.{alive}.partial", f"last.elsewhere.{dead}.partial"}
