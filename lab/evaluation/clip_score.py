"""CLIP score: do image and text say the same, by a model that was trained to tell.

Paper: CLIPScore, arXiv:2104.08718, section 3, as the literature on image generation uses it: 100 times the
cosine, negative ones as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lab.evaluation.clip_folder import ClipFolder
from lab.models.contrastive import ContrastiveModel
from lab.samples.regions import RegionCollate


def clip_score(clip: ClipFolder, pixels: Tensor, texts: Sequence[str], batch_size: int = 50) -> np.ndarray:
    """(B,), 0 to 100: images (B, 3, H, W) in [0, 1] against the text that each was drawn from."""
    seen = torch.cat([clip.images(chunk) for chunk in pixels.split(batch_size)])
    return (100 * (seen * clip.texts(texts)).sum(dim=-1).clamp_min(0)).numpy()


@torch.no_grad()
def region_score(
    model: ContrastiveModel, collate: RegionCollate, pixels: Tensor, rows: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Images against the phrases of the scenes that they should show, by the lab's contrastive model.

    The encoder stage trains cells against phrases ("top-left red 3"), its default gives whole captions no
    weight; so an image's score is the mean over the cells that should hold a digit.

    Args:
        model: in eval mode.
        collate: of the split that the scenes are of.
        pixels: (B, 3, H, W) in [0, 1].
        rows: the scene of each image.

    Returns:
        score (B,), 0 to 100; and agreement (B,), the share of those cells whose own phrase comes first among
        all phrases that the built-in world has for the cells of these scenes.
    """
    batch = replace(collate(list(rows)), pixels=pixels)
    tokens = torch.cat([model.encoder(chunk) for chunk in pixels.split(250)])
    side = round(batch.phrase_of.shape[1] ** 0.5)
    regions = F.normalize(model.region_projection(model.regions(tokens, side)), dim=-1)  # (B, C, dim)
    cosines = regions @ model.embed_text(batch.phrases).T  # (B, C, U)
    own = cosines.gather(2, batch.phrase_of.unsqueeze(2)).squeeze(2).clamp_min(0)  # (B, C)
    first = cosines.argmax(dim=2) == batch.phrase_of
    number = batch.occupied.sum(dim=1)
    score = 100 * (own * batch.occupied).sum(dim=1) / number
    return score.numpy(), ((first & batch.occupied).sum(dim=1) / number).numpy()
