"""Learned latents that read the image and each other: the resampler of Flamingo.

Paper: Flamingo, arXiv:2204.14198, section 3.1; "gelu": OpenFlamingo, arXiv:2308.01390
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.layers.attention import Attention

__all__ = ["Perceiver"]


class Perceiver(nn.Module):
    """A fixed number of tokens, whatever the encoder gives.

    Pre-norm blocks of the encoder's width without biases. Keys and values are the image's tokens and the
    latents together, so that one attention serves as both cross- and self-attention.

    Args:
        dim_in: width of the encoder's tokens, D_v, and of the blocks.
        dim_out: width of the language model, D.
        num_tokens_in: encoder tokens, N.
        num_latents: tokens given to the language model, M.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of a block's MLP, relative to `dim_in`.
        activation: of the MLP: "squared_relu" as Flamingo has it, or OpenFlamingo's "gelu".
        positions: normalise the image tokens and add a learned position to each, so that latents can tell
            places apart at once. Flamingo has none: there the order of the tokens does not matter, and a
            small model trained from scratch binds things to their places much later.

    Shapes: tokens (B, N, D_v) -> (B, M, D).
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        num_tokens_in: int,
        *,
        num_latents: int = 16,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        activation: Literal["squared_relu", "gelu"] = "squared_relu",
        positions: bool = True,
    ) -> None:
        super().__init__()
        self.num_tokens = num_latents
        self.positions: nn.Parameter | None = None
        if positions:
            self.norm_image = nn.LayerNorm(dim_in)
            # as large as the normalised tokens they are added to
            self.positions = nn.Parameter(torch.randn(1, num_tokens_in, dim_in))
        # small, so that what a latent reads soon outweighs what it is
        self.latents = nn.Parameter(torch.randn(1, num_latents, dim_in) * 0.02)
        self.blocks = nn.ModuleList(
            _Block(dim_in, num_heads, mlp_ratio, nn.GELU() if activation == "gelu" else _SquaredReLU())
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim_in)
        self.project = nn.Linear(dim_in, dim_out)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D_v) to (B, M, D)."""
        if self.positions is not None:
            tokens = self.norm_image(tokens) + self.positions
        x = self.latents.expand(len(tokens), -1, -1)  # (1, M, D_v) -> (B, M, D_v)
        for block in self.blocks:
            x = block(x, tokens)
        return self.project(self.norm(x))  # (B, M, D_v) -> (B, M, D)


class _Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, activation: nn.Module) -> None:
        super().__init__()
        self.norm_image = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.attend = Attention(dim, dim, num_heads, bias=False)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden, bias=False),
            activation,
            nn.Linear(hidden, dim, bias=False),
        )

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        latents = self.norm_latents(x)
        context = torch.cat([self.norm_image(image), latents], dim=1)  # (B, N + M, dim)
        x = x + self.attend(latents, context)
        return x + self.mlp(x)


class _SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x).square()
