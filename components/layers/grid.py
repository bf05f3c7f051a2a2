"""Tokens in raster order as a square grid."""

from __future__ import annotations

from math import isqrt

from torch import Tensor

__all__ = ["side_of", "space_to_depth"]


def side_of(num_tokens: int) -> int:
    """Give the side of the square grid of this many tokens.

    Raises:
        ValueError: they make no square.
    """
    side = isqrt(num_tokens)
    if side * side != num_tokens:
        raise ValueError(f"{num_tokens} tokens make no square grid")
    return side


def space_to_depth(tokens: Tensor, factor: int) -> Tensor:
    """Concatenate each factor x factor window of a square grid along channels: nothing is lost.

    Windows and the tokens in one are in raster order, and a token's channels stay together, as in
    `Idefics3Connector` and `InternVLModel` of transformers.

    Shapes: tokens (B, N, C) -> (B, N / factor^2, factor^2 * C).
    """
    side = side_of(tokens.shape[1]) // factor
    windows = tokens.unflatten(1, (side, factor, side, factor))  # (B, h, factor, w, factor, C)
    return windows.transpose(2, 3).flatten(3).flatten(1, 2)
