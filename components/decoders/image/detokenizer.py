"""Detokenizer: learned queries turn visual tokens into the conditions that another image decoder understands.

Paper: VL-GPT, arXiv:2312.09251, section 3.1

In the paper that other decoder is a frozen diffusion model, IP-Adapter Plus, with an image and a text
condition. It takes no part in training the detokenizer, which is fitted to the conditions alone. Here it is
any image decoder that reads the image condition, and the text condition serves the fit only.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from components.layers.places import Places

__all__ = ["Detokenizer"]


class Detokenizer(nn.Module):
    """A transformer decoder from visual tokens to an image condition and, if asked for, a text condition.

    VL-GPT: `depth: 12`, conditions of the frozen diffusion model's image and text encoders.

    Args:
        dim_in: width of the visual tokens, D_v.
        num_tokens: visual tokens, N.
        image_size: side of the image in pixels.
        image_tokens: length of the image condition, C.
        image_dim: its width, E.
        text_tokens: length of the text condition, L; 0 for none.
        text_dim: its width, F.
        image_weight: of the image condition's squared error.
        text_weight: of the text condition's.
        dim: width of the blocks.
        depth: blocks of self-attention, cross-attention and MLP.
        num_heads: attention heads.
        mlp_ratio: hidden width of a block's MLP, relative to `dim`.
        pixels: word of the image decoder that reads the image condition.
        pixel_settings: its settings.

    Shapes: tokens (B, N, D_v) -> pixels (B, 3, H, W).
    """

    def __init__(
        self,
        dim_in: int,
        num_tokens: int,
        image_size: int,
        *,
        image_tokens: int = 16,
        image_dim: int = 128,
        text_tokens: int = 0,
        text_dim: int = 128,
        image_weight: float = 1.0,
        text_weight: float = 1.0,
        dim: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        pixels: str = "transformer",
        pixel_settings: dict | None = None,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.image_tokens, self.text_tokens = image_tokens, text_tokens
        self.image_weight, self.text_weight = image_weight, text_weight
        self.place = Places(num_tokens, dim_in)
        self.embed = nn.Linear(dim_in, dim)
        self.queries = nn.Parameter(torch.randn(image_tokens + text_tokens, dim) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerDecoderLayer(
                dim, num_heads, int(dim * mlp_ratio), 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.image = nn.Linear(dim, image_dim)
        self.text = nn.Linear(dim, text_dim) if text_tokens else None
        self.pixels = _decoder(pixels, image_dim, image_tokens, image_size, pixel_settings or {})

    def conditions(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Estimate the image condition (B, C, E) and the text condition (B, L, F) from tokens (B, N, D_v)."""
        memory = self.embed(self.place(tokens))  # (B, N, D_v) -> (B, N, dim)
        x = self.queries.expand(len(tokens), -1, -1)  # (B, C + L, dim)
        for block in self.blocks:
            x = block(x, memory)
        x = self.norm(x)
        image = self.image(x[:, : self.image_tokens])
        return image, self.text(x[:, self.image_tokens :]) if self.text is not None else None

    def condition_loss(self, tokens: Tensor, image: Tensor, text: Tensor | None = None) -> Tensor:
        """Weighted squared errors (B,) of the conditions estimated from tokens (B, N, D_v).

        Args:
            tokens: (B, N, D_v).
            image: (B, C, E), what the frozen model's own image encoder gives.
            text: (B, L, F), what its text encoder gives; None leaves the term out.
        """
        estimated, said = self.conditions(tokens)
        loss = self.image_weight * (estimated - image).square().mean(dim=(1, 2))
        if text is None:
            return loss
        if said is None:
            raise ValueError("a text condition was given, but text_tokens is 0")
        return loss + self.text_weight * (said - text).square().mean(dim=(1, 2))

    def loss(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Loss (B,) of the other decoder on pixels (B, 3, H, W) in [0, 1], given the image condition."""
        return self.pixels.loss(self.conditions(tokens)[0], pixels)

    def sample(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Let the other decoder draw pixels (B, 3, H, W) in [0, 1] from the image condition."""
        return self.pixels.sample(self.conditions(tokens)[0], generator)


def _decoder(word: str, dim: int, num_tokens: int, image_size: int, settings: dict[str, Any]) -> Any:
    """Build the image decoder of this word."""
    try:
        module = import_module(f"{__package__}.{word}")
    except ModuleNotFoundError as error:
        raise ValueError(f"pixels: no image decoder '{word}'") from error
    try:
        return getattr(module, module.__all__[0])(dim, num_tokens, image_size, **settings)
    except TypeError as error:
        raise ValueError(f"pixels {word}: {error}") from error
