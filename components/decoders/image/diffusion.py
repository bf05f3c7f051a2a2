"""Diffusion image decoder: a transformer or U-Net of diffusers denoises pixels, conditioned on visual tokens.

Paper: PixArt-alpha, arXiv:2310.00426, section 2.3; U-Net: Latent Diffusion Models, arXiv:2112.10752,
section 3.3; flow: Flow Straight and Fast, arXiv:2209.03003, section 2; clean-image prediction: Back to
Basics: Let Denoising Generative Models Denoise, arXiv:2511.13720; v: Progressive Distillation,
arXiv:2202.00512, section 4; guidance: Classifier-Free Diffusion Guidance, arXiv:2207.12598
"""

from __future__ import annotations

from itertools import pairwise
from math import gcd, isqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from components.layers.diffusion_process import clean_of, guide, step_back, target, times, weights

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
        backbone: "dit", a transformer on patches (PixArt's), or "unet" with cross-attention on all levels
            but the finest (Stable Diffusion's), several times slower on a CPU.
        patch_size: side of the transformer's patches in pixels.
        dim: width of the transformer, or of the U-Net's finest level; the next are 2, 3, ... times as wide.
        depth: transformer blocks, or levels of the U-Net.
        num_heads: attention heads.
        process: "flow" moves on straight lines, predicts the clean image and is charged for the velocity;
            "epsilon" and "v" follow the cosine schedule and predict the noise, or noise and image mixed.
        steps: denoising steps of `sample`: Euler's for "flow", DDIM's for the others.
        condition_noise: in training, the largest deviation of noise on the normalised tokens, so that tokens
            which a language model predicted inexactly are still understood; each image draws its own.
        drop: share of images whose tokens are replaced by a learned empty condition in training.
        guidance: how far `sample` goes from the empty condition's prediction to the tokens' and beyond; 1 is
            no guidance, others need `drop`.

    Shapes: tokens (B, N, D_v) -> pixels (B, 3, H, W).
    """

    def __init__(
        self,
        dim_in: int,
        num_tokens: int,
        image_size: int,
        *,
        backbone: Literal["dit", "unet"] = "dit",
        patch_size: int = 4,
        dim: int = 96,
        depth: int = 3,
        num_heads: int = 4,
        process: Literal["flow", "epsilon", "v"] = "flow",
        steps: int = 4,
        condition_noise: float = 0.3,
        drop: float = 0.0,
        guidance: float = 1.0,
    ) -> None:
        super().__init__()
        self.rows = isqrt(num_tokens)
        if self.rows**2 != num_tokens:
            raise ValueError(f"needs a square grid of visual tokens, not {num_tokens}")
        smallest = patch_size if backbone == "dit" else 2 ** (depth - 1)
        if image_size % self.rows or image_size % smallest:
            raise ValueError(
                f"image_size {image_size} is not a multiple of {self.rows} rows of tokens and of "
                + (f"patch_size {patch_size}" if backbone == "dit" else f"{smallest}, for {depth} levels")
            )
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if guidance != 1 and not drop:
            raise ValueError(f"guidance {guidance} needs an empty condition: drop some in training, as 0.1")
        self.path: Literal["linear", "cosine"] = "linear" if process == "flow" else "cosine"
        self.predicts: Literal["clean", "epsilon", "v"] = "clean" if process == "flow" else process
        self.steps, self.condition_noise, self.drop, self.guidance = steps, condition_noise, drop, guidance
        self.image_size = image_size
        side = image_size // self.rows  # of a token's own patch of pixels
        self.norm = nn.LayerNorm(dim_in)
        self.spread = nn.Sequential(nn.Conv2d(dim_in, 3 * side**2, 1), nn.PixelShuffle(side))
        self.embed = nn.Linear(dim_in, dim)
        self.positions = nn.Parameter(torch.randn(1, num_tokens, dim) * 0.02)
        if drop:
            self.empty = nn.Parameter(torch.zeros(dim_in))
        make = _transformer if backbone == "dit" else _unet
        self.denoiser = make(image_size, patch_size, dim, depth, num_heads)

    def loss(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Denoise pixels (B, 3, H, W) in [0, 1] at one random time each: squared error per sample (B,)."""
        clean = pixels * 2 - 1
        noise = torch.randn_like(clean)
        time = torch.rand_like(clean[:, :1, :1, :1])  # (B, 1, 1, 1)
        keep, blend = weights(self.path, time)
        predicted = self._predict(self._condition(tokens), keep * clean + blend * noise, time)
        error = predicted - target(self.predicts, clean, noise, keep, blend)
        if self.predicts == "clean":  # as an error of the velocity
            error = error / time.clamp(min=NEAREST)
        return error.square().mean(dim=(1, 2, 3))

    def sample(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw pixels (B, 3, H, W) in [0, 1] for tokens (B, N, D_v), starting from the generator's noise."""
        condition = self._condition(tokens)
        empty = self._lay_out(self.empty.expand_as(tokens)) if self.guidance != 1 else None
        shape = (len(tokens), 3, self.image_size, self.image_size)
        noisy = torch.randn(shape, generator=generator, device=tokens.device, dtype=tokens.dtype)
        for now, after in pairwise(times(self.predicts, self.steps).to(noisy)):
            time = now.expand(len(tokens), 1, 1, 1)
            predicted = self._predict(condition, noisy, time)
            if empty is not None:
                predicted = guide(predicted, self._predict(empty, noisy, time), self.guidance)
            here, there = weights(self.path, time), weights(self.path, after)
            clean = clean_of(self.predicts, predicted, noisy, *here).clamp(-1, 1)
            noisy = step_back(clean, noisy, here, there)
        return (noisy + 1) / 2

    def _condition(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise tokens (B, N, D_v), in training blur them and drop some, and lay them out."""
        tokens = self.norm(tokens)
        if self.training and self.condition_noise:
            level = torch.rand_like(tokens[:, :1, :1]) * self.condition_noise  # (B, 1, 1)
            tokens = tokens + level * torch.randn_like(tokens)
        if self.training and self.drop:
            tokens = torch.where(torch.rand_like(tokens[:, :1, :1]) < self.drop, self.empty, tokens)
        return self._lay_out(tokens)

    def _lay_out(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, D_v) as an image (B, 3, H, W) and as keys for cross-attention (B, N, dim)."""
        grid = tokens.transpose(1, 2).unflatten(2, (self.rows, self.rows))  # (B, D_v, rows, rows)
        return self.spread(grid), self.embed(tokens) + self.positions

    def _predict(self, condition: tuple[Tensor, Tensor], noisy: Tensor, time: Tensor) -> Tensor:
        image, keys = condition
        out = self.denoiser(
            torch.cat([noisy, image], dim=1),  # (B, 6, H, W)
            encoder_hidden_states=keys,
            timestep=time.flatten() * 1000,  # the scale that diffusers' embedding of time expects
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},  # the transformer's; it wants both
        ).sample
        # the tokens alone give a first, blurred image
        return out + image if self.predicts == "clean" else out


def _transformer(image_size: int, patch_size: int, dim: int, depth: int, num_heads: int) -> Any:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
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


def _unet(image_size: int, patch_size: int, dim: int, depth: int, num_heads: int) -> Any:
    from diffusers import UNet2DConditionModel

    if dim % 4:
        raise ValueError(f"dim {dim} is not a multiple of 4, the width of a group of the U-Net's norms")
    return UNet2DConditionModel(
        sample_size=image_size,
        in_channels=6,
        out_channels=3,
        block_out_channels=[dim * (level + 1) for level in range(depth)],
        down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * (depth - 1),
        up_block_types=["CrossAttnUpBlock2D"] * (depth - 1) + ["UpBlock2D"],
        layers_per_block=1,
        cross_attention_dim=dim,
        attention_head_dim=num_heads,  # of which diffusers makes the number of heads
        norm_num_groups=gcd(32, dim // 4),
    )
