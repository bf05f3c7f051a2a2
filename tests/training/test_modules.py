"""What a step changes, and what it must not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lab.errors import LabError
from lab.models.arm import Arm
from lab.models.unified import UnifiedModel
from lab.samples.mixture import Mixture
from lab.scenes.tasks import SceneTasks
from lab.training.fit import FitSettings, fit
from lab.training.modules import ContrastivePretraining, UnifiedTraining
from lab.training.stage_module import warmup_cosine

ROLES = ("encoder", "connector", "text_decoder", "visual_head")
MIX = {"vqa": 1.0, "text_to_image": 1.0}


def weights(model: UnifiedModel) -> dict[str, dict[str, Tensor]]:
    return {role: {k: v.clone() for k, v in getattr(model, role).state_dict().items()} for role in ROLES}


def train(
    arm: Arm, tasks: SceneTasks, folder: Path, trainable: list[str], rates: dict[str, float], **settings: Any
) -> UnifiedTraining:
    module = UnifiedTraining(
        arm.model, trainable, 1.0, learning_rates=rates, steps=4, warmup=1, weight_decay=0.1
    )
    fitted = replace(FitSettings(4, 8, "32-true", 1.0, 2, 100), **settings)
    dataset = Mixture(tasks.sources(), MIX, fitted.steps * fitted.batch_size, 0)
    fit(module, dataset, arm.collate(tuple(tasks.tasks)), fitted, folder, "test")
    return module


@pytest.mark.parametrize(
    "trainable",
    [["connector"], ["connector", "visual_head"], ["connector", "text_decoder", "visual_head"], list(ROLES)],
    ids=len,
)
def test_what_is_frozen_stays_bit_for_bit(
    new_arm: Callable[..., Arm], tasks: SceneTasks, tmp_path: Path, trainable: list[str]
) -> None:
    arm = new_arm()
    before = weights(arm.model)
    train(arm, tasks, tmp_path, trainable, dict.fromkeys(trainable, 1e-3))
    after = weights(arm.model)
    for role in ROLES:
        same = [torch.equal(before[role][name], after[role][name]) for name in before[role]]
        if role in trainable:
            buffers = {"mean", "deviation"}  # set once, not trained
            changed = [name for name, one in zip(before[role], same, strict=True) if not one]
            assert set(changed) >= before[role].keys() - buffers, role
        else:
            assert all(same), role


def test_adapters_alone_can_train(new_arm: Callable[..., Arm], tasks: SceneTasks, tmp_path: Path) -> None:
    arm = new_arm(text_decoder={"name": "llama", "dim": 32, "depth": 1, "num_heads": 2, "lora_rank": 2})
    before = weights(arm.model)["text_decoder"]
    train(arm, tasks, tmp_path, ["text_decoder.lora"], {"text_decoder": 1e-2})
    after = weights(arm.model)["text_decoder"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".lora_" in name for name in changed)


def test_roles_learn_at_their_own_rates(new_arm: Callable[..., Arm]) -> None:
    arm = new_arm()
    rates = {"connector": 1e-3, "text_decoder": 2e-4}
    module = UnifiedTraining(
        arm.model, list(rates), 1.0, learning_rates=rates, steps=4, warmup=0, weight_decay=0.1
    )
    optimizer = module.configure_optimizers()["optimizer"]
    found = {
        id(p): (group["initial_lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    for role in ROLES:
        for name, parameter in getattr(arm.model, role).named_parameters():
            if role not in rates:
                assert id(parameter) not in found
                continue
            rate, decay = found.pop(id(parameter))
            assert rate == rates[role]
            assert decay == (0.1 if parameter.ndim > 1 and "embed" not in name else 0)
    assert not found


def test_a_pattern_has_a_rate_of_its_own(new_arm: Callable[..., Arm]) -> None:
    arm = new_arm()
    rates = {"connector": 1e-3, "connector.*bias": 5e-2}
    schedule = {"learning_rates": rates, "steps": 4, "warmup": 0, "weight_decay": 0.0}
    module = UnifiedTraining(arm.model, ["connector"], 1.0, **schedule)
    groups = module.configure_optimizers()["optimizer"].param_groups
    found = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    named = dict(arm.model.connector.named_parameters())
    assert {found[id(p)] for name, p in named.items() if name.endswith("bias")} == {5e-2}
    assert {found[id(p)] for name, p in named.items() if not name.endswith("bias")} == {1e-3}


def test_marks_train_beside_a_frozen_language_model(
    new_arm: Callable[..., Arm], tasks: SceneTasks, tmp_path: Path
) -> None:
    """Of embeddings and output layer two rows move; weight decay leaves the others as they are."""
    arm = new_arm()
    marks = arm.image_marks
    before = weights(arm.model)["text_decoder"]
    schedule = {"learning_rates": {"text_decoder": 1e-2}, "steps": 3, "warmup": 0, "weight_decay": 0.5}
    module = UnifiedTraining(arm.model, ["text_decoder.image_marks"], 1.0, marks, **schedule)
    dataset = Mixture(tasks.sources(), MIX, 24, 0)
    settings = FitSettings(3, 8, "32-true", 1.0, 3, 100)
    fit(module, dataset, arm.collate(tuple(tasks.tasks)), settings, tmp_path, "test")
    moved = {
        name: (before[name] != value).flatten(1).any(dim=1).nonzero().flatten().tolist()
        for name, value in weights(arm.model)["text_decoder"].items()
        if not torch.equal(before[name], value)
    }
    assert moved
    assert all(set(rows) <= set(marks) for rows in moved.values())
    assert any(set(rows) == set(marks) for rows in moved.values())


@pytest.mark.parametrize(
    ("trainable", "rates", "message"),
    [
        (["conector"], {"connector": 1e-3}, r"unknown part 'conector' \(did you mean 'connector'\?\)"),
        (["text_decoder.lora"], {"text_decoder": 1e-3}, "has no adapters"),
        (["connector", "encoder"], {"connector": 1e-3}, "trainable: encoder, but learning_rate has none"),
    ],
)
def test_an_impossible_recipe_says_why(
    new_arm: Callable[..., Arm], trainable: list[str], rates: dict[str, float], message: str
) -> None:
    schedule = {"learning_rates": rates, "steps": 4, "warmup": 1, "weight_decay": 0.0}
    with pytest.raises(LabError, match=message):
        UnifiedTraining(new_arm().model, trainable, 1.0, **schedule)


def test_an_unknown_loss_says_so(new_arm: Callable[..., Arm]) -> None:
    schedule = {"learning_rates": {"": 1e-3}, "steps": 4, "warmup": 1, "weight_decay": 0.0}
    with pytest.raises(LabError, match=r"unknown loss 'regoin' \(did you mean 'region'\?\)"):
        ContrastivePretraining(torch.nn.Linear(1, 1), {"regoin": 1.0}, **schedule)  # type: ignore[arg-type]


def test_training_switches_the_modes_of_a_loaded_arm(
    new_arm: Callable[..., Arm], tasks: SceneTasks, tmp_path: Path
) -> None:
    """Arms are loaded in eval mode; training has to switch all of them, the model itself included."""
    arm = new_arm()
    arm.model.eval()
    train(arm, tasks, tmp_path, ["text_decoder", "visual_head"], {"text_decoder": 1e-3, "visual_head": 1e-3})
    assert arm.model.training
    assert arm.model.visual_head.training
    assert not arm.model.encoder.training  # frozen


def test_learning_rate_warms_up_and_falls_to_a_twentieth() -> None:
    factor = warmup_cosine(steps=110, warmup=10)
    assert [factor(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(10) == pytest.approx(1.0)
    assert factor(60) == pytest.approx(0.05 + 0.95 / 2)
    assert factor(110) == factor(200) == pytest.approx(0.05)
    assert warmup_cosine(steps=10, warmup=0)(0) == pytest.approx(1.0)


def test_logs_are_means_over_what_they_count(new_arm: Callable[..., Arm]) -> None:
    schedule = {"learning_rates": {"connector": 1e-3}, "steps": 4, "warmup": 1, "weight_decay": 0.0}
    module = UnifiedTraining(new_arm().model, ["connector"], 1.0, **schedule)
    module.add_log("loss_vqa", torch.tensor(6.0), torch.tensor(3.0))
    module.add_log("loss_vqa", torch.tensor(2.0), torch.tensor(1.0))
    module.add_log("loss", torch.tensor(1.5))
    module.add_log("loss", torch.tensor(2.5))
    module.add_log("loss_edit", torch.tensor(0.0), torch.tensor(0.0))  # no sample of it
    assert module.take_logs() == {"loss_vqa": 2.0, "loss": 2.0}
    assert module.take_logs() == {}


def test_eight_samples_are_learnt_by_heart(
    new_arm: Callable[..., Arm], tasks: SceneTasks, tmp_path: Path
) -> None:
    """Reading and drawing at once, to nearly no loss: gradients reach all that is trained."""
    arm = new_arm(
        text_decoder={"name": "llama", "dim": 64, "depth": 2, "num_heads": 2},
        visual_head={"name": "regression", "hide": 0.0, "noise": 0.0},
    )
    samples = [tasks.sample(task, row, 0) for row in range(4) for task in ("caption", "text_to_image")]
    roles = ["connector", "text_decoder", "visual_head"]
    head = arm.model.visual_head
    collate = arm.collate(tuple(tasks.tasks))
    batch = collate(samples)
    with torch.no_grad():
        head.prepare(arm.model.encoder(batch.pixels_drawn), None)
    module = UnifiedTraining(
        arm.model,
        roles,
        1.0,
        learning_rates=dict.fromkeys(roles, 4e-3),
        steps=200,
        warmup=20,
        weight_decay=0.0,
    )
    settings = FitSettings(200, 8, "32-true", 1.0, 100, 1000)
    dataset: Any = Repeated(samples)
    with torch.no_grad():
        before = arm.model.eval()(batch)
    fit(module, dataset, collate, settings, tmp_path, "by heart")
    with torch.no_grad():
        after = arm.model.eval()(batch)
    assert float(before.text) > 3
    assert float(after.text) < 0.1
    assert float(after.image) < 0.1 * float(before.image)


class Repeated:
    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __getitem__(self, position: int) -> Any:
        return self.samples[position % len(self.samples)]


@pytest.mark.parametrize("broken", [math.nan, math.inf, 1e9])
def test_a_broken_loss_stops_the_run_and_says_where(
    training: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: float
) -> None:
    """Broken at step 8, seen at the checkpoint due at 9, which is not written: the one of step 6 stays."""
    step = UnifiedTraining.training_step
    named: list[str] = []

    def breaks(self: UnifiedTraining, batch: Any, index: int) -> Tensor:
        loss = step(self, batch, index)
        if self.trainer.global_step == 7:  # of the eighth
            named.extend(batch.sample_ids)
            return loss * broken
        return loss

    monkeypatch.setattr(UnifiedTraining, "training_step", breaks)
    settings = FitSettings(12, 8, "32-true", 1.0, log_every=5, checkpoint_every=3)
    with pytest.raises(LabError) as caught:
        training("unified", "work", settings)
    message = str(caught.value)
    assert "\n" not in message
    assert " at step 8 " in message
    assert named[0] in message
    assert ("is not finite" if not math.isfinite(broken) else "exploded") in message
    checkpoint = tmp_path / "work" / "last.ckpt"
    assert str(checkpoint) in message
    state = torch.load(checkpoint, weights_only=True)
    assert state["global_step"] == 6
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_broken_weights_are_never_a_checkpoint(
    training: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient breaks the weights at the step of a checkpoint, before any loss shows it."""

    def breaks(self: UnifiedTraining) -> None:
        if self.trainer.global_step == 9:  # in the tenth
            next(self.model.text_decoder.parameters()).grad.fill_(math.nan)  # type: ignore[union-attr]

    monkeypatch.setattr(UnifiedTraining, "on_after_backward", breaks)
    with pytest.raises(LabError, match=r"is not finite at step 11 "):
        training("unified")
    assert torch.load(tmp_path / "work" / "last.ckpt", weights_only=True)["global_step"] == 5


def test_broken_before_any_checkpoint_says_there_is_none(
    training: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = UnifiedTraining.training_step
    monkeypatch.setattr(UnifiedTraining, "training_step", lambda *args: step(*args) * math.nan)
    with pytest.raises(LabError, match=r"at step 1 .*last good checkpoint: none yet"):
        training("unified")
