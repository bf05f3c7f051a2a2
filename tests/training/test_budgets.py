"""A budget ends a stage with the first step at which it is spent, over all resumes; costs are known."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import accumulate, count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lab.errors import LabError
from lab.models.arm import Arm
from lab.samples.mixture import Mixture
from lab.scenes.tasks import SceneTasks
from lab.training import ledger
from lab.training.fit import FitSettings
from lab.training.flops import flops_of
from lab.training.modules import UnifiedTraining
from lab.training.stage_module import warmup_cosine

Training = Callable[..., Any]
MIX = {"vqa": 1.0, "text_to_image": 2.0, "interleaved": 1.0}  # of the `training` fixture
PEAK = 3e-3


class Stopped(Exception):
    pass


def stop(trainer: Any) -> None:
    raise Stopped


@pytest.fixture
def tokens(tasks: SceneTasks, new_arm: Callable[..., Arm]) -> list[int]:
    """Real positions after each step."""
    collate = new_arm().collate(tuple(tasks.tasks))
    data = Mixture(tasks.sources(), MIX, 0, seed=0)
    batches = [collate([data[8 * step + row] for row in range(8)]) for step in range(40)]
    return list(accumulate(int(batch.mask.sum()) for batch in batches))


def test_costs_are_known_without_a_budget(training: Training, tokens: list[int]) -> None:
    _, record = training()
    costs = record.costs
    assert (costs["cost/steps"], costs["cost/samples"], costs["cost/tokens"]) == (12, 96, tokens[11])
    assert costs["cost/train_seconds"] > 0
    assert 50 < costs["cost/peak_memory_mb"] < 1e5
    for step, values in record.steps.items():
        assert values["budget/samples"] == 8 * step
        assert values["budget/tokens"] == tokens[step - 1]
        assert values["budget/spent_share"] == pytest.approx(step / 12)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_that_was_needed_before_is_not_the_stage_s(training: Training) -> None:
    np.ones(2**26).sum()  # half a GB, given back at once
    before = psutil.Process().memory_info().rss / 2**20
    _, record = training()
    assert before - 64 < record.costs["cost/peak_memory_mb"] < before + 256  # some may go back meanwhile


def test_a_system_that_keeps_no_peak_stops_no_training(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "status").write_text("Name:\tpython\n")
    monkeypatch.setattr("lab.training.ledger._STATUS", tmp_path / "status")
    _, record = training()
    assert record.costs["cost/peak_memory_mb"] > 50


def test_a_stage_without_language_model_has_no_tokens(training: Training) -> None:
    _, record = training("image")
    assert record.costs["cost/tokens"] == 0
    assert record.costs["cost/flops"] > 1e6


@pytest.mark.parametrize("steps", [5, 17], ids=["fewer than steps", "more than steps"])
def test_tokens_end_the_stage(
    training: Training, settings: FitSettings, tokens: list[int], steps: int
) -> None:
    amount = tokens[steps - 2] + 1  # not yet spent after the step before
    _, record = training("unified", "work", replace(settings, budget={"tokens": amount}))
    assert record.costs["cost/steps"] == max(record.steps) == steps
    assert record.costs["cost/tokens"] == tokens[steps - 1]
    factor = warmup_cosine(12, 3)
    for step, values in record.steps.items():
        share = min(1.0, tokens[step - 1] / amount)
        assert values["budget/spent_share"] == pytest.approx(share)
        assert values["train/learning_rate"] == pytest.approx(PEAK * factor(12 * share))  # of the next step


def test_a_budget_spent_to_the_last_token_is_spent(
    training: Training, settings: FitSettings, tokens: list[int]
) -> None:
    _, record = training("unified", "work", replace(settings, budget={"tokens": tokens[5]}))
    assert record.costs["cost/steps"] == 6


@pytest.mark.parametrize("unit", ["tokens", "flops"])
def test_what_is_spent_counts_over_resumes(
    training: Training, at: Any, settings: FitSettings, tokens: list[int], unit: str
) -> None:
    amount = tokens[14] if unit == "tokens" else training("unified", "costs")[1].costs["cost/flops"] * 1.2
    limited = replace(settings, budget={unit: amount}, checkpoint_every=4)
    whole, expected = training("unified", "whole", limited)
    with pytest.raises(Stopped):
        training("unified", "cut", limited, at(10, stop))
    continued, record = training("unified", "cut", limited)
    assert record.steps == {step: expected.steps[step] for step in range(9, max(expected.steps) + 1)}
    first, second = whole.state_dict(), continued.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    apart = ("cost/train_seconds", "cost/peak_memory_mb", "cost/data_wait_share")
    same = [name for name in record.costs if name not in apart]
    assert {name: record.costs[name] for name in same} == {name: expected.costs[name] for name in same}


def test_a_spent_budget_is_not_spent_again(
    training: Training, settings: FitSettings, tokens: list[int]
) -> None:
    limited = replace(settings, budget={"tokens": tokens[5]}, checkpoint_every=6)
    whole, expected = training("unified", "work", limited)
    again, record = training("unified", "work", limited)
    assert record.steps == {}
    assert record.costs["cost/tokens"] == expected.costs["cost/tokens"]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_operations_end_the_stage(training: Training, settings: FitSettings) -> None:
    """With a budget of what half of the steps took, about half of the steps are done."""
    flops = training("unified", "free")[1].costs["cost/flops"]
    _, record = training("unified", "work", replace(settings, budget={"flops": flops / 2}))
    assert abs(record.costs["cost/steps"] - 6) <= 1
    assert flops / 2 <= record.costs["cost/flops"] < flops / 2 * 1.2


def test_seconds_are_those_of_steps_over_resumes(
    training: Training, at: Any, settings: FitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by a second whenever it is read: a step takes 1 s, counting 1 s more."""

    class Clock:
        perf_counter = staticmethod(count().__next__)

    monkeypatch.setattr(ledger, "time", Clock)
    limited = replace(settings, budget={"seconds": 9.0}, checkpoint_every=4)
    _, expected = training("unified", "whole", limited)
    with pytest.raises(Stopped):
        training("unified", "cut", limited, at(6, stop))
    _, record = training("unified", "cut", limited)
    for costs in (expected.costs, record.costs):
        assert (costs["cost/steps"], costs["cost/train_seconds"]) == (8, 9.0)


def test_a_budget_in_tokens_needs_a_language_model(training: Training, settings: FitSettings) -> None:
    with pytest.raises(LabError, match="image: a budget in tokens, but this stage has no language model"):
        training("image", "work", replace(settings, budget={"tokens": 1e6}))


# -- operations ----------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """One of each kind that is counted, and all that could leave a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
        self.norm, self.drop = nn.BatchNorm1d(5), nn.Dropout(0.5)

    def forward(self, batch: Tensor) -> Tensor:
        hidden = self.drop(self.norm(self.first(batch)))  # (3, 5, 8)
        heads = self.second(hidden).unflatten(2, (2, 4)).transpose(1, 2)  # (3, 2, 5, 4)
        return (F.scaled_dot_product_attention(heads, heads, heads) + torch.randn(4)).sum()


def test_operations_are_those_of_the_formulas() -> None:
    """Products of matrices: forward, and backward for weights and, but for the first layer, inputs.

    Attention multiplies two matrices on the way there; on the way back four, and one that it makes again.
    """
    rows, product = 3 * 5, 2 * 3 * 2 * 5 * 5 * 4
    expected = 2 * rows * 6 * 8 * 2 + 2 * rows * 8 * 8 * 3 + product * 2 + product * 5
    assert flops_of(Layers(), torch.randn(3, 5, 6), nullcontext()) == expected


def test_counting_leaves_no_trace() -> None:
    torch.manual_seed(0)
    layers = Layers()
    layers.drop.eval()
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    batch, state = torch.randn(3, 5, 6), torch.get_rng_state()
    flops_of(layers, batch, nullcontext())
    assert all(torch.equal(before[name], value) for name, value in layers.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in layers.parameters())
    assert (layers.training, layers.norm.training, layers.drop.training) == (True, True, False)


def test_the_estimate_is_within_a_tenth_of_a_count_of_every_batch(
    training: Training, tasks: SceneTasks, new_arm: Callable[..., Arm]
) -> None:
    module, record = training()
    collate = new_arm().collate(tuple(tasks.tasks))
    data = Mixture(tasks.sources(), MIX, 0, seed=0)
    assert isinstance(module, UnifiedTraining)
    exact = sum(
        flops_of(module, collate([data[8 * step + row] for row in range(8)]), nullcontext())
        for step in range(12)
    )
    assert record.costs["cost/flops"] == pytest.approx(exact, rel=0.1)
