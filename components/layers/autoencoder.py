"""What the encoders and image decoders that are halves of a diffusers autoencoder share."""

from __future__ import annotations

from math import isqrt, pi
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.layers.pretrained import load

__all__ = ["build", "cosine_decoder", "cosine_encoder", "levels_of", "to_grid", "to_tokens"]


def build(
    source: Literal["VQModel", "AutoencoderKL"],
    path: str | None,
    subfolder: str | None,
    levels: int,
    channels: int,
    multipliers: list | None,
    layers: int,
    attention: Literal["none", "middle", "coarsest"],
    shortcut: bool,
    **settings: Any,
) -> Any:
    """Load an autoencoder of diffusers from `path`, or build it with new weights.

    Args:
        source: its class.
        path: local folder or name on the hub; None builds anew, and only then what follows counts.
        subfolder: folder of the autoencoder within `path`, such as "vae" in a pipeline's.
        levels: sides of feature maps, each half of the one before.
        channels: width at full resolution.
        multipliers: the width of each level relative to `channels`; None is 1, 2, 4, 4, ...
        layers: residual blocks a level in the encoder; the decoder has one more, as published ones have.
        attention: where feature maps attend to themselves: nowhere, between encoder's and decoder's coarsest
            blocks ("middle"), or also in those blocks ("coarsest").
        shortcut: let both halves start small beside a shortcut that is added to them.
        settings: passed on to a new one.
    """
    import diffusers

    if path is not None:
        return _pretrained(getattr(diffusers, source), path, subfolder)
    if channels % 4:
        raise ValueError(f"channels {channels} is not a multiple of 4, the width of a group of its norms")
    multipliers = multipliers or [min(2**level, 4) for level in range(levels)]
    if len(multipliers) != levels:
        raise ValueError(
            f"multipliers {multipliers}: {levels} are needed to halve the side {levels - 1} times"
        )
    coarsest = "Attn" if attention == "coarsest" else ""
    model = getattr(diffusers, source)(
        block_out_channels=[channels * multiplier for multiplier in multipliers],
        down_block_types=["DownEncoderBlock2D"] * (levels - 1) + [f"{coarsest}DownEncoderBlock2D"],
        up_block_types=[f"{coarsest}UpDecoderBlock2D"] + ["UpDecoderBlock2D"] * (levels - 1),
        layers_per_block=layers,
        mid_block_add_attention=attention != "none",
        norm_num_groups=min(32, channels // 4),
        **settings,
    )
    if shortcut:
        for half in (model.encoder, model.decoder):
            half.conv_out.weight.data.mul_(0.1)
    return model


def _pretrained(source: Any, path: str, subfolder: str | None) -> Any:
    place: dict[str, str] = {} if subfolder is None else {"subfolder": subfolder}
    folder = Path(path).expanduser()
    if subfolder is not None and folder.is_dir():  # diffusers reads the folder itself if the subfolder lacks
        path, place = str(folder.resolve() / subfolder), {}
    model = load(
        source,
        path,
        f"{source.__name__} of diffusers",
        torch_dtype=torch.float32,
        output_loading_info=True,
        **place,
    )
    return model.train()  # like a new one; diffusers gives it in eval mode


def levels_of(factor: int) -> int:
    """Levels of an autoencoder that shrinks the side of an image by a factor: one, and one a halving.

    Raises:
        ValueError: the factor is not a power of 2.
    """
    if factor < 1 or factor & (factor - 1):
        raise ValueError(f"the image's side can be halved some times, not divided by {factor}")
    return factor.bit_length()


def to_tokens(latents: Tensor, patch: int = 1) -> Tensor:
    """Latents (B, C, h, w) as tokens (B, N, C * patch^2) in raster order, patch x patch places to each."""
    return functional.pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)


def to_grid(tokens: Tensor, patch: int = 1) -> Tensor:
    """Undo `to_tokens` for a square grid."""
    rows = isqrt(tokens.shape[1])
    return functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (rows, rows)), patch)


def cosine_encoder(width: int, side: int) -> nn.Module:
    """A linear map of patches to features, (B, 3, H, W) -> (B, width, H / side, W / side).

    It begins as the coarse terms of a discrete cosine transform, of about unit deviation, and
    `cosine_decoder` as its inverse. The two halves of an autoencoder therefore agree before they are trained:
    what they draw is at once a blurred image, where convolutions alone take hundreds of steps to leave the
    mean image.
    """
    linear = nn.Conv2d(3, width, side, stride=side, bias=False)
    linear.weight.data.copy_(_cosines(width, side) / 2)  # (width, 3, side, side)
    return linear


def cosine_decoder(width: int, side: int) -> nn.Module:
    """A linear map of features to patches, (B, width, h, w) -> (B, 3, h * side, w * side)."""
    linear = nn.ConvTranspose2d(width, 3, side, stride=side, bias=False)
    linear.weight.data.copy_(_cosines(width, side) * 2)  # (width, 3, side, side)
    return linear


def _cosines(count: int, side: int) -> Tensor:
    """The first terms of a patch's discrete cosine transform, coarse ones and brightness first.

    Returns:
        Orthonormal patterns (count, 3, side, side); those beyond the 3 * side^2 that there are, zeros.
    """
    places = (torch.arange(side) + 0.5) * pi / side
    waves = functional.normalize(torch.cos(torch.arange(side)[:, None] * places), dim=1)  # (side, side)
    colours = functional.normalize(torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]]), dim=1)
    terms = sorted(
        (
            row + column + 1.5 * (colour > 0),
            row,
            column,
            colour,
        )  # the eye sees colour coarser, as JPEG has it
        for row in range(side)
        for column in range(side)
        for colour in range(3)
    )
    patterns = torch.zeros(count, 3, side, side)
    for pattern, (_, row, column, colour) in zip(patterns, terms, strict=False):
        pattern += colours[colour][:, None, None] * waves[row][:, None] * waves[column]
    return patterns
