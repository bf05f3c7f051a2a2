"""Diffusion of continuous visual tokens one at a time, each conditioned on the state before it.

Paper: Autoregressive Image Generation without Vector Quantization (MAR), arXiv:2406.11838, section 3

Replaces the regression of a token, whose mean is all that it can give, by a draw from its distribution. The
paper's network also predicts variances; here they are those of the schedule, in continuous time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.layers.autoregression import ContinuousAutoregression
from components.layers.diffusion_process import clean_of, renoise, target, times, weights
from components.layers.seeded_noise import normal
from components.layers.time_embedding import TimeEmbedding

__all__ = ["Diffusion"]


class Diffusion(ContinuousAutoregression):
    """A small perceptron, modulated by the state and the time, denoises one token on the cosine schedule.

    MAR: `width: 1024, depth: 3, steps: 100, hide: 0, noise: 0, positions: false`.

    Args:
        dim: width of the language model, D.
        dim_target: width of a visual token, D_v.
        num_tokens: visual tokens of an image, N.
        width: of the denoiser.
        depth: its residual blocks.
        predicts: what it predicts: "epsilon", the noise, or "v", a mixture of noise and token that stays
            well-defined in pure noise.
        copies: times at which each token is denoised for one loss; they share one run of the language model.
        steps: denoising steps of a token when drawing.
        temperature: of the noise added in each of them.
        standardised: whether tokens are standardised per dimension.
        feedback: "own" embeds fed-back tokens with a linear map; "shared" hands them to what reads images.
        hide: share of images all of whose fed-back tokens are replaced by a learned vector in training, so
            that the prompt alone has to do; the others hide a random share of them, drawn uniformly.
        noise: standard deviation of Gaussian noise on fed-back tokens in training, in units of a token's own
            deviation.
        positions: add a learned position to each fed-back token.
    """

    def __init__(
        self,
        dim: int,
        dim_target: int,
        num_tokens: int,
        *,
        width: int = 256,
        depth: int = 2,
        predicts: Literal["epsilon", "v"] = "epsilon",
        copies: int = 4,
        steps: int = 25,
        temperature: float = 1.0,
        standardised: bool = True,
        feedback: Literal["own", "shared"] = "own",
        hide: float = 0.5,
        noise: float = 0.2,
        positions: bool = True,
    ) -> None:
        super().__init__(dim_target, standardised)
        self.dim_target, self.noise = dim_target, noise
        self.predicts, self.copies, self.steps, self.temperature = predicts, copies, steps, temperature
        self.denoiser = _Denoiser(dim, dim_target, width, depth)
        own = nn.Linear(dim_target, dim) if feedback == "own" else None
        self.feed_back(own, dim, num_tokens, hide, positions)

    def loss(self, states: Tensor, tokens: Tensor, drawn: None = None) -> Tensor:
        """Loss of each image (J,) from the states before its tokens (J, N, D) and the tokens (J, N, D_v)."""
        clean = self.standardise(tokens).expand(self.copies, *tokens.shape)
        error = self.error(states, clean, torch.rand_like(clean[..., :1]), torch.randn_like(clean))
        return error.mean(dim=(0, 2))  # (copies, J, N) -> (J,)

    def error(self, states: Tensor, clean: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        """Squared error of denoising standardised tokens.

        Args:
            states: (J, N, D), the states before the tokens.
            clean: (copies, J, N, D_v).
            time: (copies, J, N, 1) in [0, 1], of each copy.
            noise: (copies, J, N, D_v), of each copy.

        Returns:
            (copies, J, N).
        """
        keep, blend = weights("cosine", time)
        predicted = self.denoiser(keep * clean + blend * noise, time, states)
        return (predicted - target(self.predicts, clean, noise, keep, blend)).square().mean(dim=-1)

    def draw_token(self, state: Tensor, rows: Sequence[torch.Generator]) -> Tensor:
        noise = normal(rows, (self.steps, 1, self.dim_target), state)  # (B, steps, 1, D_v)
        noisy, fresh = noise[:, 0], self.temperature * noise[:, 1:]
        for index, (now, after) in enumerate(pairwise(times(self.predicts, self.steps).to(state))):
            here, there = weights("cosine", now), weights("cosine", after)
            predicted = self.denoiser(noisy, now.expand_as(state[..., :1]), state)
            clean = clean_of(self.predicts, predicted, noisy, *here)
            # the last step arrives at the token
            noisy = renoise(clean, noisy, here, there, fresh[:, index]) if after > 0 else clean
        return self.restore(noisy)


class _Denoiser(nn.Module):
    """Residual blocks whose layer norms are shifted, scaled and gated by the condition; starts as zero.

    Shapes: noisy (..., D_v), time (..., 1), states (..., D) -> (..., D_v).
    """

    def __init__(self, dim: int, dim_target: int, width: int, depth: int) -> None:
        super().__init__()
        self.noisy = nn.Linear(dim_target, width)
        self.time = TimeEmbedding(width)
        self.state = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = _zero(nn.Linear(width, 2 * width))
        self.out = _zero(nn.Linear(width, dim_target))

    def forward(self, noisy: Tensor, time: Tensor, states: Tensor) -> Tensor:
        condition = F.silu(self.time(time) + self.state(states))
        x = self.noisy(noisy)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulate(condition).chunk(2, dim=-1)
        return self.out(self.norm(x) * (1 + scale) + shift)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulate = _zero(nn.Linear(width, 3 * width))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulate(condition).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


def _zero(layer: nn.Linear) -> nn.Linear:
    """Start a layer at zero, so that its block starts as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
