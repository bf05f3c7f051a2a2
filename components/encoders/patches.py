"""No encoder: a linear embedding of each patch plus its position; the language model does the seeing.

Paper: Fuyu-8B, the decoder-only architecture without an image encoder (Adept, 2023); EVE, arXiv:2406.11832
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Patches"]


class Patches(nn.Module):
    """Each patch of pixels becomes one token by a linear map, in raster order.

    Args:
        image_size: side of the image in pixels.
        patch_size: side of a patch in pixels; tokens are (image_size / patch_size) squared.
        dim: width of a token, D_v.

    Shapes: pixels (B, 3, H, W) in [0, 1] -> tokens (B, N, D_v).
    """

    def __init__(self, image_size: int, *, patch_size: int = 8, dim: int = 128) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
        rows = image_size // patch_size
        self.dim, self.image_size = dim, image_size
        self.num_tokens, self.grid = rows**2, (rows, rows)
        self.embed = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.positions = nn.Parameter(torch.randn(1, self.num_tokens, dim) * 0.02)
        self.norm = nn.LayerNorm(dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) in [0, 1] to tokens (B, N, D_v)."""
        patches = self.embed(pixels * 2 - 1)  # (B, 3, H, W) -> (B, D_v, rows, rows)
        return self.norm(patches.flatten(2).transpose(1, 2) + self.positions)  # -> (B, N, D_v)
