"""Pixels and tokens at another resolution."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["resize_pixels", "resize_tokens"]


def resize_pixels(pixels: Tensor, size: int) -> Tensor:
    """Resize pixels (B, 3, H, W) in [0, 1] to (B, 3, size, size), bicubic with antialiasing."""
    if pixels.shape[-1] == size:
        return pixels
    return functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


def resize_tokens(tokens: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Resample tokens (B, N, D_v) in raster order from one grid to another, bilinear: (B, M, D_v).

    Half the rows and columns is the mean of each 2 x 2 tokens; a coarser grid than that skips tokens.
    """
    if grid == to:
        return tokens
    cells = tokens.transpose(1, 2).unflatten(2, grid)  # (B, N, D_v) -> (B, D_v, rows, columns)
    cells = functional.interpolate(cells, to, mode="bilinear", align_corners=False)
    return cells.flatten(2).transpose(1, 2)  # -> (B, M, D_v)
