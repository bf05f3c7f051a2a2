"""Diffusion image decoder: a patch transformer of diffusers denoises pixels, conditioned on visual tokens.

Paper: PixArt-alpha, arXiv:2310.00426, section 2.3; flow: Flow Straight and Fast, arXiv:2209.03003, section 2;
clean-image prediction: Back to Basics: Let Denoising Generative Models Denoise, arXiv:2511.13720
"""

from __future__ import annotations

from itertools import pairwise
from math import isqrt, pi
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Diffusion"]

NEAREST = 0.2  # time 0 is the clean image; nearer than this the velocity's weight 1 / time^2 grows no more


class Diffusion(nn.Module):
    """Draws an image for visual tokens; other noise gives another image that fits them.

    The tokens act twice: laid out over the image as extra channels of the noisy input, and by
    cross-attention. Time runs from 0, the image, to 1, noise.

    Args:
        dim_in: width of the visual tokens, D_v.
        num_tokens: visual tokens, N: a square grid in raster order.
        image_size: side of the image in pixels.
        patch_size: side of the denoiser's patches in pixels.
        dim: width of the denoiser.
        depth: transformer blocks.
        num_heads: attention heads.
        process: "flow" moves on straight lines, predicts the clean image and is charged for the velocity;
            "epsilon" follows the cosine schedule and predicts the noise.
        steps: denoising steps of `sample`: Euler's for "flow", DDIM's for "epsilon".
        condition_noise: in training, the largest deviation of noise on the normalised tokens, so that tokens
            which a language model predicted inexactly are still understood; each image draws its own.

    Shapes: tokens (B, N, D_v) -> pixels (B, 3, H, W).
    """

    def __init__(
        self,
        dim_in: int,
        num_tokens: int,
        image_size: int,
        *,
        patch_size: int = 4,
        dim: int = 96,
        depth: int = 3,
        num_heads: int = 4,
        process: Literal["flow", "epsilon"] = "flow",
        steps: int = 4,
        condition_noise: float = 0.3,
    ) -> None:
        super().__init__()
        self.rows = isqrt(num_tokens)
        if self.rows**2 != num_tokens:
            raise ValueError(f"needs a square grid of visual tokens, not {num_tokens}")
        if image_size % self.rows or image_size % patch_size:
            raise ValueError(
                f"image_size {image_size} is not a multiple of {self.rows} rows of tokens and of "
                f"patch_size {patch_size}"
            )
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        from diffusers import PixArtTransformer2DModel

        self.process, self.steps, self.condition_noise = process, steps, condition_noise
        self.image_size = image_size
        side = image_size // self.rows  # of a token's own patch of pixels
        self.norm = nn.LayerNorm(dim_in)
        self.spread = nn.Sequential(nn.Conv2d(dim_in, 3 * side**2, 1), nn.PixelShuffle(side))
        self.embed = nn.Linear(dim_in, dim)
        self.positions = nn.Parameter(torch.randn(1, num_tokens, dim) * 0.02)
        self.denoiser = PixArtTransformer2DModel(
            num_attention_heads=num_heads,
            attention_head_dim=dim // num_heads,
            in_channels=6,  # the noisy image and the tokens laid out
            out_channels=3,
            num_layers=depth,
            cross_attention_dim=dim,
            caption_channels=None,
            sample_size=image_size,
            patch_size=patch_size,
        )

    def loss(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Denoise pixels (B, 3, H, W) in [0, 1] at one random time each: squared error per sample (B,)."""
        clean = pixels * 2 - 1
        noise = torch.randn_like(clean)
        time = torch.rand_like(clean[:, :1, :1, :1])  # (B, 1, 1, 1)
        keep, blend = self._schedule(time)
        predicted = self._predict(self._condition(tokens), keep * clean + blend * noise, time)
        error = (predicted - clean) / time.clamp(min=NEAREST) if self.process == "flow" else predicted - noise
        return error.square().mean(dim=(1, 2, 3))

    def sample(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw pixels (B, 3, H, W) in [0, 1] for tokens (B, N, D_v), starting from the generator's noise."""
        condition = self._condition(tokens)
        shape = (len(tokens), 3, self.image_size, self.image_size)
        noisy = torch.randn(shape, generator=generator, device=tokens.device, dtype=tokens.dtype)
        # at time 1 nothing of the image is left, and the clean image cannot be told from predicted noise
        times = torch.linspace(1.0 if self.process == "flow" else 0.98, 0.0, self.steps + 1)
        for now, after in pairwise(times):
            time = now.to(noisy).expand(len(tokens), 1, 1, 1)
            keep, blend = self._schedule(time)
            predicted = self._predict(condition, noisy, time)
            clean = predicted if self.process == "flow" else (noisy - blend * predicted) / keep
            clean = clean.clamp(-1, 1)
            noise = (noisy - keep * clean) / blend
            keep, blend = self._schedule(after.to(noisy))
            noisy = keep * clean + blend * noise
        return (noisy + 1) / 2

    def _schedule(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the image and of the noise at a time."""
        if self.process == "flow":
            return 1 - time, time
        return torch.cos(time * pi / 2), torch.sin(time * pi / 2)

    def _condition(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, D_v) as an image (B, 3, H, W) and as keys for cross-attention (B, N, dim)."""
        tokens = self.norm(tokens)
        if self.training and self.condition_noise:
            level = torch.rand_like(tokens[:, :1, :1]) * self.condition_noise  # (B, 1, 1)
            tokens = tokens + level * torch.randn_like(tokens)
        grid = tokens.transpose(1, 2).unflatten(2, (self.rows, self.rows))  # (B, D_v, rows, rows)
        return self.spread(grid), self.embed(tokens) + self.positions

    def _predict(self, condition: tuple[Tensor, Tensor], noisy: Tensor, time: Tensor) -> Tensor:
        image, keys = condition
        out = self.denoiser(
            torch.cat([noisy, image], dim=1),  # (B, 6, H, W)
            encoder_hidden_states=keys,
            timestep=time.flatten() * 1000,  # the scale that diffusers' embedding of time expects
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample
        return out + image if self.process == "flow" else out  # the tokens alone give a first, blurred image
