"""Free-running generation with a key-value cache: answers word by word, images as their visual head draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lab.errors import LabError
from lab.models.unified import UnifiedModel
from lab.samples.batch import Batch


class Continuation:
    """A left-padded batch of prompts that the language model goes on from.

    Args:
        model: in eval mode.
        batch: prompts; the last element of each is the one that what follows is predicted from.

    Attributes:
        state: (B, 1, D), of the last element of the prompts.
    """

    def __init__(self, model: UnifiedModel, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.cache, self.mask = model.text_decoder.new_cache(), batch.mask
        self.read = model.read(batch)
        positions = model.positions(batch)
        drawn, _ = model.slot_inputs(model.targets(batch))
        embeds = model.assemble(batch, self.read, drawn)
        with model.reading(batch.places.images, self.read, batch.image):
            states = model.text_decoder(embeds, model.visible(batch), positions, self.cache)
        self.state = states[:, -1:]
        self.position = positions[:, -1:] + 1  # (B, 1)

    def run(self, embeds: Tensor, keep: bool = True, together: bool = False) -> Tensor:
        """States (B, n, D) of further inputs (B, n, D).

        Args:
            embeds: what follows all that was kept so far.
            keep: whether the inputs stay; otherwise they leave no trace.
            together: whether they see each other whatever their order.
        """
        rows, new, _ = embeds.shape
        past = self.mask.shape[1]
        mask = torch.cat([self.mask, self.mask.new_ones(rows, new)], dim=1)  # (B, P + n)
        seen = mask.unsqueeze(1).expand(-1, new, -1) if together else mask
        positions = self.position + torch.arange(new, device=mask.device)
        image = self.batch.image[:, -1:].expand(-1, new)
        with self.model.reading(self.batch.places.images, self.read, image):
            states = self.model.text_decoder(embeds, seen, positions, self.cache)
        if keep:
            self.mask, self.position = mask, self.position + new
        else:
            self.cache.crop(past)
        return states


@torch.no_grad()
def generate_text(model: UnifiedModel, batch: Batch, end: int, max_new_tokens: int = 48) -> list[list[int]]:
    """Greedy answers to a left-padded batch of prompts.

    Args:
        model: in eval mode.
        batch: prompts, padded on the left, the last element of each the one that the answer follows.
        end: id of the token that closes an answer.
        max_new_tokens: answers are cut there.

    Returns:
        For each row the ids of its answer, the end token left out.
    """
    prompt = Continuation(model, batch)
    state, decoder = prompt.state, model.text_decoder
    running = torch.ones(len(batch), dtype=torch.bool, device=state.device)
    every = LOOK if state.is_cuda else 1
    said: list[Tensor] = []  # (B,) each, on the device
    for count in range(1, max_new_tokens + 1):
        said.append(decoder.logits(state[:, -1]).argmax(dim=-1))
        running &= said[-1] != end
        if count == max_new_tokens or (count % every == 0 and not running.any()):
            break
        state = prompt.run(decoder.embed(said[-1].unsqueeze(1)))
    answers = torch.stack(said, dim=1).tolist() if said else [[]] * len(batch)
    return [answer[: answer.index(end)] if end in answer else answer for answer in answers]


LOOK = 8  # tokens after which a GPU is asked whether all rows have ended


@torch.no_grad()
def generate_image_tokens(model: UnifiedModel, batch: Batch, seeds: Sequence[int]) -> Tensor:
    """Visual tokens (B, N, D_v) of one image a row.

    Args:
        model: in eval mode, with a visual head.
        batch: left-padded prompts that end with `<image_start>`.
        seeds: of the noise of each row, where the head uses any.
    """
    head = model.visual_head
    if head is None:
        raise LabError("the system has no visual head: it answers, but draws nothing")
    prompt = Continuation(model, batch)
    return head.draw(
        prompt.state, lambda embeds, keep: prompt.run(embeds, keep, together=head.bidirectional), seeds
    )
