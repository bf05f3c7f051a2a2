"""Regression of continuous visual tokens, one after the other, between begin- and end-of-image tokens.

Paper: MetaMorph (VPiT), arXiv:2412.14164, section 2; VL-GPT, arXiv:2312.09251, section 3.2; Emu,
arXiv:2307.05222, section 2

The state before a visual token predicts it; the prediction is fed back as the next input. Two additions keep
such feedback stable: targets are standardised per dimension, and in training the tokens fed back are partly
hidden and blurred, so that the model cannot copy its way through an image that it will have to invent at
inference. The papers do without: `hide: 0`, `noise: 0`, `positions: false`, `standardised: false`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.layers.autoregression import ContinuousAutoregression

__all__ = ["Regression"]


class Regression(ContinuousAutoregression):
    """Predicts visual tokens with one or two linear layers and embeds them for feedback.

    MetaMorph: `loss: cosine, normalise: true, mlp_ratio: 1.0, feedback: shared` with the connector; VL-GPT:
    `depth: 1, feedback: shared` over tokens of the language model's width; Emu: the same with `bias: false`.

    Args:
        dim: width of the language model, D.
        dim_target: width of a visual token, D_v.
        num_tokens: visual tokens of an image, N.
        loss: "mse" (VL-GPT, Emu), or "cosine" (VPiT).
        depth: linear layers of the prediction, with GELU between.
        mlp_ratio: hidden width of two layers, relative to `dim`.
        bias: whether the layers of the prediction have biases.
        standardised: whether targets are standardised per dimension.
        normalise: scale targets and predictions to length 1 instead.
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
        loss: Literal["mse", "cosine"] = "mse",
        depth: Literal[1, 2] = 2,
        mlp_ratio: float = 2.0,
        bias: bool = True,
        standardised: bool = True,
        normalise: bool = False,
        feedback: Literal["own", "shared"] = "own",
        hide: float = 0.5,
        noise: float = 0.2,
        positions: bool = True,
    ) -> None:
        super().__init__(dim_target, standardised and not normalise)
        self.kind, self.normalise, self.noise = loss, normalise, noise
        self.predict: nn.Module
        if depth == 1:
            self.predict = nn.Linear(dim, dim_target, bias)
        else:
            hidden = int(dim * mlp_ratio)
            self.predict = nn.Sequential(
                nn.Linear(dim, hidden, bias), nn.GELU(), nn.Linear(hidden, dim_target, bias)
            )
        own = nn.Linear(dim_target, dim) if feedback == "own" else None
        self.feed_back(own, dim, num_tokens, hide, positions)

    def standardise(self, tokens: Tensor) -> Tensor:
        return F.normalize(tokens, dim=-1) if self.normalise else super().standardise(tokens)

    def forward(self, states: Tensor) -> Tensor:
        """Predict visual tokens (B, n, D_v) from the states before them (B, n, D)."""
        prediction = self.predict(states)
        return F.normalize(prediction, dim=-1) if self.normalise else self.restore(prediction)

    def draw_token(self, state: Tensor, rows: Sequence[torch.Generator]) -> Tensor:
        return self(state)

    def loss(self, states: Tensor, tokens: Tensor, drawn: None = None) -> Tensor:
        """Loss of each image (J,) from the states before its tokens (J, N, D) and the tokens (J, N, D_v)."""
        target = self.standardise(tokens)
        prediction = self.predict(states)
        if self.kind == "mse":
            if self.normalise:
                prediction = F.normalize(prediction, dim=-1)
            return (prediction - target).square().mean(dim=(1, 2))
        return 1 - F.cosine_similarity(prediction, target, dim=-1).mean(dim=1)
