"""Regression of continuous visual tokens, one after the other, between begin- and end-of-image tokens.

Paper: MetaMorph (VPiT), arXiv:2412.14164, section 2; VL-GPT, arXiv:2312.09251, section 3.2

The state before a visual token predicts it; the prediction is fed back as the next input. Two additions keep
such feedback stable: targets are standardised per dimension, and in training the tokens fed back are partly
hidden and blurred, so that the model cannot copy its way through an image that it will have to invent at
inference.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Regression"]


class Regression(nn.Module):
    """Predicts visual tokens with a two-layer perceptron and embeds them for feedback with a linear map.

    Args:
        dim: width of the language model, D.
        dim_target: width of a visual token, D_v.
        num_tokens: visual tokens of an image, N.
        loss: "mse" on standardised tokens (VL-GPT), or "cosine" (VPiT).
        hide: share of images all of whose fed-back tokens are replaced by a learned vector in training, so
            that the prompt alone has to do; the others hide a random share of them, drawn uniformly.
        noise: standard deviation of Gaussian noise on fed-back tokens in training, in units of a token's own
            deviation.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        dim: int,
        dim_target: int,
        num_tokens: int,
        *,
        loss: Literal["mse", "cosine"] = "mse",
        hide: float = 0.5,
        noise: float = 0.2,
    ) -> None:
        super().__init__()
        if loss not in ("mse", "cosine"):
            raise ValueError(f"loss: {loss!r}; expected 'mse' or 'cosine'")
        self.num_tokens, self.kind, self.hide, self.noise = num_tokens, loss, hide, noise
        self.register_buffer("mean", torch.zeros(dim_target))
        self.register_buffer("deviation", torch.ones(dim_target))
        self.predict = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim_target))
        self.feedback = nn.Linear(dim_target, dim)
        self.hidden = nn.Parameter(torch.zeros(dim))
        self.position = nn.Parameter(0.02 * torch.randn(num_tokens, dim))

    @torch.no_grad()
    def standardise(self, tokens: Tensor) -> None:
        """Sets the mean and deviation of each dimension from a sample of visual tokens (..., D_v)."""
        flat = tokens.flatten(0, -2)
        self.mean.copy_(flat.mean(dim=0))
        self.deviation.copy_(flat.std(dim=0).clamp_min(1e-4))

    def embed(self, tokens: Tensor, first: int = 0) -> Tensor:
        """What the language model reads at visual positions.

        Args:
            tokens: (B, n, D_v), visual tokens `first` to `first + n` of each image.
            first: index of the first of them, 0 to N - 1.

        Returns:
            (B, n, D); in training partly hidden and noisy.
        """
        standard = (tokens - self.mean) / self.deviation
        if self.training and self.noise:
            standard = standard + self.noise * torch.randn_like(standard)
        embeds = self.feedback(standard)  # (B, n, D)
        if self.training and self.hide:
            share = torch.rand(len(tokens), 1, 1, device=tokens.device)
            share = share.masked_fill(torch.rand_like(share) < self.hide, 1.0)
            hidden = torch.rand(*embeds.shape[:2], 1, device=tokens.device) < share  # (B, n, 1)
            embeds = torch.where(hidden, self.hidden.to(embeds.dtype), embeds)
        return embeds + self.position[first : first + tokens.shape[1]]

    def forward(self, states: Tensor) -> Tensor:
        """Visual tokens (B, n, D_v) from the states before them (B, n, D)."""
        return self.predict(states) * self.deviation + self.mean

    def loss(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Loss of each image (B,) from the states before its tokens (B, N, D) and the tokens (B, N, D_v)."""
        target = (tokens - self.mean) / self.deviation
        prediction = self.predict(states)
        if self.kind == "mse":
            return (prediction - target).square().mean(dim=(1, 2))
        return 1 - F.cosine_similarity(prediction, target, dim=-1).mean(dim=1)
