"""A signal ends a run between two steps, with its state saved; the same call goes on, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lab.training.checkpoints import LastCheckpoint, find
from lab.training.fit import FitSettings
from lab.training.preemption import Preempted

Training = Callable[..., Any]
Together = Callable[..., list[Any]]
ROOT = Path(__file__).parents[2]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGUSR1: 75}


def send(number: int) -> Callable[[pl.Trainer], None]:
    return lambda trainer: os.kill(os.getpid(), number)


def same(one: Any, two: Any) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def saved_step(folder: Path) -> int:
    state = find(folder)
    assert state is not None
    return int(torch.load(state / "meta.pt" if state.is_dir() else state, weights_only=True)["global_step"])


@pytest.mark.parametrize("number", CODES)
def test_a_signal_saves_the_step_it_came_in_and_says_so(
    training: Training, at: Any, settings: FitSettings, tmp_path: Path, number: int
) -> None:
    before = {one: signal.getsignal(one) for one in CODES}
    with pytest.raises(Preempted, match=signal.Signals(number).name) as caught:
        training("unified", "work", settings, at(7, send(number)))
    assert caught.value.code == CODES[number]
    assert saved_step(tmp_path / "work") == 8  # it comes at the end of 7, after all have looked
    continued, record = training("unified", "work")
    whole, expected = training("unified", "whole")
    assert min(record.steps) == 9
    assert record.steps == {step: expected.steps[step] for step in record.steps}
    assert same(whole, continued)
    assert {one: signal.getsignal(one) for one in CODES} == before


def test_between_log_points_and_checkpoints_nothing_is_lost(
    training: Training, at: Any, settings: FitSettings
) -> None:
    sparse = replace(settings, log_every=6, checkpoint_every=100)
    whole, expected = training("unified", "whole", sparse)
    for step in (2, 4, 8):
        with pytest.raises(Preempted):
            training("unified", "work", sparse, at(step, send(signal.SIGUSR1)))
    continued, record = training("unified", "work", sparse)
    assert record.steps[12] == expected.steps[12]
    assert same(whole, continued)


def test_a_signal_while_a_checkpoint_is_written_saves_no_second_one(
    training: Training, settings: FitSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes in the middle of the write at step 5; step 6 is the next to look, and saves."""
    steps: list[int] = []
    save = LastCheckpoint.save

    def signalled(self: LastCheckpoint, trainer: pl.Trainer) -> None:
        steps.append(trainer.global_step)
        os.kill(os.getpid(), signal.SIGTERM)
        save(self, trainer)

    monkeypatch.setattr(LastCheckpoint, "save", signalled)
    with pytest.raises(Preempted):
        training()
    assert steps == [5, 6]
    assert saved_step(tmp_path / "work") == 6
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["last.ckpt"]


def test_a_signal_in_a_step_where_a_checkpoint_is_due_saves_once(
    training: Training, settings: FitSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    save = LastCheckpoint.save
    monkeypatch.setattr(
        LastCheckpoint, "save", lambda self, trainer: steps.append(trainer.global_step) or save(self, trainer)
    )
    with pytest.raises(Preempted):
        training("unified", "work", settings, During(5, send(signal.SIGTERM)))
    assert steps == [5]


class During(pl.Callback):
    """Does something within a step, before its backward pass."""

    def __init__(self, step: int, action: Callable[[pl.Trainer], None]) -> None:
        self.step, self.action = step, action

    def on_before_backward(self, trainer: Any, module: Any, loss: Any) -> None:
        if trainer.global_step + 1 == self.step:
            self.action(trainer)


def test_in_the_last_step_the_end_is_saved_and_nothing_trained_again(
    training: Training, settings: FitSettings, tmp_path: Path
) -> None:
    with pytest.raises(Preempted):
        training("unified", "work", settings, During(12, send(signal.SIGTERM)))
    assert saved_step(tmp_path / "work") == 12
    continued, record = training("unified", "work")
    assert record.steps == {}
    assert same(training("unified", "whole")[0], continued)


def test_the_second_ctrl_c_stops_at_once(training: Training, settings: FitSettings, tmp_path: Path) -> None:
    def twice(trainer: pl.Trainer) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        training("unified", "work", settings, During(7, twice))
    assert not isinstance(caught.value, Preempted)
    assert saved_step(tmp_path / "work") == 5


@pytest.mark.parametrize("env", [{}, {"LAB_STRATEGY": "fsdp"}], ids=["ddp", "fsdp"])
def test_one_signalled_process_of_two_stops_both_at_the_same_step(
    training: Training, together: Together, settings: FitSettings, tmp_path: Path, env: dict[str, str]
) -> None:
    def signalled() -> tuple[int, int]:
        hit = During(7, send(signal.SIGUSR1)) if os.environ["RANK"] == "1" else During(0, send(0))
        with pytest.raises(Preempted) as caught:
            training("unified", "work", settings, hit)
        return int(caught.value.number), saved_step(tmp_path / "work")

    assert together(2, signalled, **env) == [(signal.SIGUSR1, 7)] * 2

    def weights() -> Any:
        return training("unified", "work")[0].state_dict()

    continued = together(2, weights, **env)[0]
    whole = together(2, lambda: training("unified", "whole")[0].state_dict(), **env)[0]
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


EARLY = """
import sys, time
from lab.cli import main
import lab.graph.execution as execution
def prepares(*words):
    print("ready", flush=True)
    time.sleep(30)
execution.run_stage = prepares
sys.exit(main(["stage", "data"]))
"""


@pytest.mark.parametrize("number", CODES)
def test_before_training_a_signal_ends_the_command_with_the_same_code(number: int) -> None:
    command = [sys.executable, "-c", EARLY]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == CODES[number]
    assert "Traceback" not in errors
    assert errors.strip().endswith("the same command goes on from there")
