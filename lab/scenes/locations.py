"""Boxes in words: a location word names a bin of a grid over the image, and two of them a box.

Paper: Kosmos-2, arXiv:2306.14824. The first word is the bin of the top left corner, the second that of the
bottom right one; a word is read as the centre of its bin, so no side is off by more than half a bin. Bins are
numbered in raster order.
"""

from __future__ import annotations

import re

import numpy as np

from lab.scenes.world import World

_BOX = re.compile(r"<loc_(\d{1,9})> <loc_(\d{1,9})>", re.ASCII)


def location_words(world: World) -> list[str]:
    """The L * L location words of a world with L bins along a side, in raster order."""
    return [f"<loc_{number}>" for number in range(world.locations**2)]


def quantise(world: World, boxes: np.ndarray) -> np.ndarray:
    """The bins of the corners of boxes.

    Args:
        world: with L > 0 bins along a side.
        boxes: (..., 4) int, px: left, top, right, bottom, the last two exclusive, within the image.

    Returns:
        (..., 2) int64, numbers of the top left and of the bottom right bin. A right or bottom edge between
        two bins belongs to the bin before it, that of the box's last pixel.
    """
    bins, size = world.locations, world.image_size
    near = boxes[..., :2] * bins // size  # (..., 2) x, y
    far = -(-boxes[..., 2:] * bins // size) - 1
    corners = np.stack([near, far], axis=-2)  # (..., 2 corners, 2)
    return np.asarray(corners[..., 1] * bins + corners[..., 0], np.int64)


def dequantise(world: World, corners: np.ndarray) -> np.ndarray:
    """The boxes that pairs of bins stand for.

    A side whose two ends are in the same bin is that whole bin: centre to centre it would have no extent.

    Args:
        world: with L > 0 bins along a side.
        corners: (..., 2) int, as `quantise` gives them.

    Returns:
        (..., 4) float64, px: left, top, right, bottom.
    """
    places = np.stack([corners % world.locations, corners // world.locations], axis=-1)  # (..., 2 corners, 2)
    near, far = places[..., 0, :], places[..., 1, :]
    margin = np.where(near == far, 0.5, 0.0)
    found = np.concatenate([near + 0.5 - margin, far + 0.5 + margin], axis=-1)  # (..., 4) bins
    return np.asarray(found * (world.image_size / world.locations))


def write_box(world: World, box: np.ndarray) -> str:
    """A box (4,), px, in two words."""
    first, second = quantise(world, box)
    return f"<loc_{first}> <loc_{second}>"


def read_box(world: World, text: str) -> np.ndarray | None:
    """The box (4,), px, that a text is; None unless it is two location words that enclose something."""
    found = _BOX.fullmatch(text)
    if found is None:
        return None
    corners = np.array([int(number) for number in found.groups()])
    (top, bottom), (left, right) = corners // world.locations, corners % world.locations
    if corners.max() >= world.locations**2 or bottom < top or right < left:
        return None
    return dequantise(world, corners)
