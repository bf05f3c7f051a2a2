"""Blocks of the Q-Former: BERT's, with queries that read an image and text that does not."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from components.layers.attention import Attention
from components.layers.masked_attention import MaskedAttention

__all__ = ["EPSILON", "QFormerBlock", "TextMlp"]

EPSILON = 1e-12  # of BERT's layer norms


class QFormerBlock(nn.Module):
    """BERT's block, post-norm; with `dim_image` its queries attend to the image before their MLP.

    Queries and text are one sequence, queries first. They share the self-attention; the text's MLP comes
    from outside, as plain use of a Q-Former has no text.

    Args:
        dim: width of queries and text.
        dim_image: width of the image's tokens, None for a block that does not attend to them.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP, relative to `dim`.
    """

    def __init__(self, dim: int, dim_image: int | None, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attend = MaskedAttention(dim, dim, num_heads)
        self.norm_attend = nn.LayerNorm(dim, EPSILON)
        self.cross: Attention | None = None
        if dim_image is not None:
            self.cross = Attention(dim, dim_image, num_heads)
            self.norm_cross = nn.LayerNorm(dim, EPSILON)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.norm_mlp = nn.LayerNorm(dim, EPSILON)

    def forward(
        self,
        x: Tensor,
        image: Tensor | None,
        num_queries: int,
        mask: Tensor | None = None,
        text_mlp: nn.Module | None = None,
    ) -> Tensor:
        """Run the block.

        Args:
            x: queries and text, (B, Q + L, dim).
            image: tokens (B, N, dim_image); None where there are no queries.
            num_queries: Q.
            mask: what sees what, bool that broadcasts to (B, Q + L, Q + L); None for everything.
            text_mlp: what follows self-attention in the text's branch; None to leave the text behind.

        Returns:
            (B, Q + L, dim), or the queries alone, (B, Q, dim).
        """
        x = self.norm_attend(x + self.attend(x, x, mask))
        text = x[:, num_queries:]
        x = x[:, :num_queries]
        if self.cross is not None and image is not None:
            x = self.norm_cross(x + self.cross(x, image))
        x = self.norm_mlp(x + self.mlp(x))
        return x if text_mlp is None else torch.cat([x, text_mlp(text)], dim=1)


class TextMlp(nn.Module):
    """The MLP of a block's text branch, at first a copy of the queries' own.

    Shapes: text after self-attention (B, L, dim) -> (B, L, dim).
    """

    def __init__(self, block: QFormerBlock) -> None:
        super().__init__()
        self.mlp, self.norm = deepcopy(block.mlp), deepcopy(block.norm_mlp)

    def forward(self, text: Tensor) -> Tensor:
        return self.norm(text + self.mlp(text))
