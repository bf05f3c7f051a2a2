"""Visual tokens take positions in the sequence, as words do.

Paper: Visual Instruction Tuning, arXiv:2304.08485, section 4.1; one block that sees itself, without
positions of its own: GIT, arXiv:2205.14100, section 3.1
"""

from __future__ import annotations

from collections.abc import Sequence as Blocks
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

__all__ = ["Sequence"]


class Sequence(nn.Module):
    """No layers and no parameters: composition puts the tokens where the image stands.

    Args:
        dim: width of the language model, D, and so of the tokens.
        num_layers: its blocks.
        num_tokens: tokens of an image, M.
        bidirectional: the positions of an image that is read see each other, not only those before them.
        one_position: all tokens of an image share one position, and the text goes on with the next; a
            language model without positions in its keys then reads the image as a set.

    Shapes: none of its own.
    """

    in_sequence = True

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_tokens: int,
        *,
        bidirectional: bool = False,
        one_position: bool = False,
    ) -> None:
        super().__init__()
        self.dim_visual = dim
        self.bidirectional = bidirectional
        self.one_position = one_position

    def attach(self, layers: Blocks[nn.Module]) -> None:
        """Leave the blocks as they are."""

    def reading(self, tokens: Tensor, image: Tensor) -> AbstractContextManager[None]:
        """Do nothing: the language model has read the tokens (B, I, M, D) from its sequence."""
        return nullcontext()
