"""Batches for stages that need images alone: encoder pretraining and image decoder training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lab.samples.tokenizer import Tokenizer
from lab.scenes.language import Language, Thing, things_of
from lab.scenes.world import EMPTY, WorldSplit


class Rows(Dataset[int]):
    """Scene rows in a fresh random order every epoch, as a pure function of (seed, position)."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self.count)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
        return int(self._order[index])


@dataclass(frozen=True)
class Pixels:
    """Images to reconstruct: pixels_drawn (B, 3, H, W) in [0, 1]; sample_ids B names."""

    pixels_drawn: Tensor
    sample_ids: tuple[str, ...]

    def to(self, device: torch.device | str) -> Pixels:
        return replace(self, pixels_drawn=self.pixels_drawn.to(device))


@dataclass(frozen=True)
class CaptionedRegions:
    """Images with captions and region phrases.

    Attributes:
        pixels: (B, 3, H, W) in [0, 1].
        captions: (B, L) ids, 0 is padding.
        phrases: (U, L') ids of the batch's different region phrases, 0 is padding.
        phrase_of: (B, C) index into `phrases` of each cell of a square grid, raster order.
        occupied: (B, C) cells that hold something.
        sample_ids: B names.
    """

    pixels: Tensor
    captions: Tensor
    phrases: Tensor
    phrase_of: Tensor
    occupied: Tensor
    sample_ids: tuple[str, ...]

    def to(self, device: torch.device | str) -> CaptionedRegions:
        """The batch on another device."""
        tensors = ("pixels", "captions", "phrases", "phrase_of", "occupied")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})


class PixelCollate:
    """Scene rows to images."""

    def __init__(self, split: WorldSplit) -> None:
        self.split = split

    def __call__(self, rows: Sequence[int]) -> Pixels:
        return Pixels(
            torch.from_numpy(self.split.pixels(np.array(rows))), tuple(f"scene/{row}" for row in rows)
        )


class RegionCollate:
    """Scene rows to images with captions, and a phrase a cell ("top-left red 3", "top-right empty cell")."""

    def __init__(self, split: WorldSplit, language: Language, tokenizer: Tokenizer) -> None:
        self.split, self.language, self.tokenizer = split, language, tokenizer

    def __call__(self, rows: Sequence[int]) -> CaptionedRegions:
        scenes = self.split.scenes.take(np.array(rows))
        captions, phrases = [], []
        for row in range(len(scenes)):
            things = things_of(scenes, row)
            captions.append(self.tokenizer.encode(self.language.caption(things)))
            phrases.append(self._phrases(things))
        known = {phrase: index for index, phrase in enumerate(sorted({p for row in phrases for p in row}))}
        return CaptionedRegions(
            pixels=torch.from_numpy(self.split.pixels(np.array(rows))),
            captions=_padded(captions),
            phrases=_padded([self.tokenizer.encode(phrase) for phrase in known]),
            phrase_of=torch.tensor([[known[phrase] for phrase in row] for row in phrases]),
            occupied=torch.from_numpy(scenes.digit != EMPTY),
            sample_ids=tuple(f"scene/{row}" for row in rows),
        )

    def _phrases(self, things: Sequence[Thing]) -> list[str]:
        return self.language.listing(things).split(" , ")


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """(K, L) int64, 0 where a row has ended."""
    table = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return torch.from_numpy(table)
