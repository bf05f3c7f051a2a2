"""What a pretrained encoder's tokens say."""

from __future__ import annotations

import torch

from lab.models.contrastive import ContrastiveModel
from lab.samples.regions import RegionCollate


@torch.no_grad()
def region_accuracy(model: ContrastiveModel, held_out: RegionCollate, count: int = 1000) -> dict[str, float]:
    """Zero-shot reading of held-out scenes by the contrastive model itself.

    Returns:
        `encoder/region`: share of occupied cells whose phrase (colour, digit, place) ranks first among all
        phrases of 1,000 scenes; `encoder/reconstruction_mse`: of the linear pixel readout.
    """
    batch = held_out(range(min(count, len(held_out.split.scenes))))
    tokens = model.encoder(batch.pixels)
    right = model.region_logits(tokens, batch).argmax(dim=-1) == batch.phrase_of  # (B, C)
    return {
        "encoder/region": float(right[batch.occupied].float().mean()),
        "encoder/reconstruction_mse": float(model.reconstruction_loss(tokens, batch)),
    }
