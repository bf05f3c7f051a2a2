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
from lab.models.rows import Rule, laid_out, positions_of
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
            embeds = _splice(embeds, batch.places.read, read, "read", batch.sample_ids)
        if drawn is not None:
            embeds = _splice(embeds, batch.places.drawn, drawn, "drawn", batch.sample_ids)
        return embeds

    def states(self, batch: Batch, drawn: Tensor | None, cache: Any = None) -> Tensor:
        """Hidden states (B, T, D), given the inputs (J, S, D) at the slots of drawn images."""
        read = self.read(batch)
        embeds = self.assemble(batch, read, drawn)
        if batch.layout is not None:
            rule = Rule(self._block(batch), self.positions(batch), in_order=not self.fusion.one_position)
            return laid_out(
                self.text_decoder,
                embeds,
                batch.layout,
                rule,
                lambda rows: self.reading(rows.images, read, rows.image),
            )
        with self.reading(batch.places.images, read, batch.image):
            return self.text_decoder(embeds, self.visible(batch), self.positions(batch), cache)

    def reading(self, images: Tensor, read: Tensor | None, image: Tensor) -> AbstractContextManager[None]:
        """While open, the fusion's layers read the tokens (I, M, D); `image` (B, n) as in `Fusion.reading`.

        Also where no row has an image: gated layers act on text too, which must not depend on its neighbours.

        Args:
            images: (B, I_max), which of the I images are those of each row.
            read: (I, M, D), None if there are none.
            image: which of the row's images each position of a run reads.
        """
        if self.fusion.in_sequence:
            return nullcontext()
        if read is None:
            shape = (*images.shape[:1], 0, self.connector.num_tokens, self.fusion.dim_visual)
            rows = torch.zeros(shape, device=image.device, dtype=next(self.parameters()).dtype)
        else:
            rows = read[images]  # (B, I_max, M, D)
        return self.fusion.reading(rows, image)

    def visible(self, batch: Batch) -> Tensor:
        """What each position sees: (B, T) real positions where that is causal, else (B, T, T)."""
        block = self._block(batch)
        if block is None:
            return batch.mask
        same = (block.unsqueeze(2) == block.unsqueeze(1)) & (block > 0).unsqueeze(2)
        return (torch.ones_like(same[0]).tril() | same) & batch.mask.unsqueeze(1)  # (B, T, T)

    def _block(self, batch: Batch) -> Tensor | None:
        """The number (B, T), from 1 on, of the image whose positions see each other; 0 for none of them."""
        blocks = []
        if self.fusion.bidirectional and len(batch.places.read):
            blocks.append(batch.read)
        if self.visual_head is not None and self.visual_head.bidirectional and len(batch.places.drawn):
            blocks.append(batch.drawn)
        if not blocks:
            return None
        inside = blocks[0] | blocks[-1]
        return (inside & ~_shifted(inside)).cumsum(dim=1) * inside  # marks stand between two images

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
        tasks, places = len(batch.tasks), batch.places
        nothing = torch.zeros(tasks, dtype=torch.float32, device=states.device)  # whatever weights are in
        text_sum, text_count, text = nothing, nothing, nothing.sum()
        if len(places.supervised):
            logits = self.text_decoder.logits(states.flatten(0, 1)[places.supervised - 1])  # (K, V)
            wanted = batch.ids.flatten()[places.supervised]
            entropy = F.cross_entropy(logits.float(), wanted, reduction="none")  # (K,)
            task = batch.task[places.supervised // batch.ids.shape[1]]
            text_sum = text_sum.index_add(0, task, entropy)
            text_count = text_count.index_add(0, task, torch.ones_like(entropy))
            text = text_sum.sum() / text_count.sum()
            if batch.weights is not None:
                text = (entropy * batch.weights).sum() / batch.weights.sum()
        image_sum, image_count = nothing, nothing
        if targets is not None:
            at_slots, owner = self.at_slots(batch, states)
            if self._head.through_decoder:
                loss = self._decoder.loss(self._head(at_slots), batch.pixels_drawn)  # type: ignore[operator]
            else:
                loss = self._head.loss(at_slots, targets.detach(), noise)  # (J,)
            loss = loss.float()
            image_sum = image_sum.index_add(0, batch.task[owner], loss)
            image_count = image_count.index_add(0, batch.task[owner], torch.ones_like(loss))
        return Losses(
            text=text,
            image=image_sum.sum() / image_count.sum().clamp_min(1),
            text_sum=text_sum.detach(),
            text_count=text_count.detach(),
            image_sum=image_sum.detach(),
            image_count=image_count.detach(),
        )

    def at_slots(self, batch: Batch, states: Tensor) -> tuple[Tensor, Tensor]:
        """States (J, S, D) that the head reads for each drawn image, and the row of each image (J,)."""
        chosen = states.flatten(0, 1)[batch.places.drawn - int(self._head.reads_before)]
        return chosen.view(-1, self._head.num_slots, states.shape[-1]), batch.places.owner

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


def _as_they_are(tokens: Tensor, first: int) -> Tensor:
    """Visual tokens (B, n, D) that are inputs of the language model already."""
    return tokens


def _shifted(mask: Tensor) -> Tensor:
    """The mask (B, T), one position to the right."""
    return F.pad(mask, (1, 0))[:, :-1]


def _splice(embeds: Tensor, places: Tensor, tokens: Tensor, what: str, sample_ids: tuple[str, ...]) -> Tensor:
    """`embeds` (B, T, D) with `tokens` (I, n, D) at these places (I * n,)."""
    expected, given = len(places), tokens.shape[0] * tokens.shape[1]
    if expected != given:
        raise LabError(
            f"images {what}: the batch has {expected} visual positions, the model made {given} tokens "
            f"({tokens.shape[0]} images of {tokens.shape[1]}); first sample {sample_ids[0]}"
        )
    flat = embeds.flatten(0, 1).index_copy(0, places, tokens.flatten(0, 1).to(embeds.dtype))
    return flat.view_as(embeds)
