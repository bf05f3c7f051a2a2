"""Noise of a batch, each row from a seed of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["generators", "normal"]


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Make one generator a row; on the CPU, so that a seed means the same noise on every device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def normal(rows: Sequence[torch.Generator], shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Draw standard normal noise (B, *shape), of the dtype and on the device of `like`."""
    return torch.stack([torch.randn(shape, generator=row) for row in rows]).to(like)
