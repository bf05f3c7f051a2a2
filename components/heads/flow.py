"""Diffusion of a whole image within the language model: its slots hold noised tokens that see each other.

Paper: Transfusion, arXiv:2408.11039, section 3

In training each image has one time and one noise; text after an image therefore reads it noised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from components.layers.diffusion_process import (
    Path,
    Prediction,
    clean_of,
    step_back,
    target,
    times,
    weights,
)
from components.layers.seeded_noise import generators, normal
from components.layers.standardised import Standardised
from components.layers.time_embedding import TimeEmbedding

__all__ = ["Flow"]


class Flow(Standardised):
    """Linear into the language model, with the time and a position added; linear out of it.

    Drawing leaves nothing in the sequence.

    Args:
        dim: width of the language model, D.
        dim_target: width of a visual token, D_v.
        num_tokens: visual tokens of an image, N.
        process: "flow" moves on straight lines and predicts the velocity; "epsilon" follows the cosine
            schedule and predicts the noise (Transfusion).
        steps: runs of the language model when drawing: Euler's steps for "flow", DDIM's for "epsilon";
            Transfusion takes 250.
        standardised: whether tokens are standardised per dimension.
        positions: add a learned position to each noised token; Transfusion has none.
    """

    reads_before = False
    bidirectional = True
    through_decoder = False

    def __init__(
        self,
        dim: int,
        dim_target: int,
        num_tokens: int,
        *,
        process: Literal["flow", "epsilon"] = "flow",
        steps: int = 16,
        standardised: bool = True,
        positions: bool = True,
    ) -> None:
        super().__init__(dim_target, standardised)
        self.num_slots, self.dim_target, self.steps = num_tokens, dim_target, steps
        self.path: Path = "linear" if process == "flow" else "cosine"
        self.predicts: Prediction = "velocity" if process == "flow" else "epsilon"
        self.read = nn.Linear(dim_target, dim)
        self.time = TimeEmbedding(dim)
        self.position = nn.Parameter(0.02 * torch.randn(num_tokens, dim)) if positions else None
        self.predict = nn.Linear(dim, dim_target)

    def embed(self, noisy: Tensor, time: Tensor) -> Tensor:
        """Make slots (J, N, D) of standardised noisy tokens (J, N, D_v) at their image's time (J, 1, 1)."""
        embeds = self.read(noisy) + self.time(time)
        return embeds if self.position is None else embeds + self.position

    def inputs(self, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Noise the tokens (J, N, D_v) of each image: slots (J, N, D), and noise and times for `loss`."""
        noise, time = torch.randn_like(tokens), torch.rand_like(tokens[:, :1, :1])
        keep, blend = weights(self.path, time)
        return self.embed(keep * self.standardise(tokens) + blend * noise, time), (noise, time)

    def loss(self, states: Tensor, tokens: Tensor, drawn: tuple[Tensor, Tensor]) -> Tensor:
        """Squared error of each image (J,) from the states at its slots (J, N, D) and what `inputs` drew."""
        noise, time = drawn
        expected = target(self.predicts, self.standardise(tokens), noise, *weights(self.path, time))
        return (self.predict(states) - expected).square().mean(dim=(1, 2))

    def draw(self, state: Tensor, run: Callable[[Tensor, bool], Tensor], seeds: Sequence[int]) -> Tensor:
        """Draw visual tokens (B, N, D_v) from noise, all together."""
        noisy = normal(generators(seeds), (self.num_slots, self.dim_target), state)  # (B, N, D_v)
        for now, after in pairwise(times(self.predicts, self.steps).to(state)):
            here, there = weights(self.path, now), weights(self.path, after)
            states = run(self.embed(noisy, now.expand(len(state), 1, 1)), False)
            clean = clean_of(self.predicts, self.predict(states), noisy, *here)
            noisy = step_back(clean, noisy, here, there)
        return self.restore(noisy)
