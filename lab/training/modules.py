"""Lightning modules: what a step computes for each stage. Models know nothing of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lab.config import ROLES, InstructParams
from lab.errors import LabError, nearest
from lab.models.arm import Arm
from lab.models.autoencoder import ImageAutoencoder
from lab.models.contrastive import ContrastiveModel
from lab.models.representation import RepresentationModel
from lab.models.rows import Rule, laid_out, positions_of
from lab.models.unified import UnifiedModel
from lab.samples.batch import Batch
from lab.samples.regions import CaptionedRegions, Pixels
from lab.training.collective import all_rows, rank, world
from lab.training.stage_module import StageModule, schedule_of
from lab.training.trainable import set_trainable


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
