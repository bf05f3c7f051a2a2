"""A learned position for each image token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Places"]


class Places(nn.Module):
    """Normalises image tokens and adds to each a learned vector of the same size.

    Shapes: tokens (B, n, dim), number `first` and on of each image -> (B, n, dim).
    """

    def __init__(self, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.positions = nn.Parameter(torch.randn(1, num_tokens, dim))

    def forward(self, tokens: Tensor, first: int = 0) -> Tensor:
        return self.norm(tokens) + self.positions[:, first : first + tokens.shape[1]]
