"""What happens around a step: exact resume, losses, progress, and stopping at NaN."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from lab.errors import LabError
from lab.training.collective import collected, mean_over_processes, rank
from lab.training.consumption import Consumption
from lab.training.ledger import Ledger
from lab.training.randomness import random_states, seed_apart, set_random_states


class ExactResume(pl.Callback):
    """Puts random state and data position into checkpoints, and back.

    Lightning restores model, optimizer and schedule, but neither random generators nor the place in the data.
    With the batches done kept here and batches that are a pure function of their number (`StepBatches`), a
    resumed run is the uninterrupted run, bit for bit, on the same number of processes. On another number the
    data is the same and the noise is not.
    """

    def __init__(self) -> None:
        self.batches_done = 0
        self._restored: list[dict[str, Any]] = []  # by rank

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches_done += 1

    def state_dict(self) -> dict[str, Any]:
        return {"batches_done": self.batches_done, "random": collected(random_states())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches_done, self._restored = state["batches_done"], state["random"]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Not earlier: the set-up of the trainer draws random numbers too.
        if rank() < len(self._restored):
            set_random_states(self._restored[rank()])
        elif rank():
            seed_apart(rank(), self.batches_done)
        self._restored = []


class LossWatch(pl.Callback):
    """Logs losses by task at intervals, shows progress, and stops at a loss that is not finite or explodes.

    Processes look at the mean of their losses, at the same steps; that of rank 0 alone writes.

    Args:
        run: receives metrics (an object with `metrics(values, step)` and `flush()`), or None.
        label: what the progress lines are headed with.
        every: steps between log points.
        checkpoint: named in the message when the run stops.
        ledger: says what has been spent.
        consumed: says of which sources, and how long steps waited for data.
    """

    EXPLODED = 1e4  # times the first loss

    def __init__(
        self, run: Any, label: str, every: int, checkpoint: Path, ledger: Ledger, consumed: Consumption
    ) -> None:
        self.run, self.label, self.every, self.checkpoint = run, label, every, checkpoint
        self.ledger, self.consumed = ledger, consumed
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
        if step % self.every and not self.ledger.over:
            return
        self.check()
        values = module.take_logs()
        self.consumed.meet()
        if rank():
            return
        now = time.perf_counter()
        rate = (step - self._step) / (now - self._since)
        samples = rate * self.ledger.batch_size
        self._since, self._step = now, step
        if self.run is not None:
            shown = {f"train/{name}": value for name, value in values.items()}
            shown |= {"train/learning_rate": trainer.optimizers[0].param_groups[0]["lr"]}
            shown |= {"perf/samples_per_second": samples, "budget/spent_share": self.ledger.share}
            shown |= {"budget/samples": self.ledger.samples, "budget/tokens": self.ledger.tokens}
            shown |= self.consumed.shares() | self.consumed.costs(self.ledger.seconds)
            self.run.metrics(shown, step=step)
        self._show(values, step, rate, samples)

    def flush(self) -> None:
        """Writes what is logged: a run that is killed goes on from its checkpoint and would leave a gap."""
        if self.run is not None and not rank():
            self.run.flush()

    def check(self) -> None:
        """Looks at the losses since the last look; here and at log points alone the device is waited for.

        Raises:
            LabError: naming the first step whose loss is broken, and its samples.
        """
        steps, self._unseen = self._unseen, []
        if not steps:
            return
        losses = mean_over_processes(torch.stack([tensor.detach().float() for _, _, tensor in steps]))
        for (step, samples, _), loss in zip(steps, losses.tolist(), strict=True):
            self._first = loss if self._first is None else self._first
            if math.isfinite(loss) and abs(loss) <= self.EXPLODED * max(abs(self._first), 1e-3):
                continue
            finite = math.isfinite(loss)
            what = f"exploded from {self._first:.3g} to {loss:.3g}" if finite else "is not finite"
            samples = tuple(dict.fromkeys(one for part in collected(samples) for one in part))
            ids = ", ".join(samples[:4]) + (", ..." if len(samples) > 4 else "")
            good = str(self.checkpoint) if self.checkpoint.exists() else "none yet"
            raise LabError(
                f"{self.label}: the loss {what} at step {step} (samples {ids or 'unknown'}); "
                f"last good checkpoint: {good}; lower the learning rate or raise the warm-up"
            )

    def _show(self, values: dict[str, float], step: int, rate: float, samples: float) -> None:
        losses = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in values.items())
        share = self.ledger.share
        total = step / share if self.ledger.budget else self.ledger.steps
        done = f"{step} steps, {share:.0%} of the budget" if self.ledger.budget else f"{step}/{total}"
        left = (total - step) / rate if rate else 0.0
        line = f"{self.label}  {done}  {samples:.0f} samples/s  {left:.0f} s left  {losses}"
        if sys.stderr.isatty():
            filled = round(20 * share)
            bar = "━" * filled + "─" * (20 - filled)
            end = "\n" if self.ledger.over else ""
            print(f"\r\033[K{bar} {line}", end=end, file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
