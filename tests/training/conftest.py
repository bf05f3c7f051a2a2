"""Short trainings of every kind of module, the same whenever they are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lab.models.arm import Arm
from lab.samples.tokenizer import Tokenizer
from lab.scenes.tasks import SceneTasks
from lab.training.fit import FitSettings, fit
from lab.training.modules import StageModule

SETTINGS = FitSettings(steps=12, batch_size=8, precision="32-true", clip=1.0, log_every=1, checkpoint_every=5)
SCHEDULE = {"learning_rates": {"": 3e-3}, "steps": 12, "warmup": 3, "weight_decay": 0.05}


class Record:
    """Stands for a tracked run: step -> what was logged."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}
        self.flushed: list[int] = []  # the last step of each time

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.steps[step] = {name: value for name, value in values.items() if not name.startswith("perf/")}

    def flush(self) -> None:
        self.flushed.append(max(self.steps, default=0))


class At(pl.Callback):
    """Does something at the end of a step."""

    def __init__(self, step: int, action: Callable[[pl.Trainer], None]) -> None:
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            self.action(trainer)


@pytest.fixture
def at() -> type[At]:
    return At


@pytest.fixture
def settings() -> FitSettings:
    return SETTINGS


@pytest.fixture
def training(
    new_arm: Callable[..., Arm], tasks: SceneTasks, tokenizer: Tokenizer, tmp_path: Path
) -> Callable[..., tuple[StageModule, Record]]:
    """Train a module of a kind from its seed; the same call again resumes what is in `tmp_path / work`."""

    def train(
        kind: str = "unified", work: str = "work", settings: FitSettings = SETTINGS, *callbacks: pl.Callback
    ) -> tuple[StageModule, Record]:
        module, dataset, collate = make(kind, new_arm, tasks, tokenizer)
        record = Record()
        torch.manual_seed(1)
        fit(module, dataset, collate, settings, tmp_path / work, kind, record, callbacks)
        return module, record

    return train


def make(
    kind: str, new_arm: Callable[..., Arm], tasks: SceneTasks, tokenizer: Tokenizer
) -> tuple[Any, Any, Any]:
    from lab.models.autoencoder import ImageAutoencoder
    from lab.models.contrastive import ContrastiveModel
    from lab.registry import build
    from lab.samples.mixture import Mixture
    from lab.samples.regions import PixelCollate, RegionCollate, Rows
    from lab.training.modules import (
        ContrastivePretraining,
        ImageDecoderTraining,
        TextPretraining,
        UnifiedTraining,
    )

    arm = new_arm()
    collate = arm.collate(tuple(tasks.tasks))
    match kind:
        case "unified":  # with everything that draws random numbers
            arm.model.eval()  # as arms are loaded
            roles = ["connector", "text_decoder", "visual_head"]
            module = UnifiedTraining(arm.model, roles, 1.0, **SCHEDULE)
            mix = {"vqa": 1.0, "text_to_image": 2.0, "interleaved": 1.0}
            return module, Mixture(tasks, mix, 96, seed=0), collate
        case "text":
            module = TextPretraining(arm.model.text_decoder, **SCHEDULE)
            return module, Mixture(tasks, {"text": 1.0}, 96, seed=0), collate
        case "contrastive":
            model = ContrastiveModel(arm.model.encoder, len(tokenizer), dim=32)
            weights = {"caption": 1.0, "region": 1.0, "reconstruction": 1.0}
            regions = RegionCollate(tasks.split, tasks.language, tokenizer)
            return ContrastivePretraining(model, weights, **SCHEDULE), Rows(40, seed=0), regions
        case "image":
            decoder = build("image_decoder", {"name": "transformer", "dim": 32}, 24, 16, 32)
            autoencoder = ImageAutoencoder(arm.model.encoder, None, decoder)
            module = ImageDecoderTraining(autoencoder, 0.1, ["image_decoder"], **SCHEDULE)
            return module, Rows(40, seed=0), PixelCollate(tasks.split)
    raise AssertionError(kind)
