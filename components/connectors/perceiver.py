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
        head_dim: width of a head, D_v / `num_heads` if left out; OpenFlamingo has 64.
        mlp_ratio: hidden width of a block's MLP, relative to `dim_in`.
        activation: of the MLP: "squared_relu" as Flamingo has it, or OpenFlamingo's "gelu".
        positions: normalise the image tokens and add a learned position to each, so that latents can tell
            places apart at once. Flamingo has none: there the order of the tokens does not matter, and a
            small model trained from scratch binds things to their places much later.
        frames: images or video frames seen at a time in training, each of which gets a learned time
            embedding; an image alone is frame 0. With 1 there are none (OpenFlamingo), and the order of
            several frames does not matter.

    Shapes: tokens (B, N, D_v) or those of F frames (B, F, N, D_v) -> (B, M, D). More frames than `frames`
    get time embeddings interpolated linearly between the learned ones.

    Raises:
        ValueError: fewer than one frame.
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
        head_dim: int | None = None,
        mlp_ratio: float = 4.0,
        activation: Literal["squared_relu", "gelu"] = "squared_relu",
        positions: bool = True,
        frames: int = 1,
    ) -> None:
        super().__init__()
        if frames < 1:
            raise ValueError(f"frames must be at least 1, not {frames}")
        self.num_tokens = num_latents
        self.positions: nn.Parameter | None = None
        if positions:
            self.norm_image = nn.LayerNorm(dim_in)
            # as large as the normalised tokens they are added to
            self.positions = nn.Parameter(torch.randn(1, num_tokens_in, dim_in))
        # small, so that what a latent reads soon outweighs what it is
        self.latents = nn.Parameter(torch.randn(1, num_latents, dim_in) * 0.02)
        self.blocks = nn.ModuleList(
            _Block(
                dim_in, num_heads, head_dim, mlp_ratio, nn.GELU() if activation == "gelu" else _SquaredReLU()
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim_in)
        self.project = nn.Linear(dim_in, dim_out)
        self.times = nn.Parameter(torch.randn(frames, dim_in)) if frames > 1 else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D_v) or (B, F, N, D_v) to (B, M, D)."""
        if self.positions is not None:
            tokens = self.norm_image(tokens) + self.positions
        if self.times is not None:
            tokens = tokens.unsqueeze(1) if tokens.dim() == 3 else tokens  # an image is one frame
            tokens = tokens + self._times(tokens.shape[1]).unsqueeze(1)  # (F, D_v) -> (F, 1, D_v)
        if tokens.dim() == 4:
            tokens = tokens.flatten(1, 2)  # (B, F, N, D_v) -> (B, F * N, D_v)
        x = self.latents.expand(len(tokens), -1, -1)  # (1, M, D_v) -> (B, M, D_v)
        for block in self.blocks:
            x = block(x, tokens)
        return self.project(self.norm(x))  # (B, M, D_v) -> (B, M, D)

    def _times(self, frames: int) -> Tensor:
        """Time embeddings (frames, D_v): the first of those learned, or all of them stretched."""
        assert self.times is not None
        if frames <= len(self.times):
            return self.times[:frames]
        stretched = functional.interpolate(self.times.T[None], frames, mode="linear", align_corners=True)
        return stretched[0].T  # (1, D_v, frames) -> (frames, D_v)


class _Block(nn.Module):
    def __init__(
        self, dim: int, num_heads: int, head_dim: int | None, mlp_ratio: float, activation: nn.Module
    ) -> None:
        super().__init__()
        self.norm_image = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.attend = Attention(dim, dim, num_heads, bias=False, head_dim=head_dim)
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
