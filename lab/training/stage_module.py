"""What all stages share: optimizer, schedule, parts of a step, accounting of losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lab.config import FitParams
from lab.errors import LabError
from lab.samples.batch import Batch
from lab.samples.step import parts_of
from lab.training.collective import mean_over_processes, world
from lab.training.trainable import ROWS_ONLY

if TYPE_CHECKING:
    from lab.training.sharding import Sharded


class StageModule(pl.LightningModule):
    """Optimizer, schedule and loss accounting that all stages share.

    A step's batch may come in parts, one after the other (`Parts`), and several processes each see a part of
    it, their gradients averaged. So a loss that is a mean over the part is weighed by how large the part is
    (`weighed`); the step is then that of one process on the whole batch.

    Args:
        model: what is trained.
        learning_rates: how a parameter's name begins (a role, or a pattern such as `fusion.*gate`) -> peak
            learning rate; the longest that matches counts, and "" matches every parameter. Parameters that
            match nothing, or whose `requires_grad` is False, are left alone.
        steps: optimizer steps of the stage.
        warmup: steps of linear warm-up; a cosine down to 5% follows.
        weight_decay: of matrices; vectors and embeddings are not decayed.

    Attributes:
        language: whether its batches are sequences of a language model, of which tokens can be counted.
        whole_batches: whether every process needs all of a batch, and shares the work on it by itself.
        branches: whether a part of a batch may leave trained parameters without gradient.
        tokens: real positions of the language model in the batch at hand, 0 where there is none.
        positions: what its work grows with: positions with padding, 1 where there are none.
    """

    language: ClassVar[bool] = False
    whole_batches: ClassVar[bool] = False
    branches: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        learning_rates: Mapping[str, float],
        steps: int,
        warmup: int,
        weight_decay: float,
    ) -> None:
        super().__init__()
        self.model = model
        self.learning_rates, self.steps = dict(learning_rates), steps
        self.warmup, self.weight_decay = warmup, weight_decay
        self.tokens, self.positions = 0, 1
        self.part = 1.0  # of a step's parts that a batch is
        self._whole: Tensor | None = None
        self.fused = False  # whether the optimizer updates in one kernel
        self._by_share = False
        self._sharded: Sharded | None = None
        self._sums: dict[tuple[str, ...], Tensor] = {}  # names -> (n,) of each
        self._counts: dict[tuple[str, ...], Tensor] = {}

    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch, or of this process's part of it."""
        raise NotImplementedError

    def forward(self, batch: Any) -> Tensor:
        loss = self.loss(batch)
        return loss if self._sharded is None else self._sharded.reached(loss)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a step, of which the gradient is that of its last part; the others' has been added."""
        parts = parts_of(batch)
        self._weigh(parts)
        if len(parts) == 1:
            return self(parts[0])  # a call, which is where weights that are split come together
        self.zero_grad()
        before = torch.zeros((), device=self.device)
        for part in parts[:-1]:
            loss = self(part)
            self.trainer.strategy.backward(loss, None)
            before = before + loss.detach()
        return self(parts[-1]) + before

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        if self.part == 1.0:  # else it would forget the parts before the last
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def alone(self) -> str:
        """Why the stage runs in one process only, "" if it need not."""
        return ""

    def whole(self) -> str:
        """Why a step's batch cannot come in parts, "" if it can."""
        return ""

    def counts(self, batch: Any) -> Tensor | None:
        """Of how many elements (n,) each of the batch's losses is the mean; None if it cannot be divided."""
        return None

    def weighed(self, means: Tensor, batch: Any) -> Tensor:
        """Losses (n,) of a part, so that their sum over parts and mean over processes is that of all."""
        if self._whole is None:
            return means
        counts = self.counts(batch)
        assert counts is not None  # `fit` has looked
        return means * (counts / self._whole.clamp_min(1 / world()))

    def _weigh(self, parts: Sequence[Any]) -> None:
        """Learns how much there is of what the losses of all parts are means of, over all processes."""
        self.part, self._whole = 1 / len(parts), None
        counts = [self.counts(part) for part in parts] if len(parts) > 1 or world() > 1 else []
        if known := [count for count in counts if count is not None]:
            self._whole = mean_over_processes(torch.stack(known).sum(dim=0))

    def add_log(self, name: str, total: Tensor, count: Tensor | float = 1.0) -> None:
        """Adds to a running mean that stays on the device."""
        # filled on the device: a number sent there would be waited for
        weight = count if isinstance(count, Tensor) else torch.full_like(total, count)
        self.add_logs((name,), total.view(1), weight.view(1))

    def add_logs(self, names: tuple[str, ...], totals: Tensor, counts: Tensor) -> None:
        """Adds (n,) totals and counts to running means that stay on the device."""
        for sums, more in ((self._sums, totals.detach()), (self._counts, counts.to(totals.dtype))):
            before = sums.get(names, torch.zeros_like(more))
            sums[names] = before.to(more.device) + more  # a resumed sum is on the CPU

    def take_logs(self) -> dict[str, float]:
        """Means since the last call, over all processes; waits for the device."""
        sums, counts = self._sums, self._counts
        self._sums, self._counts = {}, {}
        if not sums:
            return {}
        names = [name for group in sums for name in group]
        total = mean_over_processes(torch.stack([torch.cat(list(one.values())) for one in (sums, counts)]))
        means, number = (total[0] / total[1]).tolist(), total[1].tolist()
        return {name: mean for name, mean, count in zip(names, means, number, strict=True) if count}

    @contextmanager
    def unlogged(self) -> Iterator[None]:
        """Forgets what is logged within."""
        sums, counts = dict(self._sums), dict(self._counts)
        yield
        self._sums, self._counts = sums, counts

    def follow_share(self) -> None:
        """Has learning rates follow `set_share` instead of the number of steps; called before training."""
        self._by_share = True

    def set_share(self, optimizer: torch.optim.Optimizer, share: float) -> None:
        """Sets learning rates to where the schedule is after a share of the stage, 0 to 1."""
        factor = warmup_cosine(self.steps, self.warmup)(share * self.steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def configure_model(self) -> None:
        mesh = self._device_mesh  # there if weights are to be split
        if mesh is None or self._sharded is not None:
            return
        if any(getattr(parameter, ROWS_ONLY, False) for parameter in self.parameters()):
            raise LabError("strategy fsdp: text_decoder.image_marks are rows of a matrix; use ddp")
        from lab.training.sharding import Sharded

        self._sharded = Sharded(self, mesh["data_parallel"])

    def join(self) -> None:
        """Puts weights that are split together again, in the model of rank 0 as it was given."""
        if self._sharded is not None:
            self._sharded.join()
            self._sharded = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            matching = [start for start in self.learning_rates if fnmatchcase(name, f"{start}*")]
            rates = [self.learning_rates[start] for start in sorted(matching, key=len, reverse=True)]
            if parameter.requires_grad and rates:
                whole = not getattr(parameter, ROWS_ONLY, False)
                decay = self.weight_decay if parameter.ndim > 1 and "embed" not in name and whole else 0.0
                groups.setdefault((rates[0], decay), []).append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {"params": members, "lr": rate, "weight_decay": decay}
                for (rate, decay), members in groups.items()
            ],
            betas=(0.9, 0.98),
            fused=self.fused or None,
        )
        if self._by_share:
            for group in optimizer.param_groups:
                group["peak"] = group["lr"]
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(self.steps, self.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["running_means"] = (self._sums, self._counts)  # between two log points

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._sums, self._counts = checkpoint["running_means"]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if batches := [part for part in parts_of(batch) if isinstance(part, Batch)]:  # still on the CPU
            self.tokens = sum(int(part.mask.sum()) for part in batches)
            self.positions = sum(part.ids.numel() for part in batches)
        if device.type == "cpu":  # where it was made
            return batch
        return (
            batch.to(device) if hasattr(batch, "to") else super().transfer_batch_to_device(batch, device, 0)
        )


def schedule_of(settings: FitParams) -> dict[str, Any]:
    """What the settings of a stage say of its optimizer: named arguments of every module."""
    rates = settings.learning_rate  # type: ignore[attr-defined]  # by role, or one for all
    return {
        "learning_rates": rates if isinstance(rates, dict) else {"": rates},
        "steps": settings.steps,
        "warmup": settings.warmup,
        "weight_decay": settings.weight_decay,
    }


def warmup_cosine(steps: int, warmup: int, floor: float = 0.05) -> Callable[[float], float]:
    """Learning-rate factor of a step: linear to 1 over `warmup` steps, then cosine to `floor` at `steps`."""

    def factor(step: float) -> float:
        if step < warmup:
            return min(1.0, (step + 1) / warmup)
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
