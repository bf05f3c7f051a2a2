"""Training on cached features: each process reads its own rows, and a killed run goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from lab.models.arm import Arm
from lab.models.cached import AbsentEncoder, encode, encode_all, facts_of
from lab.samples.batch import Collate
from lab.samples.features import Features, FeatureWriter
from lab.samples.mixture import Mixture
from lab.samples.segments import Picture
from lab.scenes.tasks import SceneTasks
from lab.training.fit import FitSettings, fit
from lab.training.modules import UnifiedTraining

STEPS, BATCH = 6, 8
SETTINGS = FitSettings(STEPS, BATCH, "32-true", 1.0, 1, 2)
ROLES = ["connector", "text_decoder", "visual_head"]

Train = Callable[..., dict[str, Tensor]]


class Kill(pl.Callback):
    """Kills the process after a step."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def train(new_arm: Callable[..., Arm], tasks: SceneTasks, tmp_path: Path) -> Train:
    """Train an arm, on pixels or on features; give what it has learnt."""
    samples = Mixture(tasks.sources(), {"vqa": 1.0, "edit": 1.0}, STEPS * BATCH, seed=0)
    pictures = {
        segment.picture.key: segment.picture
        for row in range(len(samples))
        for segment in samples[row].segments
        if segment.picture is not None
    }

    def run(work: str, cached: bool = True, *callbacks: pl.Callback) -> dict[str, Tensor]:
        arm = new_arm(visual_head={"name": "regression", "hide": 0.0, "noise": 0.0})
        collate = arm.collate(tuple(tasks.tasks))
        if cached:
            collate = with_features(arm, list(pictures.values()), tmp_path / f"features-{work}-{os.getpid()}")
        schedule = {"learning_rates": {"": 3e-3}, "steps": STEPS, "warmup": 2, "weight_decay": 0.05}
        module = UnifiedTraining(arm.model, ROLES, 1.0, **schedule)
        fit(module, samples, collate, SETTINGS, tmp_path / work, "trial", None, callbacks)
        return {
            name: value for name, value in arm.model.state_dict().items() if not name.startswith("encoder")
        }

    def with_features(arm: Arm, shown: list[Picture], folder: Path) -> Collate:
        encoder: Any = arm.model.encoder.eval()  # type: ignore[attr-defined]
        folder.mkdir()
        writer = FeatureWriter(folder / "work", (encoder.num_tokens, encoder.dim), "fp32", 32)
        encode_all(partial(encode, encoder, None), shown, writer)
        facts = {"key": {}, "encoder": facts_of(encoder, folder)}
        writer.publish(folder, [picture.key for picture in shown], facts)
        features = Features(folder, {})
        arm.model.encoder = AbsentEncoder(features, folder)
        return arm.collate(tuple(tasks.tasks), features=features)

    return run


def test_processes_read_their_own_rows(train: Train, together: Callable[..., list[Any]]) -> None:
    alone = train("pixels", cached=False)
    torch.testing.assert_close(train("one"), alone, rtol=0, atol=0)
    first, _ = together(2, lambda: train("two"))
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)


def test_a_killed_training_goes_on_with_features(train: Train) -> None:
    whole = train("whole")
    if (child := os.fork()) == 0:
        train("killed", True, Kill())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    torch.testing.assert_close(train("killed"), whole, rtol=0, atol=0)
