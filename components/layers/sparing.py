"""A layer that maps each position by itself, run only at the positions whose outputs matter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

__all__ = ["only_at"]


@contextmanager
def only_at(layer: nn.Module, places: Tensor, rows: int, length: int) -> Iterator[None]:
    """While open, the layer computes some positions and gives zeros at the others.

    Args:
        layer: (B, T, D) -> (B, T, D'), each position by itself.
        places: (K,) of its B * T positions, counted over rows.
        rows, length: B and T.
    """

    def chosen(layer: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0].flatten(0, 1)[places].unsqueeze(0),)  # (B, T, D) -> (1, K, D)

    def spread(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        whole = output.new_zeros(rows * length, output.shape[-1])
        return whole.index_copy(0, places, output[0]).view(rows, length, -1)  # (1, K, D') -> (B, T, D')

    handles = [layer.register_forward_pre_hook(chosen), layer.register_forward_hook(spread)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
