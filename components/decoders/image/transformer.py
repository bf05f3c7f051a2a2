"""Deterministic image decoder: transformer blocks, then transposed convolutions from tokens to pixels.

Paper: none
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Transformer"]


class Transformer(nn.Module):
    """One image per set of visual tokens: the mean of what they leave open, where a diffusion model draws.

    Args:
        dim_in: width of the visual tokens, D_v.
        num_tokens: visual tokens, N: a square grid in raster order.
        image_size: side of the image in pixels.
        dim: width of the transformer blocks and of the coarsest feature map; it halves at each doubling.
        depth: transformer blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of a block's MLP, relative to `dim`.
        l1: weight of the absolute error beside the squared one; it sharpens strokes.

    Shapes: tokens (B, N, D_v) -> pixels (B, 3, H, W).
    """

    def __init__(
        self,
        dim_in: int,
        num_tokens: int,
        image_size: int,
        *,
        dim: int = 128,
        depth: int = 1,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        l1: float = 0.1,
    ) -> None:
        super().__init__()
        self.rows = isqrt(num_tokens)
        if self.rows**2 != num_tokens:
            raise ValueError(f"needs a square grid of visual tokens, not {num_tokens}")
        doublings = (image_size // self.rows).bit_length() - 1
        if doublings < 1 or self.rows << doublings != image_size:
            raise ValueError(
                f"image_size {image_size} must be {self.rows} rows of tokens, doubled one or more times"
            )
        if dim % num_heads or dim % 2 ** (doublings - 1):
            raise ValueError(
                f"dim {dim} must be a multiple of num_heads {num_heads} and of {2 ** (doublings - 1)}"
            )
        self.l1 = l1
        self.embed = nn.Sequential(nn.LayerNorm(dim_in), nn.Linear(dim_in, dim))
        self.positions = nn.Parameter(torch.randn(1, num_tokens, dim) * 0.02)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    dim, num_heads, int(dim * mlp_ratio), 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(depth)
            )
        )
        side = 2**doublings  # of a token's own patch of pixels
        # the linear path draws a blurred image within tens of steps; alone, the convolutions first sit on the
        # mean image for hundreds, and without normalisation they do not leave it
        self.blur = nn.Sequential(nn.Conv2d(dim, 3 * side**2, 1), nn.PixelShuffle(side))
        self.detail = _upsampler(dim, doublings)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map visual tokens (B, N, D_v) to pixels (B, 3, H, W) in [0, 1]."""
        hidden = self.blocks(self.embed(tokens) + self.positions)  # (B, N, D_v) -> (B, N, dim)
        grid = hidden.transpose(1, 2).unflatten(2, (self.rows, self.rows))  # -> (B, dim, rows, rows)
        return (self.blur(grid) + self.detail(grid)).sigmoid()  # -> (B, 3, H, W)

    def loss(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Squared error plus `l1` times the absolute error, per sample (B,)."""
        drawn = self(tokens)
        squared = functional.mse_loss(drawn, pixels, reduction="none")
        absolute = functional.l1_loss(drawn, pixels, reduction="none")
        return (squared + self.l1 * absolute).mean(dim=(1, 2, 3))

    def sample(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map visual tokens (B, N, D_v) to pixels (B, 3, H, W) in [0, 1]; nothing is drawn at random."""
        return self(tokens)


def _upsampler(dim: int, doublings: int) -> nn.Module:
    """From (B, dim, rows, rows) to (B, 3, H, W): the width halves where the side doubles."""
    layers: list[nn.Module] = []
    for step in range(doublings - 1):
        width, half = dim >> step, dim >> (step + 1)
        if step == 0:  # a token is a vector, not a map yet: no neighbours to mix
            layers += [nn.Conv2d(width, half * 4, 1), nn.PixelShuffle(2)]
        else:
            layers += [nn.ConvTranspose2d(width, half, 4, stride=2, padding=1)]
        layers += [nn.GroupNorm(1, half), nn.GELU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(dim >> (doublings - 1), 3, 4, stride=2, padding=1))
