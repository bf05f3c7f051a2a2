"""Convolutions around an average pool, which keep what is next to what: Honeybee's C-Abstractor.

Paper: Honeybee, arXiv:2312.06742, section on locality-enhanced projectors
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from components.layers.grid import side_of

__all__ = ["Abstractor"]


class Abstractor(nn.Module):
    """A `grid` x `grid` square of tokens in raster order, each mostly from its own region of the image.

    A learned position is added to each encoder token; a stage of RegNet blocks with squeeze-and-excitation,
    an adaptive average pool, another stage and a two-layer MLP follow.

    Args:
        dim_in: width of the encoder's tokens, D_v.
        dim_out: width of the language model, D.
        num_tokens_in: encoder tokens, N, which make a square grid.
        grid: rows and columns of what comes out; M = grid^2. Honeybee has 12 and 16.
        dim: channels of the convolutions; Honeybee has 1024.
        depth: blocks of each of the two stages.

    Shapes: tokens (B, N, D_v) -> (B, M, D).

    Raises:
        ValueError: the tokens make no square grid, or one smaller than `grid`; no blocks.
    """

    def __init__(
        self, dim_in: int, dim_out: int, num_tokens_in: int, *, grid: int = 4, dim: int = 128, depth: int = 3
    ) -> None:
        from timm.layers import LayerNorm2d
        from timm.models.regnet import RegStage

        super().__init__()
        self.side = side_of(num_tokens_in)
        if not 1 <= grid <= self.side:
            raise ValueError(f"grid {grid} is not between 1 and the side {self.side} of the encoder's grid")
        if depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth}; 'pool' has no convolutions")
        self.num_tokens = grid**2
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_tokens_in, dim_in), std=0.02))
        stage = partial(
            RegStage, depth, out_chs=dim, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d
        )
        self.layers = nn.Sequential(stage(in_chs=dim_in), nn.AdaptiveAvgPool2d(grid), stage(in_chs=dim))
        self.project = nn.Sequential(nn.Linear(dim, dim_out), nn.SiLU(), nn.Linear(dim_out, dim_out))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D_v) to (B, M, D)."""
        image = (tokens + self.positions).transpose(1, 2).unflatten(2, (self.side, self.side))
        image = self.layers(image)  # (B, D_v, side, side) -> (B, dim, grid, grid)
        return self.project(image.flatten(2).transpose(1, 2))  # (B, M, dim) -> (B, M, D)
