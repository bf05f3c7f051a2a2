"""One model that reads and draws: encoder, connector, text decoder and visual head around one sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.contracts import Connector, Encoder, TextDecoder, VisualHead
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
    """Encoder, connector, text decoder and visual head; the only place where their widths meet.

    Images that are read enter through the connector; images that are drawn are the encoder's own tokens,
    predicted one after the other by the visual head and fed back by it. The state before an element predicts
    it.

    Args:
        encoder, connector, text_decoder, visual_head: components that keep the contracts of their roles.
        own_feedback: in training, share of drawn images whose fed-back tokens are the model's own predictions
            from a first pass without gradient (scheduled sampling in two passes, arXiv:1906.07651).
    """

    encoder: Encoder
    connector: Connector
    text_decoder: TextDecoder
    visual_head: VisualHead

    def __init__(
        self,
        encoder: Encoder,
        connector: Connector,
        text_decoder: TextDecoder,
        visual_head: VisualHead,
        own_feedback: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder, self.connector = encoder, connector
        self.text_decoder, self.visual_head = text_decoder, visual_head
        self.own_feedback = own_feedback

    # -- sequence --------------------------------------------------------------------------------------------

    def assemble(self, batch: Batch, drawn: Tensor | None) -> Tensor:
        """Embeddings (B, T, D) of a batch; `drawn` (J, N, D_v): visual tokens fed back, None if J is 0.

        Raises:
            LabError: slots and visual tokens differ in number.
        """
        embeds = self.text_decoder.embed(batch.ids)  # (B, T, D)
        if len(batch.pixels_read):
            tokens = self.connector(self.encoder(batch.pixels_read))  # (I, M, D)
            embeds = _splice(embeds, batch.read, tokens, "read", batch.sample_ids)
        if drawn is not None:
            embeds = _splice(embeds, batch.drawn, self.visual_head.embed(drawn), "drawn", batch.sample_ids)
        return embeds

    def targets(self, batch: Batch) -> Tensor | None:
        """Visual tokens of the images to draw, (J, N, D_v), detached; None if there are none."""
        if not len(batch.pixels_drawn):
            return None
        with torch.no_grad():
            return self.encoder(batch.pixels_drawn)

    def states(self, batch: Batch, drawn: Tensor | None) -> Tensor:
        """Hidden states (B, T, D)."""
        return self.text_decoder(self.assemble(batch, drawn), batch.mask, positions_of(batch.mask))

    # -- training --------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Losses:
        """Losses of a batch (right-padded)."""
        targets = self.targets(batch)
        fed = targets
        if targets is not None and self.training and self.own_feedback:
            fed = self._mix_own(batch, targets)
        states = self.states(batch, fed)
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
            before, owner = self._before_drawn(batch, states, targets.shape[1])
            loss = self.visual_head.loss(before, targets)  # (J,)
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

    def _before_drawn(self, batch: Batch, states: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """States before the drawn tokens (J, N, D), and the row of each drawn image (J,)."""
        row, column = batch.drawn.nonzero(as_tuple=True)  # row-major, N consecutive positions an image
        before = states[row, column - 1].view(-1, tokens, states.shape[-1])  # (J, N, D)
        return before, row[::tokens]

    @torch.no_grad()
    def _mix_own(self, batch: Batch, targets: Tensor) -> Tensor:
        """Targets (J, N, D_v), in some images replaced by the predictions of a first pass."""
        states = self.states(batch, targets)
        before, _ = self._before_drawn(batch, states, targets.shape[1])
        own = torch.rand(len(targets), 1, 1, device=targets.device) < self.own_feedback
        return torch.where(own, self.visual_head(before), targets)


def positions_of(mask: Tensor) -> Tensor:
    """Positions (B, T) that count real elements only, so that padding on either side changes nothing."""
    return (mask.long().cumsum(dim=1) - 1).clamp_min(0)


def _splice(embeds: Tensor, slots: Tensor, tokens: Tensor, what: str, sample_ids: tuple[str, ...]) -> Tensor:
    """`embeds` (B, T, D) with `tokens` (I, n, D) at the slots (B, T), in row-major order."""
    expected, given = int(slots.sum()), tokens.shape[0] * tokens.shape[1]
    if expected != given:
        raise LabError(
            f"images {what}: the batch has {expected} visual positions, the model made {given} tokens "
            f"({tokens.shape[0]} images of {tokens.shape[1]}); first sample {sample_ids[0]}"
        )
    return embeds.masked_scatter(slots.unsqueeze(-1), tokens.to(embeds.dtype))
