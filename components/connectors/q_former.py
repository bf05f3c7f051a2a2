"""Learned queries that read the image by cross-attention in BERT blocks: the connector of BLIP-2.

Paper: BLIP-2, arXiv:2301.12597, section 3.1
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.layers.attention import Attention

__all__ = ["QFormer"]

EPSILON = 1e-12  # of BERT's layer norms


class QFormer(nn.Module):
    """A fixed number of tokens, whatever the encoder gives.

    The query branch of BLIP-2's Q-Former with its layer norm on the image's tokens, without the text branch.
    Blocks are post-norm; every `cross_attention_frequency`-th one, from the first, attends to the image.

    Args:
        dim_in: width of the encoder's tokens, D_v.
        dim_out: width of the language model, D.
        num_tokens_in: encoder tokens, N.
        num_queries: tokens given to the language model, M.
        dim: width of the blocks.
        depth: blocks; being post-norm, four learn markedly slower from scratch than two.
        num_heads: attention heads.
        mlp_ratio: hidden width of a block's MLP, relative to `dim`.
        cross_attention_frequency: blocks between two that attend to the image.
        positions: add a learned position to each image token, so that queries can tell places apart at once.
            BLIP-2 has none: there the order of the tokens does not matter, and a small model trained from
            scratch binds things to their places much later.

    Shapes: tokens (B, N, D_v) -> (B, M, D).
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        num_tokens_in: int,
        *,
        num_queries: int = 16,
        dim: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        cross_attention_frequency: int = 2,
        positions: bool = True,
    ) -> None:
        super().__init__()
        self.num_tokens = num_queries
        self.norm_image = nn.LayerNorm(dim_in)
        # as large as the normalised tokens they are added to
        self.positions = nn.Parameter(torch.randn(1, num_tokens_in, dim_in)) if positions else None
        # small, so that the optimiser's steps turn them quickly; the norm that follows undoes the scale
        self.queries = nn.Parameter(torch.randn(1, num_queries, dim) * 0.02)
        self.norm_queries = nn.LayerNorm(dim, EPSILON)
        self.blocks = nn.ModuleList(
            _Block(dim, dim_in if index % cross_attention_frequency == 0 else None, num_heads, mlp_ratio)
            for index in range(depth)
        )
        self.project = nn.Linear(dim, dim_out)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D_v) to (B, M, D)."""
        image = self.norm_image(tokens)
        if self.positions is not None:
            image = image + self.positions
        x = self.norm_queries(self.queries).expand(len(tokens), -1, -1)  # (1, M, dim) -> (B, M, dim)
        for block in self.blocks:
            x = block(x, image)
        return self.project(x)  # (B, M, dim) -> (B, M, D)


class _Block(nn.Module):
    """BERT's block; with `dim_image` it attends to the image between self-attention and MLP."""

    def __init__(self, dim: int, dim_image: int | None, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attend = Attention(dim, dim, num_heads)
        self.norm_attend = nn.LayerNorm(dim, EPSILON)
        self.cross: Attention | None = None
        if dim_image is not None:
            self.cross = Attention(dim, dim_image, num_heads)
            self.norm_cross = nn.LayerNorm(dim, EPSILON)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.norm_mlp = nn.LayerNorm(dim, EPSILON)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.norm_attend(x + self.attend(x, x))
        if self.cross is not None:
            x = self.norm_cross(x + self.cross(x, image))
        return self.norm_mlp(x + self.mlp(x))
