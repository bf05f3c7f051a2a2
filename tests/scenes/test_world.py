"""Composition and rendering of scenes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lab.scenes.digits import PATCH, SPLITS, load_patches, split_instances
from lab.scenes.world import (
    BACKGROUND,
    COLOURS,
    EMPTY,
    Scenes,
    World,
    WorldSplit,
    compose,
    read_split,
    render,
    write_world,
)

WORLDS = [World(), World(48, 3, 9, 2), World(28, 2, 2, 1), World(45, 3, 1, 1), World(70, 5, 10, 1)]


def name(world: World) -> str:
    return f"{world.grid}x{world.grid}-at-{world.image_size}"


def made(world: World, count: int = 200, seed: int = 0) -> WorldSplit:
    digits = load_patches(split_instances(0)["test"], world.variants, seed)
    return WorldSplit(world, digits, compose(world, digits, count, seed))


def test_two_writes_of_one_seed_are_equal_byte_for_byte(tmp_path: Path) -> None:
    counts = dict.fromkeys(SPLITS, 50)
    world = World(variants=2)
    for folder, seed in (("one", 7), ("two", 7), ("other", 8)):
        (tmp_path / folder).mkdir()
        write_world(tmp_path / folder, world, counts, seed)
    for split in SPLITS:
        one, two, other = (read_split(tmp_path / folder, world, split) for folder in ("one", "two", "other"))
        for part in ("digits", "scenes"):
            for field, value in vars(getattr(one, part)).items():
                again = getattr(getattr(two, part), field)
                assert value.dtype == again.dtype
                assert value.tobytes() == again.tobytes(), (split, field)
        assert one.scenes.offset.tobytes() != other.scenes.offset.tobytes()
        assert set(one.digits.instances) != set(other.digits.instances)


def test_splits_share_no_scene_content(tmp_path: Path) -> None:
    world = World(variants=2)
    write_world(tmp_path, world, dict.fromkeys(SPLITS, 200), 0)
    used = []
    for split in SPLITS:
        stored = read_split(tmp_path, world, split)
        occupied = stored.scenes.digit != EMPTY
        used.append(set(stored.digits.instances[stored.scenes.instance[occupied]].tolist()))
    assert not used[0] & used[1]
    assert not used[0] & used[2]
    assert not used[1] & used[2]


@pytest.mark.parametrize("world", WORLDS, ids=name)
def test_scenes_hold_one_to_max_different_digits(world: World) -> None:
    split = made(world, 400)
    scenes = split.scenes
    occupied = scenes.digit != EMPTY
    assert scenes.digit.shape == (400, world.cells)
    assert set(occupied.sum(axis=1)) == set(range(1, world.max_digits + 1))
    for row in range(400):
        digits = scenes.digit[row][occupied[row]].tolist()
        assert len(set(digits)) == len(digits)
    np.testing.assert_array_equal(split.digits.labels[scenes.instance[occupied]], scenes.digit[occupied])
    assert occupied.any(axis=0).all()  # every cell is used
    assert set(scenes.digit[occupied].tolist()) == set(range(10))
    assert set(scenes.colour[occupied].tolist()) == set(range(len(COLOURS)))


@pytest.mark.parametrize("world", WORLDS, ids=name)
def test_empty_cells_are_background_and_full_ones_are_not(world: World) -> None:
    split = made(world)
    pixels = split.pixels(np.arange(200))
    assert pixels.shape == (200, 3, world.image_size, world.image_size)
    assert pixels.dtype == np.float32
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    for row in range(200):
        for cell in range(world.cells):
            content = crop(world, pixels[row], cell)
            if split.scenes.digit[row, cell] == EMPTY:
                assert (content == np.float32(BACKGROUND)).all()
            else:
                assert (np.abs(content - BACKGROUND) > 0.2).any()


def test_a_cell_shows_its_digit_in_its_colour_at_its_offset() -> None:
    world = World()
    split = made(world)
    rows, cells = np.nonzero(split.scenes.digit != EMPTY)
    pixels = split.pixels(np.arange(200))
    for row, cell in zip(rows[:100], cells[:100], strict=True):
        scenes = split.scenes
        patch = split.digits.patches[scenes.instance[row, cell], scenes.variant[row, cell]] / 255
        ink = np.zeros((world.cell, world.cell))
        y, x = scenes.offset[row, cell]
        ink[y : y + PATCH, x : x + PATCH] = patch * scenes.brightness[row, cell]
        tint = list(COLOURS.values())[scenes.colour[row, cell]]
        expected = [ink * channel + (1 - ink) * BACKGROUND for channel in tint]
        np.testing.assert_allclose(crop(world, pixels[row], cell), np.stack(expected), atol=1e-6)


def test_a_changed_cell_changes_nothing_else() -> None:
    world = World(48, 3, 9, 2)
    split = made(world, 30)
    row, cell = 4, int(np.flatnonzero(split.scenes.digit[4] != EMPTY)[0])
    colour = split.scenes.colour.copy()
    colour[row, cell] = (colour[row, cell] + 1) % len(COLOURS)
    before = split.pixels(np.arange(30))
    after = render(world, split.digits, replace(split.scenes, colour=colour))
    changed = np.argwhere((before != after).any(axis=1))
    assert set(changed[:, 0]) == {row}
    top, left = np.array(divmod(cell, world.grid)) * world.cell
    assert changed[:, 1].min() >= top
    assert changed[:, 1].max() < top + world.cell
    assert changed[:, 2].min() >= left
    assert changed[:, 2].max() < left + world.cell


def test_taken_scenes_are_copies() -> None:
    split = made(World(), 10)
    before = split.scenes.digit.copy()
    split.scenes.take(np.array([3])).digit[:] = 9
    np.testing.assert_array_equal(split.scenes.digit, before)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"image_size": 33}, "image"),
        ({"grid": 3}, "image"),
        ({"max_digits": 5}, "max_digits"),
        ({"max_digits": 0}, "max_digits"),
        ({"image_size": 80, "grid": 5, "max_digits": 11}, "max_digits"),
    ],
)
def test_an_impossible_world_says_why(settings: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        World(**settings)


def crop(world: World, picture: np.ndarray, cell: int) -> np.ndarray:
    """(3, h, w) of one cell."""
    y, x = np.array(divmod(cell, world.grid)) * world.cell
    return picture[:, y : y + world.cell, x : x + world.cell]


def test_composing_is_a_pure_function_of_its_seed() -> None:
    digits = load_patches(split_instances(0)["test"], 2, 0)
    one, two, other = (compose(World(), digits, 20, seed) for seed in (3, 3, 4))
    for field in Scenes.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    assert (one.digit != other.digit).any()
