"""One model that reads and draws: the parts of a system around one sequence."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.contracts import Connector, Encoder, Fusion, ImageDecoder, TextDecoder, VisualHead
from lab.errors import LabError
from lab.samples.batch import Batch


@dataclass(frozen=True)
class Losses:
    """Losses of a batch.

    Attributes:
        text: scalar, mean cross-entropy over supervised text elements (0 where there are none).
        image: scalar, mean loss over drawn images (0 where there are none).
        text_sum: (tasks,) summed cross-entropy of each task; text_count: (tasks,) its supervised elements.
        image_sum: (tasks,) summed image loss of each task; image_count: (tasks,) its drawn images.
    """

    text: Tensor
    image: Tensor
    text_sum: Tensor
    text_count: Tensor
    image_sum: Tensor
    image_count: Tensor


class UnifiedModel(nn.Module):
    """The parts of a system around one sequence; the only place where their widths meet.

    Images that are read enter through the connector, by way of the fusion. Images that are drawn are visual
    tokens, the encoder's own or the connector's, which the visual head makes of the language model's states.

    Args:
        encoder, connector, text_decoder, fusion, visual_head: components that keep the contracts of their
            roles; a model without a visual head only reads.
        targets: what a drawn image is made of: the "encoder"'s tokens or the "connector"'s.
        image_decoder: for a head whose loss is the image decoder's; it is never trained here.
    """

    encoder: Encoder
    connector: Connector
    text_decoder: TextDecoder
    fusion: Fusion
    visual_head: VisualHead | None

    def __init__(
        self,
        encoder: Encoder,
        connector: Connector,
        text_decoder: TextDecoder,
        fusion: Fusion,
        visual_head: VisualHead | None = None,
        targets: Literal["encoder", "connector"] = "encoder",
        image_decoder: ImageDecoder | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.connector = encoder, connector
        self.text_decoder, self.fusion, self.visual_head = text_decoder, fusion, visual_head
        self.target_space, self.image_decoder = targets, image_decoder
        self.reads_text: bool = getattr(connector, "reads_text", False)
        try:
            fusion.attach(text_decoder.layers)
        except ValueError as error:
            raise LabError(f"fusion: {error}") from error
        if visual_head is not None and getattr(visual_head, "feedback", "own") == "shared":
            visual_head.share(self._shared())  # type: ignore[attr-defined]

    def _shared(self) -> Any:
        """What embeds drawn tokens (B, n, D_v), number `first` and on, if the head does not do so itself."""
        if self.target_space == "connector":
            return _as_they_are  # the language model reads and writes one space
        if not getattr(self.connector, "per_token", False):
            raise LabError(
                "visual_head: feedback is shared with the connector, which has to map every token by itself, "
                "as linear and mlp do; choose one of these, targets: connector, or feedback: own"
            )
        return self.connector

    @property
    def tokens_read(self) -> int:
        """Positions that an image takes which is read."""
        return self.connector.num_tokens if self.fusion.in_sequence else 0

    @property
    def tokens_drawn(self) -> int:
        """Positions that an image takes which is drawn."""
        return self.visual_head.num_slots if self.visual_head is not None else 0

    # -- sequence --------------------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> Tensor:
        """Tokens (I, N, D_v) of pixels (I, 3, H, W); cached features (I, N, D_v) are tokens already."""
        if images.ndim == 4:
            return self.encoder(images)
        return images.to(next(self.connector.parameters()).dtype)  # type: ignore[attr-defined]

    def read(self, batch: Batch) -> Tensor | None:
        """Visual tokens (I, M, D) of the images read, None if there are none."""
        if not len(batch.pixels_read):
            return None
        tokens = self.encode(batch.pixels_read)  # (I, N, D_v)
        if not self.reads_text:
            return self.connector(tokens)
        said = self.text_decoder.embed(batch.prompt)  # (I, L, D)
        return self.connector(tokens, said, batch.prompt_mask)  # type: ignore[call-arg]

    def targets(self, batch: Batch) -> Tensor | None:
        """Visual tokens (J, N, D_v) of the images to draw, None if there are none.

        The encoder's come without gradient. The connector's have one, for the way in; losses detach them.
        """
        if not len(batch.pixels_drawn):
            return None
        return self.image_tokens(batch.pixels_drawn)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """What pixels (J, 3, H, W), or cached features of them (J, N, D_v), are drawn as, (J, N, D_v)."""
        with torch.no_grad():
            tokens = self.encode(pixels)
        return self.connector(tokens) if self.target_space == "connector" else tokens

    def slot_inputs(self, targets: Tensor | None) -> tuple[Tensor | None, Any]:
        """Inputs (J, S, D) at the slots of images to draw, and what the head's loss has to know of them."""
        return (None, None) if targets is None else self._head.inputs(targets)

    def assemble(self, batch: Batch, read: Tensor | None, drawn: Tensor | None) -> Tensor:
        """Embeddings (B, T, D) of a batch.

        Args:
            batch: ids, and where images stand.
            read: (I, M, D), spliced in where the fusion wants them in the sequence.
            drawn: (J, S, D), inputs at the slots of drawn images.

        Raises:
            LabError: slots and visual tokens differ in number.
        """
        embeds = self.text_decoder.embed(batch.ids)  # (B, T, D)
        if read is not None and self.fusion.in_sequence:
            embeds = _splice(embeds, batch.read, read, "read", batch.sample_ids)
        if drawn is not None:
            embeds = _splice(embeds, batch.drawn, drawn, "drawn", batch.sample_ids)
        return embeds

    def states(self, batch: Batch, drawn: Tensor | None, cache: Any = None) -> Tensor:
        """Hidden states (B, T, D), given the inputs (J, S, D) at the slots of drawn images."""
        read = self.read(batch)
        embeds = self.assemble(batch, read, drawn)
        with self.reading(batch, read, batch.image):
            return self.text_decoder(embeds, self.visible(batch), self.positions(batch), cache)

    def reading(self, batch: Batch, read: Tensor | None, image: Tensor) -> AbstractContextManager[None]:
        """While open, the fusion's layers read the tokens (I, M, D); `image` (B, n) as in `Fusion.reading`.

        Also where no row has an image: gated layers act on text too, which must not depend on its neighbours.
        """
        if self.fusion.in_sequence:
            return nullcontext()
        if read is None:
            shape = (0, self.connector.num_tokens, self.fusion.dim_visual)
            read = torch.zeros(shape, device=batch.ids.device, dtype=next(self.parameters()).dtype)
        of_row = batch.image.amax(dim=1) + 1  # (B,) images of each row
        place = torch.arange(int(of_row.max()), device=read.device) < of_row.unsqueeze(1)  # (B, I_max)
        rows = read.new_zeros(*place.shape, *read.shape[1:])
        return self.fusion.reading(rows.masked_scatter(place[..., None, None], read), image)

    def visible(self, batch: Batch) -> Tensor:
        """What each position sees: (B, T) real positions where that is causal, else (B, T, T)."""
        blocks = torch.zeros_like(batch.mask)
        if self.fusion.bidirectional:
            blocks = blocks | batch.read
        if self.visual_head is not None and self.visual_head.bidirectional:
            blocks = blocks | batch.drawn
        if not blocks.any():
            return batch.mask
        number = (blocks & ~_shifted(blocks)).cumsum(dim=1)  # (B, T) of an image; marks stand between two
        same = (number.unsqueeze(2) == number.unsqueeze(1)) & blocks.unsqueeze(2) & blocks.unsqueeze(1)
        causal = torch.ones_like(same[0]).tril()
        return (causal | same) & batch.mask.unsqueeze(1)  # (B, T, T)

    def positions(self, batch: Batch) -> Tensor:
        """Positions (B, T) that count real elements only, so that padding on either side changes nothing."""
        counted = batch.mask
        if self.fusion.one_position:
            counted = counted & ~(batch.read & _shifted(batch.read))
        return positions_of(counted)

    # -- training --------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Losses:
        """Losses of a batch (right-padded)."""
        targets = self.targets(batch)
        drawn, noise = self.slot_inputs(targets)
        states = self.states(batch, drawn)
        tasks = len(batch.tasks)
        text_sum, text_count = states.new_zeros(tasks), states.new_zeros(tasks)
        row, column = batch.supervised.nonzero(as_tuple=True)
        if len(row):
            logits = self.text_decoder.logits(states[row, column - 1])  # (K, V)
            entropy = F.cross_entropy(logits.float(), batch.ids[row, column], reduction="none")  # (K,)
            text_sum = text_sum.index_add(0, batch.task[row], entropy)
            text_count = text_count.index_add(0, batch.task[row], torch.ones_like(entropy))
        image_sum, image_count = states.new_zeros(tasks), states.new_zeros(tasks)
        if targets is not None:
            at_slots, owner = self.at_slots(batch, states)
            if self._head.through_decoder:
                loss = self._decoder.loss(self._head(at_slots), batch.pixels_drawn)  # type: ignore[operator]
            else:
                loss = self._head.loss(at_slots, targets.detach(), noise)  # (J,)
            image_sum = image_sum.index_add(0, batch.task[owner], loss)
            image_count = image_count.index_add(0, batch.task[owner], torch.ones_like(loss))
        return Losses(
            text=text_sum.sum() / text_count.sum().clamp_min(1),
            image=image_sum.sum() / image_count.sum().clamp_min(1),
            text_sum=text_sum.detach(),
            text_count=text_count.detach(),
            image_sum=image_sum.detach(),
            image_count=image_count.detach(),
        )

    def at_slots(self, batch: Batch, states: Tensor) -> tuple[Tensor, Tensor]:
        """States (J, S, D) that the head reads for each drawn image, and the row of each image (J,)."""
        slots = self._head.num_slots
        row, column = batch.drawn.nonzero(as_tuple=True)  # row-major, S consecutive positions an image
        chosen = states[row, column - int(self._head.reads_before)]
        return chosen.view(-1, slots, states.shape[-1]), row[::slots]

    @property
    def _head(self) -> VisualHead:
        if self.visual_head is None:
            raise LabError("the batch has images to draw, but the system has no visual head")
        return self.visual_head

    @property
    def _decoder(self) -> ImageDecoder:
        if self.image_decoder is None:
            raise LabError("visual_head: its loss goes through the image decoder, but none was given")
        return self.image_decoder


def positions_of(mask: Tensor) -> Tensor:
    """Positions (B, T) that count True elements only."""
    return (mask.long().cumsum(dim=1) - 1).clamp_min(0)


def _as_they_are(tokens: Tensor, first: int) -> Tensor:
    """Visual tokens (B, n, D) that are inputs of the language model already."""
    return tokens


def _shifted(mask: Tensor) -> Tensor:
    """The mask (B, T), one position to the right."""
    return F.pad(mask, (1, 0))[:, :-1]


def _splice(embeds: Tensor, slots: Tensor, tokens: Tensor, what: str, sample_ids: tuple[str, ...]) -> Tensor:
    """`embeds` (B, T, D) with `tokens` (I, n, D) at the slots (B, T), in row-major order."""
    expected, given = int(slots.sum()), tokens.shape[0] * tokens.shape[1]
    if expected != given:
        raise LabError(
            f"images {what}: the batch has {expected} visual positions, the model made {given} tokens "
            f"({tokens.shape[0]} images of {tokens.shape[1]}); first sample {sample_ids[0]}"
        )
    return embeds.masked_scatter(slots.unsqueeze(-1), tokens.to(embeds.dtype))
