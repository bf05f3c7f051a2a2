"""What a stage has spent and whether it has to stop, the same in all processes at the end of every step."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from lab.errors import LabError
from lab.samples.batch import Batch
from lab.samples.step import parts_of
from lab.training.collective import collected, rank, summed
from lab.training.flops import flops_of
from lab.training.preemption import SIGNALS


class Ledger(pl.Callback):
    """Counts samples, tokens, operations and time over all resumes of a stage; ends it when they are spent.

    All processes learn the same once a step: the sums of what each counted, and the signals that any of them
    received. So all of them stop, and save, at the same step.

    Operations are those of the first batches (see `flops_of`), in proportion to the positions that a batch
    takes with its padding: on the built-in tasks within a few percent (docs/training.md), and free of charge
    after these batches. With a budget in operations more batches are measured.

    Args:
        steps: of the stage, if there is no budget.
        batch_size: samples a step, of all processes together.
        budget: "tokens", "flops" or "seconds" -> the amount, at most one; the stage ends with the first step
            at which it is spent.
        arrived: which signal has arrived in this process, 0 for none.

    Attributes:
        done: steps that are over.
        tokens: real positions of the language model, visual ones included.
        flops: operations, forward and backward.
        seconds: spent in steps and on their data; not on start-up, checkpoints, records.
        signal: the signal that all processes obey, 0 for none.
        paused: whether a callback asked to leave after this step; the stage goes on another time.
    """

    def __init__(
        self, steps: int, batch_size: int, budget: Mapping[str, float], arrived: Callable[[], int]
    ) -> None:
        self.steps, self.batch_size, self.budget = steps, batch_size, dict(budget)
        self.arrived, self.signal, self.paused = arrived, 0, False
        self.done, self.tokens, self.flops, self.seconds = 0, 0, 0.0, 0.0
        self._to_measure = _MEASURED_FOR_A_BUDGET if "flops" in budget else _MEASURED
        self._measured: list[tuple[float, float]] = []  # size of a batch, its operations
        self._peak = 0.0

    @property
    def samples(self) -> int:
        return self.done * self.batch_size

    @property
    def share(self) -> float:
        """How much of the stage is over, 0 to 1."""
        for unit, amount in self.budget.items():
            return min(1.0, getattr(self, unit) / amount)
        return min(1.0, self.done / self.steps)

    @property
    def over(self) -> bool:
        return self.share >= 1.0

    def costs(self) -> dict[str, float]:
        """What the stage has cost so far, as its metrics state it."""
        return {
            "cost/steps": self.done,
            "cost/samples": self.samples,
            "cost/tokens": self.tokens,
            "cost/flops": round(self.flops),
            "cost/train_seconds": round(self.seconds, 2),
            "cost/peak_memory_mb": round(self._peak, 1),
        }

    def pause(self, trainer: pl.Trainer) -> None:
        """Has the stage save its state and leave at the end of this step."""
        self.paused = trainer.should_stop = True

    def start_clock(self) -> None:
        """Time counts from here; called when all that a step's end brings with it is done."""
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        self._peak = max(self._peak, _peak_memory(self._device))
        names = ("done", "tokens", "flops", "seconds", "_measured", "_peak")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._device = trainer.strategy.root_device
        _forget_peak(self._device)
        if len(set(collected(self.done))) > 1:
            raise LabError(
                "the processes found checkpoints of different steps; the folder of the pipeline has to be on "
                "a file system that all nodes share"
            )
        if self.budget:
            module.set_share(trainer.optimizers[0], self.share)
            trainer.should_stop = self.over  # a resumed run may have nothing left to do
        self.start_clock()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if len(self._measured) >= self._to_measure:
            return
        start = time.perf_counter()
        with module.unlogged():
            flops = sum(
                flops_of(module, _padded(part), trainer.precision_plugin.forward_context())
                for part in parts_of(batch)
            )
        self._measured.append(tuple(summed([module.positions, flops])))  # type: ignore[arg-type]
        self._since += time.perf_counter() - start

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        seconds = time.perf_counter() - self._since
        arrived = self.arrived()
        *arrivals, tokens, size, seconds = summed(
            [
                *(float(arrived == number) for number in SIGNALS),
                module.tokens,
                module.positions,
                seconds if rank() == 0 else 0.0,
            ]
        )
        self.signal = next((n for n, count in zip(SIGNALS, arrivals, strict=True) if count), 0)
        self.done += 1
        self.tokens += int(tokens)
        self.seconds += seconds
        sizes, flops = (sum(column) for column in zip(*self._measured, strict=True))
        self.flops += flops / sizes * size
        if self.budget:
            module.set_share(trainer.optimizers[0], self.share)
        if self.signal or (self.budget and self.over):
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._peak = max(collected(max(self._peak, _peak_memory(self._device))))


_STATUS = Path("/proc/self/status")
_MEASURED, _MEASURED_FOR_A_BUDGET = 1, 4  # batches


def _padded(batch: Any) -> Any:
    """The batch without its layout, of which neither costs nor a budget may depend."""
    return replace(batch, layout=None) if isinstance(batch, Batch) else batch


def _forget_peak(device: torch.device) -> None:
    """What the process has needed before is not the stage's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory(device: torch.device) -> float:
    """Most memory of the process since `_forget_peak`, in MB: of the GPU if it uses one, else of the machine.

    Where the system says no more, it is the most that the process has ever had, and the one that started it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError, IndexError):  # some sandboxes have the file without the line
        return int(_STATUS.read_text().partition("VmHWM:")[2].split()[0]) / 2**10
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
