"""Runs one training stage: loader, trainer, checkpoints, resume, and leaving when told to."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset

from lab.config import TrainerParams
from lab.errors import LabError
from lab.samples.mixture import StepBatches
from lab.samples.step import StepCollate
from lab.training.callbacks import ExactResume, LossWatch
from lab.training.checkpoints import NAME, LastCheckpoint, find, joined, tidy
from lab.training.collective import disconnect
from lab.training.consumption import Consumption, Numbered, Tallied, Tallies
from lab.training.feed import Feed
from lab.training.ledger import Ledger
from lab.training.preemption import Paused, Preempted, deferred
from lab.training.processes import is_rank_zero, placement, planned, processes, sharded
from lab.training.speed import WHOLLY, accelerated, in_precision, plan_of, switched_on
from lab.training.stage_module import StageModule


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
        budget: "tokens", "flops" or "seconds" -> an amount that ends the stage instead of `steps`.
        accumulate: parts that the samples of a step are divided into.
        loss_weighting: "token" or "sample", what counts the same in the loss of supervised text.
    """

    steps: int
    batch_size: int
    precision: str
    clip: float
    log_every: int
    checkpoint_every: int
    budget: Mapping[str, float] = field(default_factory=dict)
    accumulate: int = 1
    loss_weighting: str = "token"


def fit(
    module: StageModule,
    dataset: Dataset[Any],
    collate: Callable[[Sequence[Any]], Any],
    settings: FitSettings,
    work: Path,
    label: str,
    run: Any = None,
    callbacks: Sequence[pl.Callback] = (),
    trainer: TrainerParams | None = None,
) -> dict[str, Any]:
    """Trains `module`, resuming from `work/last.ckpt` where an interrupted run left one.

    Where several processes train, all of them have to call this; afterwards the model of rank 0 is trained,
    and they are no longer connected.

    Args:
        module: what to train.
        dataset: sample number -> sample, a pure function.
        collate: samples -> batch.
        settings: of the trainer.
        work: folder of resumable state, removed by the caller once the stage's output is published.
        label: heads progress lines.
        run: receives metrics, or None.
        callbacks: further ones.
        trainer: where to train; one process on whatever device there is, if not stated.

    Returns:
        What the stage has cost, over all resumes: `cost/steps`, `cost/samples`, `cost/tokens`, `cost/flops`,
        `cost/train_seconds`, `cost/peak_memory_mb`, `cost/data_wait_share`; and what it has consumed
        (`Consumption.totals`).

    Raises:
        Preempted: a signal asked to leave; the state is saved.
        Paused: a callback did; likewise.
        LabError: whatever the person can mend.
    """
    where = trainer or TrainerParams()
    _check(module, settings, label, where)
    work.mkdir(parents=True, exist_ok=True)
    if is_rank_zero():
        tidy(work)
    with deferred() as arrived:
        ledger = Ledger(settings.steps, settings.batch_size, settings.budget, arrived)
        consumed = _train(module, dataset, collate, settings, work, label, run, callbacks, where, ledger)
    if number := ledger.signal or arrived():
        if processes().starter == "lightning" and not is_rank_zero():
            raise SystemExit(0)  # Lightning, which started this process, takes other codes for a crash
        raise Preempted(number)
    if ledger.paused:
        raise Paused(ledger.done)
    return ledger.costs() | consumed.costs(ledger.seconds) | consumed.totals()


def _train(
    module: StageModule,
    dataset: Dataset[Any],
    collate: Callable[[Sequence[Any]], Any],
    settings: FitSettings,
    work: Path,
    label: str,
    run: Any,
    callbacks: Sequence[pl.Callback],
    where: TrainerParams,
    ledger: Ledger,
) -> Consumption:
    checkpoint, resume = work / NAME, ExactResume()
    steps = settings.steps
    if settings.budget:
        steps = _ENDLESS
        module.follow_share()
    alone = module.whole_batches
    batches = StepBatches(
        settings.batch_size,
        steps,
        lambda: resume.batches_done,
        0 if alone else processes().rank,
        1 if alone else planned(where),
    )
    consumed = Consumption(getattr(dataset, "rows", {}))
    watch = LossWatch(run, label, settings.log_every, checkpoint, ledger, consumed)
    _quiet_lightning()
    trainer = pl.Trainer(
        **placement(where, module.branches),
        max_steps=-1 if settings.budget else steps,
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
            ledger,
            consumed,
            watch,
            *callbacks,
            LastCheckpoint(checkpoint, settings.checkpoint_every, watch, ledger, sharded(where)),
        ],
    )
    _leave_signals_alone(trainer)
    if (dtype := WHOLLY.get(settings.precision)) is not None:  # Lightning's own stumbles over our batches
        trainer.precision_plugin.convert_input = partial(in_precision, dtype=dtype)  # type: ignore[method-assign]
    device = trainer.strategy.root_device.type
    by_sample = settings.loss_weighting == "sample"
    collate_step = StepCollate(
        collate, settings.accumulate, plan_of(where, module, device, sharded(where)), by_sample
    )
    own = slice(processes().rank, None, planned(where)) if alone else slice(None)
    tallied = Tallied(collate_step, settings.batch_size, own)
    loader = DataLoader(
        Numbered(dataset), batch_sampler=batches, collate_fn=tallied, pin_memory=device == "cuda"
    )
    tallies = Tallies(loader)
    feed = Feed(tallies, collate_step)
    consumed.follow(tallies, feed)
    module.fused = switched_on(where.fused, device)
    scratch: Path | None = None
    environment = dict(os.environ)
    try:
        state = find(work)
        if state is not None and state.is_dir() and not sharded(where):
            state = scratch = joined(state)
        elif state is not None and state.is_file() and sharded(where):
            raise LabError(
                f"{label}: {state} was written by processes that had all weights each, and cannot be split "
                "now; go on with strategy ddp, or remove it"
            )
        with accelerated(module, where, device, sharded(where)):
            trainer.fit(module, feed, ckpt_path=state, weights_only=True)
            module.join()
    except SystemExit as stop:  # what Lightning makes of a second Ctrl-C
        raise KeyboardInterrupt from stop
    except UnpicklingError as error:
        raise LabError(f"{checkpoint}: damaged; remove it to start {label} from its beginning") from error
    except OSError as error:
        raise LabError(
            f"{label}: could not write to {work}: {error}; the last complete checkpoint is kept, "
            "free some space and run the same command again"
        ) from error
    finally:
        feed.close()
        if scratch is not None:
            scratch.unlink(missing_ok=True)
        for name in _LIGHTNINGS:  # or the next stage would take itself for one of Lightning's processes
            os.environ.pop(name, None)
            os.environ |= {name: environment[name]} if name in environment else {}
    disconnect()
    return consumed


_ENDLESS = 2**31  # steps, where something else ends a stage
_LIGHTNINGS = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _check(module: StageModule, settings: FitSettings, label: str, where: TrainerParams) -> None:
    """Raises a LabError for what this stage cannot do."""
    world = planned(where)
    if world > 1 and (reason := module.alone()):
        raise LabError(f"{label}: trains in one process only, not {world}: {reason}")
    if settings.batch_size % world:
        raise LabError(f"{label}: batch_size {settings.batch_size} cannot be divided among {world} processes")
    parts, share = settings.accumulate, settings.batch_size // world
    if parts > 1 and (reason := module.whole()):
        raise LabError(f"{label}: accumulate {parts}, but the stage needs a batch whole: {reason}")
    if share % parts:
        own = f" that each of {world} processes has" if world > 1 else ""
        raise LabError(
            f"{label}: accumulate {parts}, but the {share} samples of a step{own} do not divide by it"
        )
    if where.compile == "on" and sharded(where):
        raise LabError(f"{label}: strategy fsdp compiles nothing; choose compile auto or off")
    if where.layout == "buckets" and sharded(where):
        raise LabError(
            f"{label}: with layout buckets lengths say how often the model is called, and strategy fsdp "
            "needs it called equally often by all processes; choose packed, padded or auto"
        )
    if "tokens" in settings.budget and not module.language:
        raise LabError(
            f"{label}: a budget in tokens, but this stage has no language model; "
            "state steps, flops or seconds"
        )


def _leave_signals_alone(trainer: pl.Trainer) -> None:
    """Lightning would talk to other processes, and on SLURM save and requeue, inside of signal handlers.

    Its handlers, and the look at a flag of theirs that costs a wait for the device in every step, are left
    out; `lab.training.preemption` and the ledger do their work at the ends of steps.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def _quiet_lightning() -> None:
    """Lightning's start-up lines and advice on loaders do not fit step-indexed data; errors still show."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
