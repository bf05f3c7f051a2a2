"""Scenes: a grid of cells, some of which hold a tinted digit; pixels are rendered on demand.

A scene is kept as integers (which digit image, tint, place in its cell), so a hundred thousand scenes are a
few megabytes, and an edited scene is the same integers with one cell changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lab.scenes.digits import PATCH, DigitPatches, Split, load_patches, split_instances

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (1.0, 0.2, 0.2),
    "green": (0.2, 0.9, 0.25),
    "blue": (0.3, 0.45, 1.0),
    "yellow": (1.0, 0.9, 0.2),
    "purple": (0.8, 0.3, 1.0),
    "white": (1.0, 1.0, 1.0),
}
COLOUR_NAMES = tuple(COLOURS)
BACKGROUND = 0.06  # grey level of an empty pixel
EMPTY = -1


@dataclass(frozen=True)
class World:
    """Geometry and content of scenes.

    Attributes:
        image_size: side of the square image, px.
        grid: cells along a side.
        max_digits: a scene holds 1 to this many digits (all different), at most one a cell.
        variants: distorted variants of each digit image.
        locations: location bins along a side, which boxes are said in (see lab/scenes/locations.py); 0: none.
    """

    image_size: int = 32
    grid: int = 2
    max_digits: int = 4
    variants: int = 8
    locations: int = 0

    def __post_init__(self) -> None:
        if self.image_size % self.grid or self.cell < PATCH:
            raise ValueError(
                f"world: {self.grid} cells of at least {PATCH} px do not fill an image of "
                f"{self.image_size} px evenly"
            )
        if not 1 <= self.max_digits <= min(10, self.cells):
            raise ValueError(
                f"world.max_digits: {self.max_digits}; a scene of {self.cells} cells holds 1 to "
                f"{min(10, self.cells)} different digits"
            )
        if self.locations and not 2 <= self.locations <= self.image_size:
            raise ValueError(
                f"world.locations: {self.locations}; expected 0 (no location words), or 2 to "
                f"{self.image_size} bins along a side of {self.image_size} px"
            )

    @property
    def cell(self) -> int:
        """Side of a cell, px."""
        return self.image_size // self.grid

    @property
    def cells(self) -> int:
        return self.grid * self.grid


@dataclass(frozen=True)
class Scenes:
    """Specifications of S scenes, one row a scene, one column a cell in raster order (C cells).

    Attributes:
        digit: (S, C) int8, 0-9, or EMPTY.
        colour: (S, C) int8, index into COLOUR_NAMES (meaningless where empty, likewise below).
        instance: (S, C) int16, row of the split's DigitPatches.
        variant: (S, C) int8, distorted variant.
        offset: (S, C, 2) int8, px from the cell's top left corner.
        brightness: (S, C) float32 in [0.75, 1].
    """

    digit: np.ndarray
    colour: np.ndarray
    instance: np.ndarray
    variant: np.ndarray
    offset: np.ndarray
    brightness: np.ndarray

    def __len__(self) -> int:
        return len(self.digit)

    def take(self, rows: np.ndarray) -> Scenes:
        """The given scenes, copied."""
        return Scenes(
            self.digit[rows],
            self.colour[rows],
            self.instance[rows],
            self.variant[rows],
            self.offset[rows],
            self.brightness[rows],
        )


def stacked(scenes: Sequence[Scenes]) -> Scenes:
    """Several sets of scenes as one."""
    names = Scenes.__dataclass_fields__
    return Scenes(**{name: np.concatenate([getattr(one, name) for one in scenes]) for name in names})


def compose(world: World, digits: DigitPatches, count: int, seed: int) -> Scenes:
    """Draws scenes: number of digits n with a probability in proportion to n, the rest uniform.

    Full scenes are frequent because they teach most: where one digit stands alone, knowing what a scene
    contains answers every question, and nothing has to be looked up by its place. Digits differ within a
    scene.
    """
    rng = np.random.default_rng(seed)
    shape = (count, world.cells)
    numbers = np.arange(1, world.max_digits + 1)
    number = rng.choice(numbers, count, p=numbers / numbers.sum())
    occupied = rng.random(shape).argsort(axis=1) < number[:, None]  # (S, C), `number` random cells a scene
    digit = rng.random((count, 10)).argsort(axis=1)[:, : world.cells]  # (S, C) different digits
    if world.cells > 10:
        digit = np.pad(digit, ((0, 0), (0, world.cells - 10)))
        order = np.where(occupied, np.cumsum(occupied, axis=1) - 1, 0)
        digit = np.take_along_axis(digit, order, axis=1)
    by_digit = [np.flatnonzero(digits.labels == value) for value in range(10)]
    pick = rng.random(shape)
    sizes = np.array([len(rows) for rows in by_digit])
    table = np.full((10, sizes.max()), -1)
    for value, rows in enumerate(by_digit):
        table[value, : len(rows)] = rows
    instance = table[digit, (pick * sizes[digit]).astype(np.int64)]
    return Scenes(
        digit=np.where(occupied, digit, EMPTY).astype(np.int8),
        colour=rng.integers(0, len(COLOURS), shape).astype(np.int8),
        instance=instance.astype(np.int16),
        variant=rng.integers(0, digits.patches.shape[1], shape).astype(np.int8),
        offset=rng.integers(0, world.cell - PATCH + 1, (*shape, 2)).astype(np.int8),
        brightness=rng.uniform(0.75, 1.0, shape).astype(np.float32),
    )


def render(world: World, digits: DigitPatches, scenes: Scenes) -> np.ndarray:
    """Pixels of the scenes, (S, 3, H, W) float32 in [0, 1]."""
    count, cells, side = len(scenes), world.cells, world.cell
    row, column = np.nonzero(scenes.digit != EMPTY)
    patch = digits.patches[scenes.instance[row, column], scenes.variant[row, column]].astype(np.float32) / 255
    patch *= scenes.brightness[row, column][:, None, None]  # (K, PATCH, PATCH)
    ink = np.zeros((count, cells, side, side), np.float32)
    y = scenes.offset[row, column, 0][:, None, None] + _WITHIN[:, None]
    x = scenes.offset[row, column, 1][:, None, None] + _WITHIN
    ink[row[:, None, None], column[:, None, None], y, x] = patch
    tint = _TINTS[scenes.colour]  # (S, C, 3)
    pixels = BACKGROUND + ink[:, :, None] * (tint[..., None, None] - BACKGROUND)  # (S, C, 3, h, w)
    pixels = pixels.reshape(count, world.grid, world.grid, 3, side, side)
    return pixels.transpose(0, 3, 1, 4, 2, 5).reshape(count, 3, world.image_size, world.image_size)


_WITHIN = np.arange(PATCH)  # px of a patch along a side
_TINTS = np.array(list(COLOURS.values()), np.float32)  # (colours, 3)


def boxes(world: World, digits: DigitPatches, scenes: Scenes) -> np.ndarray:
    """The tight box of every digit: around all pixels that `render` gives another value than background.

    Returns:
        (S, C, 4) int64, px from the image's top left corner: left, top, right, bottom, of which the last two
        are exclusive; zeros where a cell is empty.
    """
    row, column = np.nonzero(scenes.digit != EMPTY)
    ink = digits.patches[scenes.instance[row, column], scenes.variant[row, column]] > 0  # (K, PATCH, PATCH)
    cell = np.stack([column % world.grid, column // world.grid], axis=1) * world.cell  # (K, 2) x, y
    corner = cell + scenes.offset[row, column, ::-1]  # (K, 2) x, y of the patch
    inked = np.stack([ink.any(axis=1), ink.any(axis=2)], axis=1)  # (K, 2, PATCH) columns, rows
    first, last = inked.argmax(axis=2), PATCH - inked[..., ::-1].argmax(axis=2)  # (K, 2) each
    found = np.zeros((*scenes.digit.shape, 4), np.int64)
    found[row, column] = np.concatenate([corner + first, corner + last], axis=1)
    return found


@dataclass(frozen=True)
class WorldSplit:
    """One split of the world: its digits and its scenes."""

    world: World
    digits: DigitPatches
    scenes: Scenes

    @cached_property
    def _seed_of_keys(self) -> bytes:
        """Names all that pixels depend on beside a scene."""
        parts = [repr(self.world).encode(), *(array.tobytes() for array in vars(self.digits).values())]
        return hashlib.sha256(b"".join(parts)).digest()

    def key(self, scene: Scenes) -> str:
        """Names the image of one scene, 32 hex digits: equal keys mean equal pixels."""
        parts = [getattr(scene, name).tobytes() for name in scene.__dataclass_fields__]
        return hashlib.sha256(b"".join([self._seed_of_keys, *parts])).hexdigest()[:32]

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), 3, H, W) float32 in [0, 1]."""
        return render(self.world, self.digits, self.scenes.take(rows))


def write_world(folder: Path, world: World, counts: dict[Split, int], seed: int) -> None:
    """Composes every split and writes it: `digits-<split>.npz` and `scenes-<split>.npz`."""
    for number, (split, instances) in enumerate(split_instances(seed).items()):
        digits = load_patches(instances, world.variants, seed + number)
        scenes = compose(world, digits, counts[split], seed + 101 * (number + 1))
        np.savez(folder / f"digits-{split}.npz", **vars(digits))
        np.savez(folder / f"scenes-{split}.npz", **vars(scenes))


def read_split(folder: Path, world: World, split: Split) -> WorldSplit:
    """Reads what `write_world` wrote."""
    with np.load(folder / f"digits-{split}.npz") as stored:
        digits = DigitPatches(**stored)
    with np.load(folder / f"scenes-{split}.npz") as stored:
        scenes = Scenes(**stored)
    return WorldSplit(world, digits, scenes)
