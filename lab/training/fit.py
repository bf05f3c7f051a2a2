"""Runs one training stage: loader, trainer, checkpoints, resume."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset

from lab.errors import LabError
from lab.samples.mixture import StepBatches
from lab.training.callbacks import ExactResume, LastCheckpoint, LossWatch
from lab.training.modules import StageModule


@dataclass(frozen=True)
class FitSettings:
    """How a stage is trained, whatever it trains.

    Attributes:
        steps: optimizer steps.
        batch_size: samples a step.
        precision: a precision of Lightning's Trainer ("32-true", "bf16-mixed", ...).
        clip: gradients are clipped to this norm.
        log_every: steps between log points.
        checkpoint_every: steps between resumable checkpoints.
    """

    steps: int
    batch_size: int
    precision: str
    clip: float
    log_every: int
    checkpoint_every: int


def fit(
    module: StageModule,
    dataset: Dataset[Any],
    collate: Callable[[Sequence[Any]], Any],
    settings: FitSettings,
    work: Path,
    label: str,
    run: Any = None,
    callbacks: Sequence[pl.Callback] = (),
) -> None:
    """Trains `module`, resuming from `work/last.ckpt` where an interrupted run left one.

    Args:
        module: what to train.
        dataset: sample number -> sample, a pure function.
        collate: samples -> batch.
        settings: of the trainer.
        work: folder of resumable state, removed by the caller once the stage's output is published.
        label: heads progress lines.
        run: receives metrics, or None.
        callbacks: further ones.
    """
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "last.ckpt"
    resume, watch = ExactResume(), LossWatch(run, label, settings.log_every, checkpoint)
    batches = StepBatches(settings.batch_size, settings.steps, lambda: resume.batches_done)
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate)
    _quiet_lightning()
    trainer = pl.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=settings.steps,
        max_epochs=1,
        precision=settings.precision,  # type: ignore[arg-type]
        gradient_clip_val=settings.clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=work,
        callbacks=[
            resume,
            watch,
            LastCheckpoint(checkpoint, settings.checkpoint_every, watch),
            *callbacks,
        ],
    )
    try:
        trainer.fit(module, loader, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
    except SystemExit as stop:  # what Lightning makes of signals; of SIGTERM one that says all went well
        raise KeyboardInterrupt from stop
    except UnpicklingError as error:
        raise LabError(f"{checkpoint}: damaged; remove it to start {label} from its beginning") from error
    except OSError as error:
        raise LabError(
            f"{label}: could not write to {work}: {error}; the last complete checkpoint is kept, "
            "free some space and run the same command again"
        ) from error


def _quiet_lightning() -> None:
    """Lightning's start-up lines and advice on loaders do not fit step-indexed data; errors still show."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
