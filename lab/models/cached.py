"""Encoding images once, and what stands in a model for the encoder that did it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from components.contracts import Encoder
from lab.errors import LabError
from lab.models.store import load_component
from lab.samples.batch import images_of
from lab.samples.features import Features, FeatureWriter
from lab.samples.segments import Picture

BATCH = 32  # images encoded at once; always as many, so that their bits depend on nothing but themselves
_CODEBOOK = "codebook.safetensors"


class AbsentEncoder(nn.Module):
    """Has an encoder's counts and none of its weights; in a model whose images are features already.

    Args:
        features: of which folder and record say what the encoder is like.
        folder: where the encoder is that made them; `save_to` copies it.
    """

    def __init__(self, features: Features, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        facts = features.record["encoder"]
        self.dim, self.num_tokens, self.image_size = facts["dim"], facts["num_tokens"], facts["image_size"]
        self.grid: tuple[int, int] | None = None if facts["grid"] is None else tuple(facts["grid"])
        codes = features.folder / _CODEBOOK
        self.codebook: Tensor | None = load_file(codes)["codebook"] if codes.exists() else None

    def forward(self, pixels: Tensor) -> Tensor:
        """Refuse pixels.

        Raises:
            LabError: always.
        """
        raise LabError("the encoder is not loaded, as its features are cached; these pixels have none")

    def loaded(self) -> Encoder:
        """The encoder itself, in eval mode, for what has no features."""
        encoder: Encoder = load_component(self.folder)
        return encoder

    def save_to(self, folder: Path) -> None:
        """Copy the encoder's files, unread."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(self.folder / name, folder / name)


def facts_of(encoder: Any, out: Path) -> dict[str, Any]:
    """What `AbsentEncoder` has to know; a codebook is written to the folder of features."""
    if (codebook := getattr(encoder, "codebook", None)) is not None:
        save_file({"codebook": codebook.detach().cpu().contiguous()}, out / _CODEBOOK)
    grid = None if encoder.grid is None else list(encoder.grid)
    facts = {"dim": encoder.dim, "num_tokens": encoder.num_tokens, "image_size": encoder.image_size}
    return {**facts, "grid": grid}


@torch.no_grad()
def encode(encoder: Encoder, pooled: Callable[[Tensor], Tensor] | None, pixels: Tensor) -> Tensor:
    """Features (I, N, D_v) of up to `BATCH` images (I, 3, H, W), pooled if the connector begins with that."""
    missing = BATCH - len(pixels)
    whole = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)]) if missing else pixels
    tokens = encoder(whole)[: len(pixels)]
    return tokens if pooled is None else pooled(tokens)


def encode_all(
    encode: Callable[[Tensor], Tensor],
    pictures: Sequence[Picture],
    writer: FeatureWriter,
    device: torch.device | str = "cpu",
    known: Sequence[Features] = (),
    said: Callable[[int], None] = lambda done: None,
) -> None:
    """Encode what neither the writer nor earlier features have.

    Args:
        encode: `encode` of an encoder in eval mode, on the device.
        pictures: each asked for once, in order.
        writer: gets their features.
        device: where to encode.
        known: features of the same encoder, from which images are taken that are there.
        said: called with the number of images that are safe, after every shard.
    """
    for first in range(writer.done, len(pictures), BATCH):
        chunk = [pictures[row] for row in range(first, min(first + BATCH, len(pictures)))]
        rows = _taken(known, [picture.key for picture in chunk])
        missing = [number for number in range(len(chunk)) if number not in rows]
        if missing:
            made = encode(images_of([chunk[number] for number in missing]).to(device)).cpu()
            rows |= dict(zip(missing, made, strict=True))
        if writer.add(torch.stack([rows[number] for number in range(len(chunk))])):
            said(writer.done)


def _taken(known: Sequence[Features], keys: Sequence[str]) -> dict[int, Tensor]:
    """Number of an image -> its features (N, D_v), of images that are known."""
    found: dict[int, Tensor] = {}
    for features in known:
        left = [number for number in range(len(keys)) if number not in found]
        there = features.has([keys[number] for number in left])
        here = [number for number, one in zip(left, there, strict=True) if one]
        if here:
            found |= dict(zip(here, features([keys[number] for number in here]), strict=True))
    return found
