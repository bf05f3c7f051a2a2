"""Real handwritten digits, split by instance before anything is composed of them.

The 1,797 images are scikit-learn's `load_digits` (the test part of the UCI "Optical Recognition of
Handwritten Digits" set). The set does not say who wrote which digit, so the split is by image: stratified by
class, disjoint, seeded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
PATCH = 14  # px, side of a rendered digit; a cell of 16 px leaves 2 px for the jitter of its place


@dataclass(frozen=True)
class DigitPatches:
    """Every digit image of one split, upsampled, in several slightly distorted variants.

    Attributes:
        patches: (K, V, PATCH, PATCH) uint8, K instances in V variants; variant 0 is undistorted.
        labels: (K,) int64, 0-9.
        instances: (K,) int64, row in scikit-learn's `load_digits`.
    """

    patches: np.ndarray
    labels: np.ndarray
    instances: np.ndarray


def split_instances(
    seed: int, shares: tuple[float, float, float] = (0.7, 0.15, 0.15)
) -> dict[Split, np.ndarray]:
    """Rows of `load_digits` of each split: disjoint, every class in the same proportions."""
    from sklearn.datasets import load_digits

    labels = load_digits().target
    generator = np.random.default_rng(seed)
    parts: dict[Split, list[np.ndarray]] = {split: [] for split in SPLITS}
    for digit in range(10):
        rows = generator.permutation(np.flatnonzero(labels == digit))
        first, second = np.cumsum([round(share * len(rows)) for share in shares[:2]])
        for split, part in zip(SPLITS, (rows[:first], rows[first:second], rows[second:]), strict=True):
            parts[split].append(part)
    return {split: np.sort(np.concatenate(part)) for split, part in parts.items()}


def load_patches(instances: np.ndarray, variants: int, seed: int) -> DigitPatches:
    """Upsamples the given digit images and distorts each a little (rotation, shear, scale).

    Args:
        instances: rows of `load_digits`.
        variants: V, number of variants of each image, the undistorted one included.
        seed: of the distortions.
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    images = torch.from_numpy(source.images[instances]).float().div(16).unsqueeze(1)  # (K, 1, 8, 8) in [0, 1]
    generator = torch.Generator().manual_seed(seed)
    rendered = []
    for variant in range(variants):
        strength = 0.0 if variant == 0 else 1.0
        draw = strength * (2 * torch.rand(len(images), 3, generator=generator) - 1)  # (K, 3) in [-1, 1]
        angle, shear, scale = 0.15 * draw[:, 0], 0.1 * draw[:, 1], 1 + 0.08 * draw[:, 2]
        cos, sin = angle.cos() / scale, angle.sin() / scale
        zero = torch.zeros_like(cos)
        matrix = torch.stack([cos, shear - sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
        grid = affine_grid(matrix, [len(images), 1, PATCH, PATCH], align_corners=False)
        rendered.append(grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    patches = torch.cat(rendered, dim=1).mul(255).round().to(torch.uint8).numpy()  # (K, V, PATCH, PATCH)
    return DigitPatches(patches, source.target[instances].astype(np.int64), instances.astype(np.int64))
