"""What makes steps fast changes no number but by rounding: layouts, parts, recomputation, compilation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lab.config import TrainerParams
from lab.errors import LabError
from lab.models.arm import Arm
from lab.samples.mixture import Mixture
from lab.samples.step import each_sample_alike
from lab.scenes.tasks import SceneTasks
from lab.training.checkpointing import checkpointed
from lab.training.fit import FitSettings
from lab.training.flops import flops_of
from lab.training.modules import UnifiedTraining
from lab.training.speed import accelerated, plan_of
from tests.training.conftest import SCHEDULE

Training = Callable[..., Any]
Together = Callable[..., list[Any]]
PADDED = TrainerParams(accelerator="cpu", layout="padded")


def assert_alike(one: Any, two: Any, tolerance: float) -> None:
    """The same losses in every step of two records."""
    assert one.steps.keys() == two.steps.keys()
    for step, values in one.steps.items():
        assert values == pytest.approx(two.steps[step], rel=tolerance, abs=tolerance), step


@pytest.fixture
def short(settings: FitSettings) -> FitSettings:
    return replace(settings, steps=4)


@pytest.mark.parametrize("layout", ["buckets", "packed", "auto"])
def test_layouts_train_alike(training: Training, short: FitSettings, layout: str) -> None:
    _, one = training("unified", "padded", short, quiet=True, trainer=PADDED)
    _, two = training("unified", layout, short, quiet=True, trainer=replace(PADDED, layout=layout))
    assert_alike(two, one, 1e-4)
    assert two.costs["cost/tokens"] == one.costs["cost/tokens"]
    assert two.costs["cost/flops"] == one.costs["cost/flops"]  # a budget buys the same steps


@pytest.mark.parametrize("layout", ["padded", "buckets", "auto"])
def test_long_samples_train_alike_with_states_spared(
    training: Training, short: FitSettings, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, one = training("unified", "all", short, quiet=True, trainer=PADDED)
    monkeypatch.setattr("lab.samples.step.LONG", 0)
    where = replace(PADDED, layout=layout)
    _, two = training("unified", layout, short, quiet=True, trainer=where)
    assert_alike(two, one, 1e-4)
    assert two.costs["cost/flops"] == one.costs["cost/flops"]


def test_states_are_spared_where_blocks_may_differ_by_step(new_arm: Callable[..., Arm]) -> None:
    module = UnifiedTraining(new_arm().model, ["connector"], 1.0, **SCHEDULE)
    assert plan_of(PADDED, module, "cpu", False).sparing
    assert not plan_of(PADDED, module, "cuda", False).sparing
    assert not plan_of(PADDED, module, "cpu", True).sparing
    assert not plan_of(replace(PADDED, checkpointing=True), module, "cpu", False).sparing
    assert not plan_of(replace(PADDED, compile="on"), module, "cpu", False).sparing


@pytest.mark.parametrize("weighting", ["token", "sample"])
@pytest.mark.parametrize("kind", ["unified", "text", "image"])
def test_parts_are_the_whole(training: Training, short: FitSettings, kind: str, weighting: str) -> None:
    """Two parts with unlike numbers of words and images: the same losses, and so the same gradients."""
    if (kind, weighting) == ("image", "sample"):
        pytest.skip("images are samples")
    whole = replace(short, loss_weighting=weighting)
    _, one = training(kind, "whole", whole, quiet=True, trainer=PADDED)
    _, two = training(kind, "parts", replace(whole, accumulate=4), quiet=True, trainer=PADDED)
    assert_alike(two, one, 1e-4)
    assert two.costs["cost/tokens"] == one.costs["cost/tokens"]


def test_parts_of_processes_are_the_whole(training: Training, together: Together, short: FitSettings) -> None:
    _, one = training("apart", "whole", short, quiet=True)
    parts = replace(short, accumulate=2)

    def run() -> Any:
        return training("apart", "two", parts, quiet=True)[1]

    two, _ = together(2, run)
    assert_alike(two, one, 1e-4)


def test_gradients_of_parts_are_those_of_the_whole(new_arm: Callable[..., Arm], tasks: SceneTasks) -> None:
    """To rounding, before any optimizer sees them."""
    from lab.samples.step import Plan, StepCollate

    arm = new_arm(visual_head={"name": "regression", "hide": 0.0, "noise": 0.0})
    rates = {"learning_rates": {"": 1e-3}, "steps": 2, "warmup": 0, "weight_decay": 0.0}
    module = UnifiedTraining(arm.model, ["connector", "text_decoder", "visual_head"], 1.0, **rates)  # type: ignore[arg-type]
    module._trainer = _Backward()  # type: ignore[assignment]
    data = Mixture(tasks.sources(), {"vqa": 1.0, "text_to_image": 1.0, "text": 1.0}, 9, seed=0)
    samples = [data[row] for row in range(9)]
    collate = arm.collate(tuple(tasks.tasks))
    found = []
    for parts in (1, 3):
        step = StepCollate(collate, parts, Plan("auto", 96), by_sample=False)(samples)
        module.zero_grad()
        module.training_step(step, 0).backward()
        found.append(
            {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None}
        )
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=1e-6)


class _Backward:
    """As much of a trainer as a step in parts asks for."""

    @property
    def strategy(self) -> _Backward:
        return self

    def backward(self, loss: torch.Tensor, optimizer: None) -> None:
        loss.backward()


def test_every_sample_counts_the_same(new_arm: Callable[..., Arm], tasks: SceneTasks) -> None:
    arm = new_arm()
    collate = arm.collate(tuple(str(row) for row in range(3)))
    samples = [replace(tasks.sample("vqa", row, 0), task=str(row)) for row in range(3)]
    batch = collate(samples)
    losses = arm.model(replace(batch, weights=each_sample_alike(batch)))
    torch.testing.assert_close(losses.text, (losses.text_sum / losses.text_count).mean())
    by_token = arm.model(batch)
    torch.testing.assert_close(by_token.text, by_token.text_sum.sum() / by_token.text_count.sum())


@pytest.mark.parametrize(("kind", "wrong"), [("contrastive", "whole"), ("unified", "do not divide by it")])
def test_parts_that_cannot_be(training: Training, settings: FitSettings, kind: str, wrong: str) -> None:
    with pytest.raises(LabError, match=wrong):
        training(kind, "work", replace(settings, accumulate=3))


@pytest.mark.parametrize("fusion", ["sequence", "cross_attention", "prefix"])
def test_recomputed_activations_give_the_same_gradients(
    new_arm: Callable[..., Arm], tasks: SceneTasks, fusion: str
) -> None:
    extra = {} if fusion == "sequence" else {"num_heads": 2}
    arm = new_arm(
        fusion={"name": fusion, **extra}, visual_head={"name": "regression", "hide": 0.0, "noise": 0.0}
    )
    model = arm.model
    with torch.no_grad():
        for name, parameter in model.fusion.named_parameters():  # type: ignore[attr-defined]
            if "gate" in name:
                parameter.fill_(0.5)
    batch = arm.collate(tuple(tasks.tasks))([tasks.sample("vqa", row, 0) for row in range(3)])
    again = getattr(model.fusion, "again", None)
    blocks, calls = model.text_decoder.layers, []
    blocks[0].register_forward_hook(lambda *_: calls.append(1))
    blocks[0].self_attn.register_forward_hook(lambda *_: calls.append(2))  # type: ignore[union-attr, operator]
    plain = gradients(model, batch)
    assert calls == [2, 1]
    with checkpointed(blocks, again):
        twice = gradients(model, batch)
        assert calls[2:] == [2, 1, 2]  # attention a second time, for the backward pass
    assert gradients(model, batch).keys() == plain.keys()
    assert calls[5:] == [2, 1]  # and no more afterwards
    for name, grad in plain.items():
        torch.testing.assert_close(twice[name], grad, rtol=1e-6, atol=1e-6)


def gradients(model: Any, batch: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(batch).text.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_sixteen_bits_train(training: Training, short: FitSettings, precision: str) -> None:
    """Losses near those of 32 bits, in layouts and parts too."""
    _, one = training("unified", "32", short, quiet=True, trainer=PADDED)
    settings = replace(short, precision=precision, accumulate=2)
    _, two = training("unified", "16", settings, quiet=True, trainer=replace(PADDED, layout="packed"))
    assert_alike(two, one, 5e-2)


def test_recomputation_is_no_work_of_the_model(training: Training, short: FitSettings) -> None:
    _, one = training("unified", "kept", short, quiet=True, trainer=PADDED)
    _, two = training("unified", "twice", short, quiet=True, trainer=replace(PADDED, checkpointing=True))
    assert two.costs["cost/flops"] == one.costs["cost/flops"]
    assert_alike(two, one, 1e-6)


@pytest.mark.slow
def test_compiled_blocks_say_the_same(new_arm: Callable[..., Arm], tasks: SceneTasks) -> None:
    arm = new_arm(text_decoder={"name": "llama", "dim": 32, "depth": 1, "num_heads": 2})
    rates = {"learning_rates": {"": 1e-3}, "steps": 2, "warmup": 0, "weight_decay": 0.0}
    module = UnifiedTraining(arm.model, ["connector", "text_decoder"], 1.0, **rates)  # type: ignore[arg-type]
    batch = arm.collate(tuple(tasks.tasks))([tasks.sample("vqa", row, 0) for row in range(3)])
    plain = gradients(arm.model, batch)
    flops = flops_of(module, batch, torch.enable_grad())
    with accelerated(module, replace(PADDED, compile="on"), "cpu"):
        compiled = gradients(arm.model, batch)
        assert arm.model.text_decoder.layers[0]._compiled_call_impl is not None
        assert flops_of(module, batch, torch.enable_grad()) == flops  # compiled code is seen by no counter
    assert arm.model.text_decoder.layers[0]._compiled_call_impl is None
    for name, grad in plain.items():
        torch.testing.assert_close(compiled[name], grad, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("layout", ["auto", "padded", "buckets"])
def test_steps_on_a_gpu_wait_for_nothing(new_arm: Callable[..., Arm], tasks: SceneTasks, layout: str) -> None:
    from lab.samples.step import StepCollate
    from lab.training.speed import plan_of

    arm = new_arm(text_decoder={"name": "llama", "dim": 64, "depth": 2, "num_heads": 2})
    rates = {"learning_rates": {"": 1e-3}, "steps": 9, "warmup": 0, "weight_decay": 0.0}
    module = UnifiedTraining(arm.model, ["connector", "text_decoder", "visual_head"], 1.0, **rates).cuda()  # type: ignore[arg-type]
    module.fused = True
    optimizers: Any = module.configure_optimizers()
    where = TrainerParams(layout=layout)
    data = Mixture(tasks.sources(), {"vqa": 1.0, "text_to_image": 1.0, "text": 1.0}, 8, seed=0)
    collate = StepCollate(arm.collate(tuple(tasks.tasks)), 1, plan_of(where, module, "cuda", False), False)
    batch = collate([data[row] for row in range(8)]).pin_memory().to("cuda")
    with accelerated(module, where, "cuda"):
        for step in range(3):
            torch.cuda.set_sync_debug_mode("error" if step == 2 else "default")
            optimizers["optimizer"].zero_grad()
            module.training_step(batch, step).backward()
            optimizers["optimizer"].step()
        torch.cuda.set_sync_debug_mode("default")
