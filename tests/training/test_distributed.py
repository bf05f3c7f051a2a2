"""Several processes train as one does: the same samples, the same losses, one state to go on from."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml

from lab.cli import main
from lab.config import TrainerParams, apply_override, check_params
from lab.errors import LabError
from lab.training.fit import FitSettings
from lab.training.modules import UnifiedTraining
from lab.training.processes import Processes, is_rank_zero, placement, planned, processes

Training = Callable[..., Any]
Together = Callable[..., list[Any]]
FSDP = {"LAB_STRATEGY": "fsdp"}
PARAMS = Path(__file__).parents[2] / "params.yaml"


class Stopped(Exception):
    pass


def stop(trainer: Any) -> None:
    raise Stopped


def trained(
    training: Training, *args: Any, quiet: bool = True, trainer: TrainerParams | None = None
) -> tuple[dict[str, Any], Any]:
    """Weights and record, in a form that another process can send."""
    module, record = training(*args, quiet=quiet, trainer=trainer)
    return module.state_dict(), record


def assert_alike(steps: dict[int, dict[str, float]], expected: dict[int, dict[str, float]]) -> None:
    """Losses to 1e-6 of what they are; learning rates and what has been spent likewise."""
    assert steps
    for step, values in steps.items():
        assert values == pytest.approx(expected[step], rel=1e-6, abs=1e-7), step


@pytest.mark.parametrize(
    ("kind", "env"),
    [
        *((kind, {}) for kind in ("unified", "apart", "text", "contrastive", "image")),
        *((kind, FSDP) for kind in ("apart", "text", "contrastive")),
    ],
    ids=lambda value: value if isinstance(value, str) else "fsdp" if value else "ddp",
)
def test_two_train_as_one(
    training: Training, together: Together, settings: FitSettings, kind: str, env: dict[str, str]
) -> None:
    """Losses by task, learning rates and costs of the same global batches; rank 0 has the weights."""
    module, one = training(kind, "one", settings, quiet=True)
    (weights, two), (_, other) = together(2, lambda: trained(training, kind, "two", settings), **env)
    assert sorted(two.steps) == list(range(1, 13))
    assert_alike(two.steps, one.steps)
    assert other.steps == {}  # of the two, one writes
    assert two.costs == other.costs
    for name in ("steps", "samples", "tokens"):
        assert two.costs[f"cost/{name}"] == one.costs[f"cost/{name}"]
    if kind != "contrastive":  # there, both do the text tower's work
        assert two.costs["cost/flops"] == pytest.approx(one.costs["cost/flops"], rel=0.25)
    expected = module.state_dict()
    assert all(type(weights[name]) is torch.Tensor for name in expected)
    apart = sum((weights[name] - value).square().sum() for name, value in expected.items()) ** 0.5
    assert apart < 1e-4 * sum(value.square().sum() for value in expected.values()) ** 0.5


@pytest.mark.parametrize(
    ("layout", "accumulate", "env"),
    [("packed", 1, {}), ("packed", 2, FSDP)],
    ids=["packed rows", "parts of packed rows, split weights"],
)
def test_two_train_as_one_in_rows_and_parts(
    training: Training,
    together: Together,
    settings: FitSettings,
    layout: str,
    accumulate: int,
    env: dict[str, str],
) -> None:
    """Of a padded batch of one process, to rounding; one process reads only and the other draws only."""
    short = replace(settings, steps=5)
    where = TrainerParams(layout="padded")
    module, one = training("apart", "one", short, quiet=True, trainer=where)
    other = replace(where, layout=layout)

    def run() -> Any:
        return trained(training, "apart", "two", replace(short, accumulate=accumulate), trainer=other)

    weights, two = together(2, run, **env)[0]
    assert sorted(two.steps) == list(range(1, 6))
    for step, values in two.steps.items():
        assert values == pytest.approx(one.steps[step], rel=1e-4, abs=1e-6), step
    expected = module.state_dict()
    apart = sum((weights[name] - value).square().sum() for name, value in expected.items()) ** 0.5
    assert apart < 1e-3 * sum(value.square().sum() for value in expected.values()) ** 0.5


class Draw(pl.Callback):
    """Draws a number as training starts."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.drawn = torch.rand(1).item()


def test_processes_draw_noise_of_their_own(
    training: Training, together: Together, settings: FitSettings
) -> None:
    def drawn(work: str = "two") -> float:
        draw = Draw()
        training("unified", work, settings, draw)
        return draw.drawn

    one = drawn("one")
    first, second = together(2, drawn)
    assert first == one
    assert second != one


def test_a_broken_loss_in_one_process_stops_all_and_names_its_samples(
    training: Training, together: Together, settings: FitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = UnifiedTraining.loss
    named: list[str] = []

    def breaks(self: UnifiedTraining, batch: Any) -> torch.Tensor:
        if self.trainer.global_step == 7 and os.environ["RANK"] == "1":
            named[:] = batch.sample_ids
            return loss(self, batch) * math.nan
        return loss(self, batch)

    def broken() -> tuple[str, list[str]]:
        with pytest.raises(LabError) as caught:
            training("unified", "work", settings)
        return str(caught.value), named

    monkeypatch.setattr(UnifiedTraining, "loss", breaks)
    (message, _), (same, samples) = together(2, broken)
    assert message == same
    assert "the loss is not finite at step 8" in message
    assert samples[0] in message or len(samples) > 2


def test_a_budget_ends_all_processes_at_the_step_of_one(
    training: Training, together: Together, settings: FitSettings
) -> None:
    _, free = training("unified", "free", settings, quiet=True)
    limited = replace(settings, budget={"tokens": free.costs["cost/tokens"] // 2})
    _, one = training("unified", "one", limited, quiet=True)
    two, other = together(2, lambda: trained(training, "unified", "two", limited)[1])
    assert two.costs == other.costs
    for name in ("steps", "tokens"):
        assert two.costs[f"cost/{name}"] == one.costs[f"cost/{name}"]
    assert_alike(two.steps, one.steps)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on(
    training: Training, together: Together, settings: FitSettings, at: Any, before: int, after: int
) -> None:
    _, expected = training("unified", "whole", settings, quiet=True)

    def cut() -> None:
        with pytest.raises(Stopped):
            training("unified", "cut", settings, at(7, stop), quiet=True)

    together(before, cut)
    _, record = together(after, lambda: trained(training, "unified", "cut", settings))[0]
    assert sorted(record.steps) == list(range(6, 13))
    assert_alike(record.steps, expected.steps)
    assert record.costs["cost/tokens"] == expected.costs["cost/tokens"]


# -- weights that are split ----------------------------------------------------------------------------------


def cut_in_shards(training: Training, together: Together, settings: FitSettings, at: Any) -> None:
    def cut() -> None:
        with pytest.raises(Stopped):
            training("unified", "cut", settings, at(7, stop), quiet=True)

    together(2, cut, **FSDP)


def test_shards_are_published_by_one_name_and_old_ones_removed(
    training: Training, together: Together, settings: FitSettings, at: Any, tmp_path: Path
) -> None:
    cut_in_shards(training, together, replace(settings, checkpoint_every=3), at)
    folder, last = sorted(tmp_path.joinpath("cut").iterdir(), key=lambda path: path.is_file())
    assert last.name == "last.ckpt"
    assert last.read_text() == f"shards in {folder.name}\n"
    assert folder.name.endswith(".6.shards")
    assert len(list(folder.glob("*.distcp"))) == 2  # one a process


@pytest.mark.parametrize(("after", "env"), [(2, FSDP), (1, FSDP), (1, {}), (2, {})], ids=str)
def test_shards_go_on_anywhere(
    training: Training, together: Together, settings: FitSettings, at: Any, after: int, env: dict[str, str]
) -> None:
    """On as many processes, or fewer, split or not."""
    _, expected = training("unified", "whole", settings, quiet=True)
    cut_in_shards(training, together, settings, at)
    _, record = together(after, lambda: trained(training, "unified", "cut", settings), **env)[0]
    assert sorted(record.steps) == list(range(6, 13))
    assert_alike(record.steps, expected.steps)


def test_shards_continued_are_undisturbed(
    training: Training, together: Together, settings: FitSettings, at: Any
) -> None:
    """Bit for bit, noise included, on the same number of processes."""

    def cut() -> None:
        with pytest.raises(Stopped):
            training("unified", "cut", settings, at(7, stop))

    whole, expected = together(2, lambda: trained(training, "unified", "whole", quiet=False), **FSDP)[0]
    together(2, cut, **FSDP)
    weights, record = together(2, lambda: trained(training, "unified", "cut", quiet=False), **FSDP)[0]
    assert record.steps == {step: expected.steps[step] for step in range(6, 13)}
    assert all(torch.equal(whole[name], weights[name]) for name in whole)


def test_whole_weights_are_not_split_later(
    training: Training, together: Together, settings: FitSettings, at: Any
) -> None:
    with pytest.raises(Stopped):
        training("unified", "work", settings, at(7, stop))
    with pytest.raises(LabError, match=r"last\.ckpt was written by processes that had all weights each"):
        together(2, lambda: training("unified", "work", settings), **FSDP)


# -- what is refused -----------------------------------------------------------------------------------------


def test_a_batch_has_to_divide(training: Training, together: Together, settings: FitSettings) -> None:
    with pytest.raises(LabError, match="batch_size 8 cannot be divided among 3 processes"):
        together(3, lambda: training("unified", "work", settings))


def test_some_stages_train_alone(training: Training, together: Together, settings: FitSettings) -> None:
    with pytest.raises(LabError, match="represent: trains in one process only, not 2: it draws hard"):
        together(2, lambda: training("represent", "work", settings))


# -- who is who ----------------------------------------------------------------------------------------------

ELASTIC = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "0"}
STEP = {
    **BATCH,
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, Processes()),
        (ELASTIC, Processes(3, 4, 2, "torchrun")),
        (STEP, Processes(2, 4, 2, "srun")),
        (BATCH, Processes()),  # the script of a job is one process, whatever its steps will be
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, Processes()),
        ({**STEP, **ELASTIC}, Processes(3, 4, 2, "torchrun")),
    ],
    ids=["alone", "torchrun", "srun", "batch script", "one task", "torchrun within srun"],
)
def test_who_started_this_process(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], expected: Processes
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert processes() == expected
    assert is_rank_zero() == (expected.rank == 0)


def test_lightning_is_told_what_slurm_says_and_leaves_requeueing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    monkeypatch.setenv("MASTER_PORT", "12345")
    told = placement(TrainerParams(devices=1), branches=True)
    assert (told["devices"], told["num_nodes"]) == (2, 2)
    (environment,) = told["plugins"]
    assert (environment.world_size(), environment.global_rank()) == (4, 2)
    assert not environment.auto_requeue


def test_uneven_nodes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**STEP, "SLURM_STEP_NUM_TASKS": "3"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LabError, match="3 processes on 2 nodes"):
        processes()


def test_a_wrong_placement_is_named() -> None:
    tree = yaml.safe_load(PARAMS.read_text())
    for override in ("trainer.strategy=fdsp", "trainer.devices=0"):
        apply_override(tree, override)
    with pytest.raises(LabError) as caught:
        check_params(tree)
    assert "trainer.strategy: no strategy 'fdsp' (did you mean 'fsdp'?)" in str(caught.value)
    assert "'trainer.devices' must be at least 1, not 0" in str(caught.value)


def test_other_commands_run_in_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in ELASTIC.items():
        monkeypatch.setenv(name, value)
    assert main(["systems"]) == 2
    assert "lab systems is for one process; several can only run `lab stage`" in capsys.readouterr().err


def test_an_unknown_strategy_is_named(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_STRATEGY", "fdsp")
    with pytest.raises(LabError, match=r"LAB_STRATEGY: no strategy 'fdsp' \(did you mean 'fsdp'\?\)"):
        training()


def test_nodes_need_somebody_to_start_their_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement(TrainerParams(num_nodes=2), branches=True)["num_nodes"] == 1  # it may not start others
    monkeypatch.setattr("lab.training.processes._may_start", [True])
    assert planned(TrainerParams(devices=3)) == 3
    with pytest.raises(LabError, match=r"trainer\.num_nodes is 2, .* use srun or torchrun"):
        placement(TrainerParams(num_nodes=2), branches=True)
