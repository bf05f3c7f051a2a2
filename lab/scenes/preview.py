"""A picture of the data for people: some scenes of each split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from lab.scenes.digits import SPLITS
from lab.scenes.world import World, read_split


def write_preview(folder: Path, world: World, rows: int = 3, columns: int = 12) -> None:
    """Writes `preview-<split>.png`, scenes enlarged twice."""
    for split in SPLITS:
        stored = read_split(folder, world, split)
        pixels = stored.pixels(np.arange(min(rows * columns, len(stored.scenes))))
        tile(pixels, columns).resize(
            (columns * world.image_size * 2, -(-len(pixels) // columns) * world.image_size * 2),
            Image.Resampling.NEAREST,
        ).save(folder / f"preview-{split}.png")


def tile(pixels: np.ndarray, columns: int) -> Image.Image:
    """Images (K, 3, H, W) in [0, 1] side by side."""
    count, _, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = np.ones((rows * columns, 3, height, width), np.float32)
    sheet[:count] = pixels
    sheet = sheet.reshape(rows, columns, 3, height, width).transpose(0, 3, 1, 4, 2)
    return Image.fromarray(
        (sheet.reshape(rows * height, columns * width, 3).clip(0, 1) * 255).round().astype(np.uint8)
    )
