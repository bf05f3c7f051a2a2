"""Convolutional image decoder: the decoder of diffusers' AutoencoderKL, trained or pretrained.

Paper: High-Resolution Image Synthesis with Latent Diffusion Models, arXiv:2112.10752, section 3.1
"""

from __future__ import annotations

from math import isqrt
from typing import Literal

import torch
from torch import Tensor, nn

from components.layers.autoencoder import build, cosine_decoder, levels_of, to_grid
from components.layers.reconstruction import Reconstruction

__all__ = ["Vae"]


class Vae(nn.Module):
    """Draws one image per set of tokens, meant for the latents of the encoder `vae`.

    The loss is as in VQ-GAN: absolute error of pixels in [-1, 1], LPIPS, and a PatchGAN discriminator that is
    trained along (the adversarial terms are left out in eval mode). The divergence is the encoder's.

    Args:
        dim_in: width of the visual tokens, D_v.
        num_tokens: visual tokens, N: a square grid in raster order.
        image_size: side of the image in pixels.
        path: local folder, or name on the Hugging Face hub, of an AutoencoderKL of diffusers, which then says
            the architecture; None trains anew.
        subfolder: folder of the model within `path`, such as "vae" in a pipeline's.
        patch: side of the group of latents that makes one token, as the encoder's.
        channels: width at full resolution.
        multipliers: the width of each level, from full resolution on, relative to `channels`; None is
            1, 2, 4, 4, ...
        layers: residual blocks a level, less one.
        attention: where feature maps attend to themselves: nowhere, in the middle, or also on the coarsest
            level.
        shortcut: add a linear map of each place to the pixels below it, as residual autoencoding (DC-AE,
            arXiv:2410.10733) does level by level; a coarse image then takes tens of steps, not thousands.
            Published models have none.
        scale: factor on the latents that the encoder was given, to be undone here; None is the checkpoint's
            own with its shift, and nothing without `path`.
        perceptual: weight of LPIPS.
        backbone: of LPIPS, whose pretrained weights must be on this machine or within reach.
        adversarial: weight of the adversarial term, constant in training; 0 for no discriminator.
        adversarial_start: training steps before discriminator and adversarial term begin.
        discriminator_channels: width of the discriminator's first layer.
        discriminator_layers: its halvings of the image's side.

    Shapes: tokens (B, N, D_v) -> pixels (B, 3, H, W).
    """

    def __init__(
        self,
        dim_in: int,
        num_tokens: int,
        image_size: int,
        *,
        path: str | None = None,
        subfolder: str | None = None,
        patch: int = 1,
        channels: int = 8,
        multipliers: list | None = None,
        layers: int = 1,
        attention: Literal["none", "middle", "coarsest"] = "middle",
        shortcut: bool = True,
        scale: float | None = None,
        perceptual: float = 0.0,
        backbone: Literal["vgg", "alex", "squeeze"] = "vgg",
        adversarial: float = 0.0,
        adversarial_start: int = 0,
        discriminator_channels: int = 64,
        discriminator_layers: int = 3,
    ) -> None:
        super().__init__()
        rows = isqrt(num_tokens) * patch
        if isqrt(num_tokens) ** 2 != num_tokens:
            raise ValueError(f"needs a square grid of visual tokens, not {num_tokens}")
        if image_size % rows:
            raise ValueError(f"image_size {image_size} is not a multiple of {rows} rows of latents")
        if dim_in % patch**2:
            raise ValueError(f"tokens of width {dim_in} are not {patch} x {patch} latents; see patch")
        levels, width = levels_of(image_size // rows), dim_in // patch**2
        shortcut = shortcut and path is None
        model = build(
            "AutoencoderKL",
            path,
            subfolder,
            levels,
            channels,
            multipliers,
            layers,
            attention,
            shortcut,
            latent_channels=width,
        )
        config = model.config
        self.config = dict(config)  # of the whole autoencoder in diffusers, which an export needs
        found = len(config.block_out_channels)
        if config.latent_channels != width or found != levels:
            raise ValueError(
                f"'{path}' decodes latents of width {config.latent_channels}, {2 ** (found - 1)} pixels a "
                f"side, not of width {width} and {image_size // rows} pixels"
            )
        self.patch, self.scale, self.shift = patch, 1.0 if scale is None else scale, 0.0
        if scale is None and path is not None:
            self.scale, self.shift = config.scaling_factor, config.shift_factor or 0.0
        self.project, self.decoder = model.post_quant_conv or nn.Identity(), model.decoder
        self.shortcut = cosine_decoder(width, image_size // rows) if shortcut else None
        self.compare = Reconstruction(
            perceptual,
            backbone,
            adversarial,
            adversarial_start,
            discriminator_channels,
            discriminator_layers,
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map visual tokens (B, N, D_v) to pixels (B, 3, H, W), in [-1, 1] or a little beyond."""
        latents = to_grid(tokens, self.patch) / self.scale + self.shift  # -> (B, C, rows, rows)
        drawn = self.decoder(self.project(latents))
        return drawn if self.shortcut is None else drawn + self.shortcut(latents)  # -> (B, 3, H, W)

    def loss(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Compare the drawn image with pixels (B, 3, H, W) in [0, 1]: per sample (B,)."""
        return self.compare(self(tokens), pixels * 2 - 1)

    def sample(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map visual tokens (B, N, D_v) to pixels (B, 3, H, W) in [0, 1]; nothing is drawn at random."""
        return (self(tokens).clamp(-1, 1) + 1) / 2
