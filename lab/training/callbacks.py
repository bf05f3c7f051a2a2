"""What happens around a step: exact resume, safe checkpoints, losses, progress, and stopping at NaN."""

from __future__ import annotations

import math
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from lab.errors import LabError


class ExactResume(pl.Callback):
    """Puts random state and data position into checkpoints, and back.

    Lightning restores model, optimizer and schedule, but neither random generators nor the place in the data.
    With the batches done kept here and batches that are a pure function of their number (`StepBatches`), a
    resumed run is the uninterrupted run, bit for bit.
    """

    def __init__(self) -> None:
        self.batches_done = 0
        self._restored: dict[str, Any] | None = None

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches_done += 1

    def state_dict(self) -> dict[str, Any]:
        numpy_state: Any = np.random.get_state(legacy=True)  # a tuple; its type allows a dict as well
        name, keys, position, has_gauss, gauss = numpy_state
        return {
            "batches_done": self.batches_done,
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": (name, torch.from_numpy(keys.astype("int64")), position, has_gauss, gauss),
            "python": random.getstate(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches_done = state["batches_done"]
        self._restored = state

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Not earlier: the set-up of the trainer draws random numbers too.
        if (state := self._restored) is None:
            return
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"]:
            torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
        name, keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state((name, keys.numpy().astype("uint32"), position, has_gauss, gauss))
        version, internal, gauss_next = state["python"]
        random.setstate((version, tuple(internal), gauss_next))
        self._restored = None


class LossWatch(pl.Callback):
    """Logs losses by task at intervals, shows progress, and stops at a loss that is not finite or explodes.

    Args:
        run: receives metrics (an object with `metrics(values, step)` and `flush()`), or None.
        label: what the progress lines are headed with.
        every: steps between log points.
        checkpoint: named in the message when the run stops.
    """

    EXPLODED = 1e4  # times the first loss

    def __init__(self, run: Any, label: str, every: int, checkpoint: Path) -> None:
        self.run, self.label, self.every, self.checkpoint = run, label, every, checkpoint
        self._first: float | None = None
        self._unseen: list[
            tuple[int, tuple[str, ...], torch.Tensor]
        ] = []  # step, samples, loss on the device

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first = state["first"]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._since, self._step = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        self._unseen.append((step, getattr(batch, "sample_ids", ()), outputs["loss"]))
        if step % self.every and step != trainer.max_steps:
            return
        self.check()
        values = module.take_logs()
        now = time.perf_counter()
        rate = (step - self._step) / (now - self._since)
        self._since, self._step = now, step
        batch_size = len(getattr(batch, "sample_ids", ())) or 1
        learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        if self.run is not None:
            perf = {"train/learning_rate": learning_rate, "perf/samples_per_second": rate * batch_size}
            self.run.metrics({f"train/{name}": value for name, value in values.items()} | perf, step=step)
        self._show(values, step, trainer.max_steps, rate, rate * batch_size)

    def flush(self) -> None:
        """Writes what is logged: a run that is killed goes on from its checkpoint and would leave a gap."""
        if self.run is not None:
            self.run.flush()

    def check(self) -> None:
        """Looks at the losses since the last look; here and at log points alone the device is waited for.

        Raises:
            LabError: naming the first step whose loss is broken, and its samples.
        """
        steps, self._unseen = self._unseen, []
        for step, samples, tensor in steps:
            loss = float(tensor)
            self._first = loss if self._first is None else self._first
            if math.isfinite(loss) and abs(loss) <= self.EXPLODED * max(abs(self._first), 1e-3):
                continue
            finite = math.isfinite(loss)
            what = f"exploded from {self._first:.3g} to {loss:.3g}" if finite else "is not finite"
            ids = ", ".join(samples[:4]) + (", ..." if len(samples) > 4 else "")
            good = str(self.checkpoint) if self.checkpoint.exists() else "none yet"
            raise LabError(
                f"{self.label}: the loss {what} at step {step} (samples {ids or 'unknown'}); "
                f"last good checkpoint: {good}; lower the learning rate or raise the warm-up"
            )

    def _show(self, values: dict[str, float], step: int, total: int, rate: float, samples: float) -> None:
        losses = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in values.items())
        left = (total - step) / rate if rate else 0.0
        line = f"{self.label}  {step}/{total}  {samples:.0f} samples/s  {left:.0f} s left  {losses}"
        if sys.stderr.isatty():
            filled = round(20 * step / total)
            bar = "━" * filled + "─" * (20 - filled)
            print(f"\r\033[K{bar} {line}", end="\n" if step == total else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


class LastCheckpoint(pl.Callback):
    """Writes `last.ckpt` every so many steps, under another name first, so that a kill never leaves half.

    Only sound states are written: a run that broke left its last good one, which a rerun starts from.
    """

    def __init__(self, path: Path, every: int, watch: LossWatch) -> None:
        self.path, self.every, self.watch = path, every, watch

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step and trainer.global_step % self.every == 0:
            self.watch.check()
            # a gradient can break before any loss shows it; the next step's loss will
            if all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
                self.watch.flush()
                self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        partial = self.path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        os.replace(partial, self.path)
