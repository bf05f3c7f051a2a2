"""Free-running generation with a key-value cache: answers word by word, images token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from lab.models.unified import UnifiedModel, positions_of
from lab.samples.batch import Batch


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
    decoder = model.text_decoder
    cache, mask = decoder.new_cache(), batch.mask
    states = decoder(model.assemble(batch, model.targets(batch)), mask, positions_of(mask), cache)
    position = mask.sum(dim=1, keepdim=True)  # (B, 1)
    answers: list[list[int]] = [[] for _ in range(len(batch))]
    running = torch.ones(len(batch), dtype=torch.bool, device=mask.device)
    for _ in range(max_new_tokens):
        chosen = decoder.logits(states[:, -1]).argmax(dim=-1)  # (B,)
        running &= chosen != end
        if not running.any():
            break
        for row, (token, alive) in enumerate(zip(chosen.tolist(), running.tolist(), strict=True)):
            if alive:
                answers[row].append(token)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        states = decoder(decoder.embed(chosen.unsqueeze(1)), mask, position, cache)
        position = position + 1
    return answers


@torch.no_grad()
def generate_image_tokens(model: UnifiedModel, batch: Batch) -> Tensor:
    """Visual tokens (B, N, D_v) of one image a row.

    Args:
        model: in eval mode.
        batch: left-padded prompts that end with `<image_start>`.
    """
    decoder, head = model.text_decoder, model.visual_head
    cache, mask = decoder.new_cache(), batch.mask
    states = decoder(model.assemble(batch, model.targets(batch)), mask, positions_of(mask), cache)
    position = mask.sum(dim=1, keepdim=True)  # (B, 1)
    tokens = []
    for index in range(head.num_tokens):
        tokens.append(head(states[:, -1:]))  # (B, 1, D_v)
        if index + 1 < head.num_tokens:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            states = decoder(head.embed(tokens[-1], first=index), mask, position, cache)
            position = position + 1
    return torch.cat(tokens, dim=1)
