"""Continuous latents as image tokens: the encoder of diffusers' AutoencoderKL, trained or pretrained.

Paper: High-Resolution Image Synthesis with Latent Diffusion Models, arXiv:2112.10752, section 3.1; patches of
latents: Transfusion, arXiv:2408.11039, section 3
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from components.layers.autoencoder import build, cosine_encoder, levels_of, to_tokens

__all__ = ["Vae"]


class Vae(nn.Module):
    """Each place of a latent map is a token, or each group of places; the image decoder `vae` is its mate.

    Heads and diffusion want tokens of about unit deviation. A checkpoint says its factor; without one the
    divergence pulls the latents there, since it is least, at equal detail, where their mean square is 1.
    With `path` the checkpoint says the architecture, and its settings are not read.

    Args:
        image_size: side of the image in pixels.
        path: local folder, or name on the Hugging Face hub, of an AutoencoderKL of diffusers; None
            trains anew.
        subfolder: folder of the model within `path`, such as "vae" in a pipeline's.
        patch: side of the group of latents that makes one token (Transfusion).
        downsample: pixels a side of a latent, a power of 2.
        channels: width at full resolution.
        multipliers: the width of each level relative to `channels`; None is 1, 2, 4, 4, ...
        layers: residual blocks a level.
        attention: where feature maps attend to themselves: nowhere, in the middle, or also on the coarsest
            level.
        shortcut: add a linear map of the pixels below a place to its latent, as residual autoencoding does
            level by level (DC-AE, arXiv:2410.10733); a coarse image then takes tens of steps, not thousands.
            Published models have none.
        latent_channels: width of a latent; a token's, D_v, is this times `patch` squared.
        kl: weight of the divergence of an image's latents, in nats and all together, from a standard normal
            distribution, beside the image decoder's loss, which is a mean over pixels.
        scale: factor on the latents; None is the checkpoint's own with its shift, and 1 without `path`.

    Shapes: pixels (B, 3, H, W) in [0, 1] -> tokens (B, N, D_v).
    """

    def __init__(
        self,
        image_size: int,
        *,
        path: str | None = None,
        subfolder: str | None = None,
        patch: int = 1,
        downsample: int = 8,
        channels: int = 8,
        multipliers: list | None = None,
        layers: int = 1,
        attention: Literal["none", "middle", "coarsest"] = "middle",
        shortcut: bool = True,
        latent_channels: int = 32,
        kl: float = 1e-6,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        shortcut = shortcut and path is None
        model = build(
            "AutoencoderKL",
            path,
            subfolder,
            levels_of(downsample),
            channels,
            multipliers,
            layers,
            attention,
            shortcut,
            latent_channels=latent_channels,
        )
        config = model.config
        factor = 2 ** (len(config.block_out_channels) - 1)
        if image_size % (factor * patch):
            raise ValueError(
                f"image_size {image_size} is not a multiple of downsample {factor} times patch {patch}"
            )
        rows = image_size // (factor * patch)
        self.image_size, self.num_tokens, self.grid = image_size, rows**2, (rows, rows)
        self.patch, self.kl = patch, kl
        self.dim: int = config.latent_channels * patch**2
        self.encoder = model.encoder
        self.project: nn.Module = model.quant_conv or nn.Identity()
        self.shortcut = cosine_encoder(latent_channels, factor) if shortcut else None
        if path is None:
            model.quant_conv.bias.data[latent_channels:] = -6  # log variance: little noise while all is new
        self.scale, self.shift = 1.0 if scale is None else scale, 0.0
        if scale is None and path is not None:
            self.scale, self.shift = config.scaling_factor, config.shift_factor or 0.0

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) in [0, 1] to tokens (B, N, D_v), the mean of their distribution."""
        return self._tokens(self._posterior(pixels).mode())

    def autoencode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map pixels (B, 3, H, W) in [0, 1] to tokens (B, N, D_v) and the weighted divergence (B,).

        In training the tokens are drawn from their distribution by torch's generator.
        """
        posterior = self._posterior(pixels)
        latents = posterior.sample() if self.training else posterior.mode()
        return self._tokens(latents), self.kl * posterior.kl()

    def _posterior(self, pixels: Tensor) -> Any:
        """The normal distribution of the latents, of diffusers."""
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        pixels = pixels * 2 - 1
        moments = self.project(self.encoder(pixels))  # (B, 3, H, W) -> (B, 2 * C, h, w)
        if self.shortcut is not None:
            mean, log_variance = moments.chunk(2, dim=1)
            moments = torch.cat([mean + self.shortcut(pixels), log_variance], dim=1)
        return DiagonalGaussianDistribution(moments)

    def _tokens(self, latents: Tensor) -> Tensor:
        return to_tokens((latents - self.shift) * self.scale, self.patch)
