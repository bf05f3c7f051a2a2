"""Boxes: around what was drawn, in two words, and truly asked and answered for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from lab.config import LOCATION_TASKS, TASKS, Params, check_params
from lab.errors import LabError
from lab.samples.mixture import Mixture
from lab.samples.segments import Sample
from lab.samples.tokenizer import Tokenizer
from lab.scenes.digits import PATCH, load_patches, split_instances
from lab.scenes.language import Language, things_of
from lab.scenes.locations import dequantise, location_words, quantise, read_box, write_box
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import BACKGROUND, COLOUR_NAMES, EMPTY, World, WorldSplit, boxes, compose

FILE = Path(__file__).parents[2] / "experiments" / "ablations" / "smoke" / "params.yaml"
WORLDS = [World(locations=16), World(48, 3, 9, 2, 10), World(70, 5, 10, 1, 35)]
BOX = re.compile(r"<loc_\d+> <loc_\d+>")


def name(world: World) -> str:
    return f"{world.grid}x{world.grid}-{world.locations}"


def tasks_of(world: World, count: int = 120, turns: int = 4) -> SceneTasks:
    digits = load_patches(split_instances(0)["test"], world.variants, 0)
    return SceneTasks(WorldSplit(world, digits, compose(world, digits, count, 1)), turns)


def texts(sample: Sample) -> list[str]:
    """What is said, without markers of turns and ends."""
    return [
        " ".join(word for word in text.split() if not re.fullmatch(r"<[a-z]+>", word))
        for segment in sample.segments
        if (text := segment.text) is not None
    ]


def turns(sample: Sample) -> Iterator[tuple[str, str]]:
    said = texts(sample)[1:]
    yield from zip(said[::2], said[1::2], strict=True)


# -- boxes of what was drawn ---------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS, ids=name)
def test_a_box_is_tight_around_the_pixels_of_its_digit(world: World) -> None:
    split = tasks_of(world).split
    found = boxes(world, split.digits, split.scenes)
    for row, image in enumerate(split.pixels(np.arange(len(split.scenes)))):
        drawn = (image != np.float32(BACKGROUND)).any(axis=0)  # (H, W)
        for cell in range(world.cells):
            top, left = np.array(divmod(cell, world.grid)) * world.cell
            mine = np.zeros_like(drawn)
            mine[top : top + world.cell, left : left + world.cell] = True
            y, x = np.nonzero(drawn & mine)
            if split.scenes.digit[row, cell] == EMPTY:
                assert len(y) == 0
                assert not found[row, cell].any()
            else:
                assert found[row, cell].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_boxes_follow_jitter_and_shape() -> None:
    """Not the cell, nor the patch: sizes and places vary."""
    split = tasks_of(World(variants=4), 400).split
    found = boxes(split.world, split.digits, split.scenes)[split.scenes.digit != EMPTY]
    size = found[:, 2:] - found[:, :2]
    assert size.max() == PATCH
    assert len(np.unique(size[:, 0])) > 4
    assert len(np.unique(found, axis=0)) > 100


# -- words ---------------------------------------------------------------------------------------------------


def every_box(size: int) -> np.ndarray:
    """(K, 4) with every side of whole pixels in x, and a random one in y."""
    low, high = np.triu_indices(size)
    order = np.random.default_rng(0).permutation(len(low))
    return np.stack([low, low[order], high + 1, high[order] + 1], axis=1)


@pytest.mark.parametrize(("size", "bins"), [(32, 32), (32, 16), (32, 8), (32, 10), (48, 7), (30, 2)])
def test_no_side_is_off_by_more_than_half_a_bin(size: int, bins: int) -> None:
    """But for sides within one bin, which the whole bin stands for."""
    world = World(size, 2 if size < 48 else 3, 1, 1, bins)
    true = every_box(size)
    corners = quantise(world, true)
    assert corners.min() >= 0
    assert corners.max() < bins**2
    found = dequantise(world, corners)
    bin_size = size / bins
    for axis in range(2):
        ends = [axis, axis + 2]
        error = np.abs(found - true)[:, ends]
        within = true[:, axis] * bins // size == (true[:, axis + 2] * bins - 1) // size
        assert error[~within].max(initial=0) <= bin_size / 2 + 1e-9
        assert (found[within][:, axis] <= true[within][:, axis] + 1e-9).all()
        assert (found[within][:, axis + 2] >= true[within][:, axis + 2] - 1e-9).all()
        np.testing.assert_allclose(np.diff(found[within][:, ends], axis=1), bin_size)
    np.testing.assert_array_equal(quantise(world, true), quantise(world, true.copy()))


@pytest.mark.parametrize("bins", [32, 16, 8])
def test_bins_are_those_of_kosmos_2(bins: int) -> None:
    """As in transformers, but for boxes narrower than a bin in one direction alone.

    There transformers widens both sides to whole bins, and here only the narrow one is.
    """
    from transformers.models.kosmos2.processing_kosmos2 import (
        coordinate_to_patch_index,
        patch_index_to_coordinate,
    )

    world, compared = World(locations=bins), 0
    for box in every_box(32):
        corners = quantise(world, box)
        assert tuple(corners) == coordinate_to_patch_index(tuple(box / 32), bins)
        (top, bottom), (left, right) = corners // bins, corners % bins
        if (top == bottom) == (left == right):
            compared += 1
            theirs = patch_index_to_coordinate(*corners.tolist(), bins)
            np.testing.assert_allclose(dequantise(world, corners) / 32, theirs, atol=1e-12)
    assert compared > 200


def test_a_box_written_is_read() -> None:
    world = World(locations=8)
    text = write_box(world, np.array([0, 16, 12, 32]))
    assert text == "<loc_32> <loc_58>"
    found = read_box(world, text)
    assert found is not None
    assert found.tolist() == [2, 18, 10, 30]
    narrow = read_box(world, "<loc_9> <loc_25>")
    assert narrow is not None
    assert narrow.tolist() == [4, 6, 8, 14]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<loc_3>",
        "<loc_3> <loc_9> <loc_10>",
        "<loc_3>, <loc_9>",
        "red <loc_3> <loc_9>",
        "<loc_9> <loc_3>",  # above its top
        "<loc_1> <loc_8>",  # left of its left
        "<loc_3> <loc_64>",  # no such bin
        "<loc_-3> <loc_9>",
    ],
)
def test_what_is_no_box_is_not_read(text: str) -> None:
    assert read_box(World(locations=8), text) is None


@pytest.mark.parametrize("bins", [-1, 1, 33])
def test_a_world_refuses_bins_that_say_nothing(bins: int) -> None:
    with pytest.raises(ValueError, match=rf"world\.locations: {bins}; expected 0 .* or 2 to 32 bins"):
        World(locations=bins)


# -- a world with boxes is otherwise the same ----------------------------------------------------------------


def test_words_of_boxes_come_last() -> None:
    without, with_boxes = (Language(World(locations=bins)).vocabulary() for bins in (0, 8))
    assert with_boxes[: len(without)] == without
    assert with_boxes[-64:] == location_words(World(locations=8)) == [f"<loc_{n}>" for n in range(64)]
    assert len(set(with_boxes)) == len(with_boxes)
    assert not any(word.startswith("<loc_") for word in without)


def same(one: Sample, two: Sample) -> bool:
    return one.id == two.id and all(
        (first.text, first.supervised) == (second.text, second.supervised)
        and np.array_equal(first.pixels, second.pixels)
        for first, second in zip(one.segments, two.segments, strict=True)
    )


def test_other_tasks_stay_as_they_are() -> None:
    without, with_boxes = tasks_of(World()), tasks_of(World(locations=16))
    assert list(without.tasks) == list(TASKS)
    # the last two came after the boxes, and have their places in the order behind them
    assert list(with_boxes.tasks) == [*TASKS[:-2], *LOCATION_TASKS, *TASKS[-2:]]
    for task in TASKS:
        assert all(same(without.sample(task, row, 2), with_boxes.sample(task, row, 2)) for row in range(20))
    mixes = [
        Mixture(tasks.sources(), dict.fromkeys(TASKS[:-2], 1.0), 60, 3) for tasks in (without, with_boxes)
    ]
    assert all(same(mixes[0][position], mixes[1][position]) for position in range(60))


# -- tasks ---------------------------------------------------------------------------------------------------


def asked_for(question: str) -> tuple[int, str | None]:
    """The digit of a request, and its colour if it has one."""
    words = question.split()
    return int(next(w for w in words if w.isdigit())), next((w for w in words if w in COLOUR_NAMES), None)


@pytest.mark.parametrize("world", WORLDS, ids=name)
def test_boxes_asked_for_are_those_of_the_digits(world: World) -> None:
    tasks = tasks_of(world)
    drawn = boxes(world, tasks.split.digits, tasks.split.scenes)
    half = world.image_size / world.locations / 2
    for row in range(len(tasks)):
        things = {thing.digit: thing for thing in things_of(tasks.split.scenes, row)}
        pairs = list(turns(tasks.sample("ground", row, 4)))
        assert len(pairs) == min(len(things), tasks.turns)
        assert len({asked_for(question)[0] for question, _ in pairs}) == len(pairs)
        for question, reply in pairs:
            digit, colour = asked_for(question)
            assert colour in (None, things[digit].colour)
            found = read_box(world, reply)
            assert found is not None
            assert np.abs(found - drawn[row, things[digit].cell]).max() <= half + 1e-9  # all wider than a bin


@pytest.mark.parametrize("world", WORLDS, ids=name)
def test_what_is_in_a_box_is_what_was_drawn_there(world: World) -> None:
    tasks = tasks_of(world)
    drawn = boxes(world, tasks.split.digits, tasks.split.scenes)
    for row in range(len(tasks)):
        said = {
            write_box(world, drawn[row, thing.cell]): f"{thing.colour} {thing.digit}"
            for thing in things_of(tasks.split.scenes, row)
        }
        for question, reply in turns(tasks.sample("refer", row, 4)):
            (box,) = BOX.findall(question)
            assert said.pop(box) == reply


@pytest.mark.parametrize("world", WORLDS, ids=name)
def test_a_grounded_caption_is_the_caption_with_boxes(world: World) -> None:
    tasks = tasks_of(world)
    drawn = boxes(world, tasks.split.digits, tasks.split.scenes)
    for row in range(len(tasks)):
        ((_, caption),) = turns(tasks.sample("grounded_caption", row, 4))
        things = things_of(tasks.split.scenes, row)
        assert BOX.findall(caption) == [write_box(world, drawn[row, thing.cell]) for thing in things]
        assert " ".join(BOX.sub("", caption).split()) == tasks.language.caption(things)


@pytest.mark.parametrize("task", LOCATION_TASKS)
def test_samples_are_deterministic_phrased_variously_and_read_one_image(task: str) -> None:
    tasks = tasks_of(World(locations=8), turns=1)
    forms = set()
    for row in range(100):
        sample = tasks.sample(task, row, 1)
        assert same(sample, tasks.sample(task, row, 1))
        assert [part.supervised for part in sample.segments if part.pixels is not None] == [False]
        question, _ = next(turns(sample))
        forms.add(re.sub(rf"{BOX.pattern}|(({'|'.join(COLOUR_NAMES)}) )?\d", "...", question))
    assert len(forms) == (2 if task == "grounded_caption" else 3)


@pytest.mark.parametrize("world", WORLDS, ids=name)
def test_the_vocabulary_covers_them(world: World) -> None:
    tasks = tasks_of(world)
    tokenizer = Tokenizer.of_words(tasks.language.vocabulary())
    for task in LOCATION_TASKS:
        for row in range(len(tasks)):
            for text in texts(tasks.sample(task, row, 0)):
                assert tokenizer.decode(tokenizer.encode(text)) == text  # a location is one word again


def test_one_request_for_evaluation() -> None:
    tasks = tasks_of(World(locations=16))
    ids = set()
    for row in range(len(tasks)):
        sample, box = tasks.box_request(row, 5)
        again, _ = tasks.box_request(row, 5)
        assert same(sample, again)
        ((question, reply),) = turns(sample)
        thing = next(t for t in things_of(tasks.split.scenes, row) if t.digit == asked_for(question)[0])
        drawn = boxes(tasks.split.world, tasks.split.digits, tasks.split.scenes)[row, thing.cell]
        np.testing.assert_array_equal(box, drawn)
        assert reply == write_box(tasks.split.world, box)
        ids |= {sample.id, tasks.sample("ground", row, 5).id}
    assert len(ids) == 2 * len(tasks)  # one id, one content


# -- params --------------------------------------------------------------------------------------------------


def params_with(mix: dict[str, float], **world: int) -> Params:
    tree = yaml.safe_load(FILE.read_text())
    tree["world"] = {key: value for key, value in tree["world"].items() if key != "locations"} | world
    return check_params({**tree, "mixes": {"mine": mix}})


def test_params_without_locations_have_none() -> None:
    assert params_with({"vqa": 1.0}).world.locations == 0


@pytest.mark.parametrize("task", LOCATION_TASKS)
def test_tasks_of_boxes_need_locations(task: str) -> None:
    mix = {"vqa": 1.0, task: 1.0}
    for world in ({}, {"locations": 0}):
        with pytest.raises(LabError) as caught:
            params_with(mix, **world)
        assert str(caught.value) == f"params.yaml: mixes.mine: task '{task}' needs world.locations > 0"
    assert params_with(mix, locations=8).world.locations == 8


def test_a_task_of_boxes_misspelt_is_named() -> None:
    with pytest.raises(LabError, match=r"no task 'grond' \(did you mean 'ground'\?\)"):
        params_with({"grond": 1.0}, locations=8)
