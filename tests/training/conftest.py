"""Short trainings of every kind of module, the same whenever they are made."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lab.config import TrainerParams
from lab.errors import LabError
from lab.models.arm import Arm
from lab.samples.tokenizer import Tokenizer
from lab.scenes.tasks import SceneTasks
from lab.training.fit import FitSettings, fit
from lab.training.stage_module import StageModule

SETTINGS = FitSettings(steps=12, batch_size=8, precision="32-true", clip=1.0, log_every=1, checkpoint_every=5)
SCHEDULE = {"learning_rates": {"": 3e-3}, "steps": 12, "warmup": 3, "weight_decay": 0.05}


class Record:
    """Stands for a tracked run: step -> what was logged; and what the stage cost."""

    def __init__(self) -> None:
        self.costs: dict[str, float] = {}
        self.steps: dict[int, dict[str, float]] = {}
        self.flushed: list[int] = []  # the last step of each time

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        kept = ("train/", "budget/")
        self.steps[step] = {name: value for name, value in values.items() if name.startswith(kept)}

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


Run = Callable[[], Any]


@pytest.fixture
def together(tmp_path: Path) -> Callable[..., list[Any]]:
    """Call a function in several processes, started as `torchrun` would, and give what each returned.

    A LabError that a process raised is raised here, that of the lowest rank first; any other fails the test.
    """

    def call(world: int, function: Run, timeout: float = 120.0, **env: str) -> list[Any]:
        context = multiprocessing.get_context("fork")  # what is imported is imported; nothing runs yet
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
        shared |= {"MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", **env}
        own = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
        files = [tmp_path / f"answer{rank}.pt" for rank in range(world)]
        running = [
            context.Process(target=_answer, args=(function, {**shared, **env}, file))
            for env, file in zip(own, files, strict=True)
        ]
        for process in running:
            process.start()
        for process in running:
            process.join(timeout)
        hanging = [rank for rank, process in enumerate(running) if process.is_alive()]
        for process in running:
            process.kill()
            process.join()
        assert not hanging, f"processes {hanging} hang"
        with torch.serialization.safe_globals([Record]):
            answers = [torch.load(file, weights_only=True) for file in files]
        for error, trace, _ in answers:
            if error is not None:
                kind, said = error
                raise LabError(said) if kind == "LabError" else AssertionError(f"{kind}: {said}\n{trace}")
        return [value for _, _, value in answers]

    return call


def _answer(function: Run, env: Mapping[str, Any], file: Path) -> None:
    os.environ.update({name: str(value) for name, value in env.items()})
    try:
        answer: Sequence[Any] = None, "", function()
    except BaseException as error:
        answer = (type(error).__name__, str(error)), traceback.format_exc(), None
    torch.save(answer, file)


@pytest.fixture
def settings() -> FitSettings:
    return SETTINGS


@pytest.fixture
def training(
    new_arm: Callable[..., Arm], tasks: SceneTasks, tokenizer: Tokenizer, tmp_path: Path
) -> Callable[..., tuple[StageModule, Record]]:
    """Train a module of a kind from its seed; the same call again resumes what is in `tmp_path / work`."""

    def train(
        kind: str = "unified",
        work: str = "work",
        settings: FitSettings = SETTINGS,
        *callbacks: pl.Callback,
        quiet: bool = False,
        trainer: TrainerParams | None = None,
    ) -> tuple[StageModule, Record]:
        module, dataset, collate = make(kind, new_arm, tasks, tokenizer, quiet)
        record = Record()
        torch.manual_seed(1)
        place = tmp_path / work
        record.costs = fit(module, dataset, collate, settings, place, kind, record, callbacks, trainer)
        return module, record

    return train


def make(
    kind: str, new_arm: Callable[..., Arm], tasks: SceneTasks, tokenizer: Tokenizer, quiet: bool = False
) -> tuple[Any, Any, Any]:
    """Module, data and collation of a kind; a quiet one draws no random numbers as it trains."""
    from lab.models.autoencoder import ImageAutoencoder
    from lab.models.contrastive import ContrastiveModel
    from lab.models.representation import RepresentationModel
    from lab.registry import build
    from lab.samples.mixture import Mixture
    from lab.samples.regions import PixelCollate, RegionCollate, Rows
    from lab.training.modules import (
        ContrastivePretraining,
        ImageDecoderTraining,
        RepresentationTraining,
        TextPretraining,
        UnifiedTraining,
    )

    head = {"name": "regression", **({"hide": 0.0, "noise": 0.0} if quiet else {})}
    arm = new_arm(visual_head=head)
    collate = arm.collate(tuple(tasks.tasks))
    match kind:
        case "unified" | "apart":  # with everything that draws random numbers
            arm.model.eval()  # as arms are loaded
            roles = ["connector", "text_decoder", "visual_head"]
            module = UnifiedTraining(arm.model, roles, 1.0, **SCHEDULE)
            mix = {"vqa": 1.0, "text_to_image": 2.0, "interleaved": 1.0}
            if kind == "apart":  # every other sample, so that of two processes one reads and one draws
                mix = {"vqa": 1.0, "text_to_image": 1.0}
            return module, Mixture(tasks.sources(), mix, 96, seed=0), collate
        case "text":
            module = TextPretraining(arm.model.text_decoder, **SCHEDULE)
            return module, Mixture(tasks.sources(), {"text": 1.0}, 96, seed=0), collate
        case "contrastive":
            model = ContrastiveModel(arm.model.encoder, len(tokenizer), dim=32)
            weights = {"caption": 1.0, "region": 1.0, "reconstruction": 1.0}
            regions = RegionCollate(tasks.split, tasks.language, tokenizer)
            return ContrastivePretraining(model, weights, **SCHEDULE), Rows(40, seed=0), regions
        case "represent":
            settings = {"num_queries": 4, "dim": 32, "depth": 1, "num_heads": 2}
            connector = build("connector", {"name": "q_former", **settings}, 24, 32, 16)
            learner = RepresentationModel(arm.model.encoder.requires_grad_(False), connector, len(tokenizer))
            regions = RegionCollate(tasks.split, tasks.language, tokenizer)
            return RepresentationTraining(learner, **SCHEDULE), Rows(40, seed=0), regions
        case "image":
            decoder = build("image_decoder", {"name": "transformer", "dim": 32}, 24, 16, 32)
            autoencoder = ImageAutoencoder(arm.model.encoder, None, decoder)
            module = ImageDecoderTraining(autoencoder, 0.0 if quiet else 0.1, ["image_decoder"], **SCHEDULE)
            return module, Rows(40, seed=0), PixelCollate(tasks.split)
    raise AssertionError(kind)
