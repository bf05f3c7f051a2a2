"""Sinusoids of a diffusion time and two linear layers, from diffusers."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["TimeEmbedding"]

SINUSOIDS = 256


class TimeEmbedding(nn.Module):
    """Embeds times from 0, data, to 1, noise.

    Shapes: time (..., 1) -> (..., dim).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps

        self.sinusoids = Timesteps(SINUSOIDS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.layers = TimestepEmbedding(SINUSOIDS, dim)

    def forward(self, time: Tensor) -> Tensor:
        waves = self.sinusoids(time.flatten() * 1000)  # the scale that diffusers' sinusoids expect
        return self.layers(waves.to(time.dtype)).view(*time.shape[:-1], -1)
