"""Latent diffusion image decoder: a pretrained text-to-image pipeline of diffusers that reads visual tokens.

Paper: mapper: GILL, arXiv:2305.17216, section 3.2; linear map: Emu, arXiv:2307.05222, section 2.3; loss
through the denoiser: DreamLLM, arXiv:2309.11499, section 3; pipeline: Latent Diffusion Models,
arXiv:2112.10752
"""

from __future__ import annotations

from copy import deepcopy
from inspect import signature
from typing import Literal

import torch
from torch import Tensor, nn

from components.layers.diffusion_process import guide
from components.layers.latent_diffusion import (
    add_noise,
    conditions,
    decode,
    denoise,
    empty_condition,
    encode,
    load_parts,
)
from components.layers.places import Places
from components.layers.resize import resize_pixels

__all__ = ["StableDiffusion"]


class StableDiffusion(nn.Module):
    """Maps visual tokens to the pipeline's text condition; text encoders are not kept.

    Stable Diffusion 1, 2, XL and 3, PixArt and Sana. Which of `mapper`, `denoiser` and `vae` train is the
    recipe's choice: the loss reaches the mapper through a frozen denoiser as well, and never the VAE, whose
    latents are the loss's targets.

    Args:
        dim_in: width of the visual tokens, D_v.
        num_tokens: visual tokens, N.
        image_size: side of the image in pixels; it is resized to and from `resolution`.
        path: local folder, or name on the Hugging Face hub, of a pipeline.
        resolution: side at which the pipeline draws, in pixels; None is its own.
        mapper: "transformer" lets learned queries read the tokens in an encoder and a decoder (GILL); "mlp"
            (MetaMorph) and "linear" (Emu) map each token by itself; "none" takes tokens that are text
            conditions already.
        num_queries: tokens of the condition that the transformer gives.
        dim: width of the transformer or the MLP.
        depth: the transformer's blocks, in its encoder and again in its decoder.
        num_heads: its attention heads.
        mlp_ratio: hidden width of a block's MLP, relative to `dim`.
        drop: share of images that are denoised with the condition of no text in training; of use where the
            denoiser trains.
        guidance: how far `sample` goes from the prediction for no text to the tokens' and beyond; 1 is none.
        steps: denoising steps of `sample`, with the pipeline's scheduler.

    Shapes: tokens (B, N, D_v) -> pixels (B, 3, H, W).
    """

    empty: Tensor
    empty_pooled: Tensor

    def __init__(
        self,
        dim_in: int,
        num_tokens: int,
        image_size: int,
        *,
        path: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
        resolution: int | None = None,
        mapper: Literal["transformer", "mlp", "linear", "none"] = "transformer",
        num_queries: int = 77,
        dim: int = 512,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        guidance: float = 7.5,
        steps: int = 50,
    ) -> None:
        super().__init__()
        self.denoiser, self.vae, self.scheduler = load_parts(path)
        width, pooled = conditions(self.denoiser)
        side: int = self.denoiser.config.sample_size  # of its latents
        widths = self.vae.config.get("block_out_channels") or self.vae.config.encoder_block_out_channels
        factor = 2 ** (len(widths) - 1)
        self.resolution = resolution or side * factor
        if self.resolution % factor:
            raise ValueError(f"resolution {resolution} is not a multiple of {factor}, the VAE's downsampling")
        if mapper == "none" and dim_in != width:
            raise ValueError(
                f"mapper none: tokens of width {dim_in} are no text conditions, of width {width}"
            )
        self.image_size, self.latent_size = image_size, self.resolution // factor
        self.drop, self.guidance, self.steps = drop, guidance, steps
        self.mapper = _mapper(
            mapper, dim_in, num_tokens, width, num_queries, dim, depth, num_heads, mlp_ratio
        )
        self.pool = nn.Linear(width, pooled) if pooled else None
        if drop or guidance != 1:
            empty, empty_pooled = empty_condition(path, self.denoiser, self.vae)
            self.register_buffer("empty", empty)
            if empty_pooled is not None:
                self.register_buffer("empty_pooled", empty_pooled)

    def loss(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Denoise the latents of pixels (B, 3, H, W) in [0, 1] at a random time each: squared error (B,)."""
        pixels = resize_pixels(pixels, self.resolution)
        # targets that could be trained would collapse
        latents = encode(self.vae, pixels * 2 - 1).detach()
        noisy, time, target = add_noise(self.scheduler, latents)
        condition = self._condition(tokens)
        if self.training and self.drop:
            predicted = self._predict_some(noisy, time, condition)
        else:
            predicted = self._predict(noisy, time, condition)
        return (predicted - target).square().mean(dim=(1, 2, 3))

    def sample(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw pixels (B, 3, H, W) in [0, 1] for tokens (B, N, D_v), starting from the generator's noise."""
        condition, rows = self._condition(tokens), len(tokens)
        scheduler = deepcopy(self.scheduler)  # it counts steps and remembers predictions
        scheduler.set_timesteps(self.steps, device=tokens.device)
        shape = (rows, self.vae.config.latent_channels, self.latent_size, self.latent_size)
        latents = torch.randn(shape, generator=generator, device=tokens.device, dtype=tokens.dtype)
        latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
        # some schedulers add noise on the way
        noise = {"generator": generator} if "generator" in signature(scheduler.step).parameters else {}
        for now in scheduler.timesteps:
            scaled, time = latents, now.expand(rows)
            if hasattr(scheduler, "scale_model_input"):  # not of flows
                scaled = scheduler.scale_model_input(latents, now)
            predicted = self._predict(scaled, time, condition)
            if self.guidance != 1:
                predicted = guide(predicted, self._predict(scaled, time, self._nothing(rows)), self.guidance)
            latents = scheduler.step(predicted, now, latents, **noise).prev_sample
        pixels = (decode(self.vae, latents).clamp(-1, 1) + 1) / 2
        return resize_pixels(pixels, self.image_size)

    def _condition(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """The text condition (B, L, F) and the pooled one (B, P) that tokens (B, N, D_v) stand for."""
        condition = self.mapper(tokens)
        return condition, self.pool(condition.mean(dim=1)) if self.pool is not None else None

    def _nothing(self, rows: int) -> tuple[Tensor, Tensor | None]:
        """The condition of no text."""
        pooled = self.empty_pooled.expand(rows, -1) if self.pool is not None else None
        return self.empty.expand(rows, -1, -1), pooled

    def _predict_some(self, noisy: Tensor, time: Tensor, condition: tuple[Tensor, Tensor | None]) -> Tensor:
        """Predict with the condition for some rows, drawn at random, and with that of no text for the others.

        The two differ in length, so the denoiser runs twice, each time on its own rows.
        """
        dropped = torch.rand(len(noisy), device=noisy.device) < self.drop
        predicted = torch.empty_like(noisy)
        for rows, (given, pooled) in ((~dropped, condition), (dropped, self._nothing(len(noisy)))):
            if rows.any():
                chosen = given[rows], pooled[rows] if pooled is not None else None
                predicted[rows] = self._predict(noisy[rows], time[rows], chosen)
        return predicted

    def _predict(self, noisy: Tensor, time: Tensor, condition: tuple[Tensor, Tensor | None]) -> Tensor:
        return denoise(self.denoiser, noisy, time, *condition, self.resolution)


def _mapper(
    kind: str,
    dim_in: int,
    num_tokens: int,
    width: int,
    num_queries: int,
    dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
) -> nn.Module:
    """From visual tokens (B, N, D_v) to conditions (B, L, width)."""
    match kind:
        case "none":
            return nn.Identity()
        case "linear":
            return nn.Linear(dim_in, width)
        case "mlp":
            return nn.Sequential(nn.Linear(dim_in, dim), nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, width))
        case _:
            if dim % num_heads:
                raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
            return _Queries(
                dim_in, num_tokens, width, num_queries, dim, depth, num_heads, int(dim * mlp_ratio)
            )


class _Queries(nn.Module):
    """GILL's mapper, with places for the tokens: GILL reads states, which know theirs.

    Shapes: tokens (B, N, D_v) -> (B, L, width).
    """

    def __init__(
        self,
        dim_in: int,
        num_tokens: int,
        width: int,
        num_queries: int,
        dim: int,
        depth: int,
        num_heads: int,
        hidden: int,
    ) -> None:
        super().__init__()
        self.place = Places(num_tokens, dim_in)
        self.embed = nn.Linear(dim_in, dim)
        self.queries = nn.Parameter(torch.randn(1, num_queries, dim))
        self.transformer = nn.Transformer(
            dim, num_heads, depth, depth, hidden, dropout=0.0, batch_first=True, norm_first=True
        )
        self.project = nn.Linear(dim, width)

    def forward(self, tokens: Tensor) -> Tensor:
        queries = self.queries.expand(len(tokens), -1, -1)  # (B, L, dim)
        read = self.transformer(self.embed(self.place(tokens)), queries)  # -> (B, L, dim)
        return self.project(read)
