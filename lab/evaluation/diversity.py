"""How different the images are that are drawn from one prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lab.scenes.judge import Judge
from lab.scenes.world import EMPTY, PATCH, Scenes, WorldSplit


def spread(features: np.ndarray) -> np.ndarray:
    """(P,): mean Euclidean distance between any two of the S images of each prompt, features (P, S, F)."""
    gaps = np.linalg.norm(features[:, :, None] - features[:, None, :], axis=-1)  # (P, S, S)
    images = features.shape[1]
    return np.asarray(gaps.sum(axis=(1, 2)) / (images * (images - 1)))


@torch.no_grad()
def cell_features(judge: Judge, images: Sequence[Tensor]) -> np.ndarray:
    """The judge's features of S images a prompt, all cells side by side: (P, S, C * F)."""
    return torch.stack([judge(pixels)[2].flatten(1) for pixels in images], dim=1).double().numpy()


def restyled(split: WorldSplit, rows: np.ndarray, seed: int) -> Scenes:
    """The same scenes anew: equal digits, colours and places, in other handwriting, position and brightness.

    What a prompt says stays; all that it leaves open is drawn as `compose` draws it.
    """
    rng = np.random.default_rng([seed, 7])
    scenes, digits = split.scenes.take(rows), split.digits
    by_digit = [np.flatnonzero(digits.labels == value) for value in range(10)]
    for row, cell in zip(*np.nonzero(scenes.digit != EMPTY), strict=True):
        instances = by_digit[int(scenes.digit[row, cell])]
        scenes.instance[row, cell] = instances[int(rng.integers(len(instances)))]
    shape = scenes.digit.shape
    scenes.variant[:] = rng.integers(0, digits.patches.shape[1], shape)
    scenes.offset[:] = rng.integers(0, split.world.cell - PATCH + 1, (*shape, 2))
    scenes.brightness[:] = rng.uniform(0.75, 1.0, shape)
    return scenes
