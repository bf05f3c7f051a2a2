"""Lightning modules: what a step computes for each stage. Models know nothing of them."""

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
from torch.nn import functional as F

from lab.config import ROLES, FitParams, InstructParams
from lab.errors import LabError, nearest
from lab.models.arm import Arm
from lab.models.autoencoder import ImageAutoencoder
from lab.models.contrastive import ContrastiveModel
from lab.models.representation import RepresentationModel
from lab.models.rows import Rule, laid_out, positions_of
from lab.models.unified import UnifiedModel
from lab.samples.batch import Batch
from lab.samples.regions import CaptionedRegions, Pixels
from lab.samples.step import parts_of
from lab.training.collective import all_rows, mean_over_processes, rank, world
from lab.training.trainable import ROWS_ONLY, set_trainable

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


class ContrastivePretraining(StageModule):
    """Encoder pretraining: caption, region and reconstruction losses, weighted; weight 0 costs nothing.

    Images are compared with all captions of a batch, and cells with all phrases. Several processes therefore
    share the work of the encoder, which is most of it, and each computes the losses of the whole batch.
    """

    model: ContrastiveModel
    whole_batches = True
    LOSSES = ("caption", "region", "reconstruction")

    def __init__(self, model: ContrastiveModel, weights: Mapping[str, float], **schedule: Any) -> None:
        super().__init__(model, **schedule)
        for name in weights:
            if name not in self.LOSSES:
                raise LabError(f"stages.encoder.losses: unknown loss '{name}'{nearest(name, self.LOSSES)}")
        self.weights = {name: weight for name, weight in weights.items() if weight}

    def whole(self) -> str:
        return "it compares all images with all captions"

    def loss(self, batch: CaptionedRegions) -> Tensor:
        tokens = all_rows(self.model.encoder(batch.pixels[rank() :: world()]))  # (B, N, D_v)
        total = tokens.new_zeros(())
        for name, weight in self.weights.items():
            loss = getattr(self.model, f"{name}_loss")(tokens, batch)
            self.add_log(f"loss_{name}", loss)
            total = total + weight * loss
        self.add_log("loss", total)
        return total


class TextPretraining(StageModule):
    """Language model pretraining on plain text: cross-entropy of the elements marked as supervised."""

    model: Any  # keeps the protocol of a text decoder
    language = True
    branches = False

    def loss(self, batch: Batch) -> Tensor:
        embeds, positions = self.model.embed(batch.ids), positions_of(batch.mask)
        if batch.layout is None:
            states = self.model(embeds, batch.mask, positions)  # (B, T, D)
        else:
            states = laid_out(self.model, embeds, batch.layout, Rule(None, positions))
        places = batch.places.supervised
        logits = self.model.logits(states.flatten(0, 1)[places - 1])  # (K, V)
        wanted = batch.ids.flatten()[places]
        if batch.weights is None:
            loss = F.cross_entropy(logits.float(), wanted)
        else:
            entropy = F.cross_entropy(logits.float(), wanted, reduction="none")
            loss = (entropy * batch.weights).sum() / batch.weights.sum()
        loss = self.weighed(loss.view(1), batch).sum()
        self.add_log("loss", loss, self.part)
        return loss

    def counts(self, batch: Batch) -> Tensor:
        return _supervised(batch).view(1)


class RepresentationTraining(StageModule):
    """Representation learning of a Q-Former: contrastive, matching and captioning losses, summed (BLIP-2)."""

    model: RepresentationModel

    def alone(self) -> str:
        return "it draws hard negatives from all of a batch"

    def whole(self) -> str:
        return self.alone()

    def loss(self, batch: CaptionedRegions) -> Tensor:
        losses = self.model(batch.pixels, batch.captions)
        for name in ("contrastive", "matching", "generation"):
            self.add_log(f"loss_{name}", getattr(losses, name))
        self.add_log("loss", losses.total)
        return losses.total

    def on_train_start(self) -> None:
        self.model.encoder.eval()  # type: ignore[attr-defined]


class ImageDecoderTraining(StageModule):
    """Image decoder training: pixels from an image's tokens, alone or together with what makes the tokens.

    Args:
        model: the way from pixels to tokens and back.
        noise: standard deviation of Gaussian noise on tokens, relative to their own deviation, so that the
            decoder also reads the imperfect tokens that a language model predicts.
        trainable: "image_decoder", and of "encoder" and "connector" those that learn with it.
    """

    model: ImageAutoencoder

    def __init__(
        self, model: ImageAutoencoder, noise: float, trainable: Sequence[str], **schedule: Any
    ) -> None:
        super().__init__(model, **schedule)
        self.noise, self.trainable = noise, tuple(trainable)
        model.requires_grad_(False)
        for role in self.trainable:
            getattr(model, role).requires_grad_(True)

    def alone(self) -> str:
        parts = [getattr(self.model, role) for role in self.trainable]
        discrete = any(getattr(part, "codebook", None) is not None for part in parts)
        return "codes move after the images of a batch, outside the optimizer" if discrete else ""

    def whole(self) -> str:
        return self.alone()

    def loss(self, batch: Pixels) -> Tensor:
        tokens, own = self.model.tokens(batch.pixels_drawn, self.trainable)  # (J, N, D_v), (J,) or None
        share = self.noise * torch.rand(len(tokens), 1, 1, device=tokens.device)
        tokens = tokens + share * tokens.std() * torch.randn_like(tokens)
        loss = self.model.image_decoder.loss(tokens, batch.pixels_drawn).mean()
        if own is not None:
            self.add_log("loss_tokens", own.mean())
            loss = loss + own.mean()
        loss = self.weighed(loss.view(1), batch).sum()
        self.add_log("loss", loss, self.part)
        return loss

    def counts(self, batch: Pixels) -> Tensor:
        images = batch.pixels_drawn
        return torch.full((1,), len(images), dtype=torch.float32, device=images.device)

    def on_train_start(self) -> None:
        for role in ("encoder", "connector"):
            if (part := getattr(self.model, role)) is not None:
                part.train(role in self.trainable)


class UnifiedTraining(StageModule):
    """Alignment, pretraining and instruction tuning of the unified model; the recipe says which parts train.

    Args:
        model: the parts of the system.
        trainable: parts that train (see `set_trainable`); all others are frozen and kept in eval mode.
        image_weight: weight of the image loss beside the text loss.
        image_marks: ids of the tokens around an image, for `text_decoder.image_marks`.
    """

    model: UnifiedModel
    language = True

    def __init__(
        self,
        model: UnifiedModel,
        trainable: list[str],
        image_weight: float,
        image_marks: tuple[int, ...] = (),
        **schedule: Any,
    ) -> None:
        super().__init__(model, **schedule)
        self.trainable, self.image_weight = list(trainable), image_weight
        set_trainable(model, self.trainable, image_marks)
        for part in self.trainable:
            if not any(part.startswith(role) for role in self.learning_rates):
                raise LabError(f"trainable: {part}, but learning_rate has none for it")

    @classmethod
    def of(cls, arm: Arm, settings: InstructParams) -> UnifiedTraining:
        """The training of an arm that the settings of a stage say."""
        return cls(
            arm.model,
            settings.trainable,
            settings.image_weight,
            arm.image_marks,
            **schedule_of(settings),
        )

    def on_train_start(self) -> None:  # at the start of an epoch would not do: a resumed run is amid one
        self.model.train()
        for role in ROLES:
            if (part := getattr(self.model, role)) is not None:
                part.train(any(name.partition(".")[0] == role for name in self.trainable))
        if self.model.image_decoder is not None:
            self.model.image_decoder.eval()  # type: ignore[attr-defined]

    def loss(self, batch: Batch) -> Tensor:
        losses = self.model(batch)
        text, image = self.weighed(torch.stack([losses.text, losses.image]), batch)
        total = text + self.image_weight * image
        self.add_log("loss", total, self.part)
        names = tuple(f"loss_{task}{kind}" for task in batch.tasks for kind in ("", "_image"))
        sums = torch.stack([losses.text_sum, losses.image_sum], dim=1)  # (tasks, 2)
        counts = torch.stack([losses.text_count, losses.image_count], dim=1)
        self.add_logs(names, sums.flatten(), counts.flatten())
        return total

    def counts(self, batch: Batch) -> Tensor:
        text = _supervised(batch)
        return torch.stack([text, text.new_full((), len(batch.pixels_drawn))])


def _supervised(batch: Batch) -> Tensor:
    """What the text loss of a batch is a mean over, as a scalar: its supervised elements, or its samples."""
    if batch.weights is not None:
        return batch.weights.sum()
    return torch.full((), len(batch.places.supervised), dtype=torch.float32, device=batch.ids.device)
