"""Samples of every task: what is read, what is produced, and that both tell the truth."""

from __future__ import annotations

import numpy as np
import pytest

from lab.scenes.language import things_of
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import BACKGROUND, COLOURS, EMPTY


def test_equal_arguments_give_equal_samples(tasks: SceneTasks) -> None:
    for task in tasks.tasks:
        one, two, other = (tasks.sample(task, 5, seed) for seed in (1, 1, 2))
        assert one.id == two.id != other.id
        assert len(one.segments) == len(two.segments)
        for first, second in zip(one.segments, two.segments, strict=True):
            assert (first.text, first.supervised) == (second.text, second.supervised)
            if first.pixels is not None:
                np.testing.assert_array_equal(first.pixels, second.pixels)


@pytest.mark.parametrize("task", ["caption", "inventory", "vqa", "listing"])
def test_understanding_reads_the_image_and_produces_text_alone(tasks: SceneTasks, task: str) -> None:
    sample = tasks.sample(task, 7, 0)
    images = [segment for segment in sample.segments if segment.pixels is not None]
    assert len(images) == 1
    assert not images[0].supervised
    np.testing.assert_array_equal(images[0].pixels, tasks.split.pixels(np.array([7]))[0])
    produced = [segment for segment in sample.segments if segment.supervised]
    assert produced
    assert all(segment.text and segment.ends for segment in produced)


def test_text_holds_no_image(tasks: SceneTasks) -> None:
    assert all(segment.pixels is None for segment in tasks.sample("text", 3, 0).segments)


def test_a_document_captions_each_of_its_images(tasks: SceneTasks) -> None:
    counts = set()
    for row in range(20):
        _, *segments = tasks.sample("documents", row, 0).segments
        images, captions = segments[::2], segments[1::2]
        counts.add(len(images))
        assert all(image.pixels is not None and not image.supervised for image in images)
        assert all(caption.text and caption.supervised for caption in captions)
        assert captions[0].text == tasks.sample("caption", row, 0).segments[-1].text  # of its own image
    assert counts == {2, 3}


def test_examples_tell_what_is_asked_and_nothing_else_does(tasks: SceneTasks) -> None:
    lengths, kinds, prompts = set(), set(), set()
    for row in range(40):
        _, *segments = tasks.sample("by_example", row, 0).segments
        images, questions, replies = segments[::3], segments[1::3], segments[2::3]
        lengths.add(len(images))
        prompts |= {question.text for question in questions}
        assert [reply.supervised for reply in replies] == [False, *[True] * (len(images) - 1)]
        told = set()
        for image, reply in zip(images, replies, strict=True):
            assert reply.text
            assert image.pixels is not None
            place, colour, digit, _, said = reply.text.split()
            assert colour == colour_of(image.pixels)
            told.add({place: "place", colour: "colour", digit: "digit"}[said])
        assert len(told) == 1
        kinds |= told
    assert lengths == {2, 3, 4, 5}
    assert kinds == {"colour", "digit", "place"}
    assert len(prompts) == 1


@pytest.mark.parametrize("shots", [0, 1, 4])
def test_a_question_has_as_many_examples_as_wanted(tasks: SceneTasks, shots: int) -> None:
    _, *segments = tasks.question_by_example(5, 3, shots).segments
    assert [segment.supervised for segment in segments] == [False] * (3 * shots + 2) + [True]
    assert all(segment.picture for segment in segments[::3])


def colour_of(pixels: np.ndarray) -> str:
    """The colour of the one digit of an image (3, H, W)."""
    brightest = pixels.reshape(3, -1)[:, pixels.sum(axis=0).argmax()]
    hue = (brightest - BACKGROUND) / (brightest.max() - BACKGROUND)
    return min(COLOURS, key=lambda name: float(np.abs(np.array(COLOURS[name]) - hue).sum()))


def test_a_plan_stands_before_the_image_but_where_none_is_asked_for(tasks: SceneTasks) -> None:
    planned, at_once = (tasks.sample(task, 4, 0).segments for task in ("text_to_image", "draw"))
    assert [segment.supervised for segment in planned] == [False, False, True, True, True]
    assert [segment.supervised for segment in at_once] == [False, False, True, True]
    assert at_once[2].pixels is not None


@pytest.mark.parametrize("task", ["text_to_image", "draw"])
def test_a_prompt_never_shows_the_image_to_draw(tasks: SceneTasks, task: str) -> None:
    sample = tasks.sample(task, 7, 0)
    images = [segment for segment in sample.segments if segment.pixels is not None]
    assert [segment.supervised for segment in images] == [True]
    np.testing.assert_array_equal(images[0].pixels, tasks.split.pixels(np.array([7]))[0])


def test_interleaved_reads_one_scene_and_draws_another(tasks: SceneTasks) -> None:
    images = [segment for segment in tasks.sample("interleaved", 7, 0).segments if segment.pixels is not None]
    assert [segment.supervised for segment in images] == [False, True]


def test_an_edit_changes_one_cell_and_keeps_its_digit(tasks: SceneTasks) -> None:
    """Recoloured or removed; the same digit image, in the same place, and all else bit for bit."""
    world, scenes = tasks.split.world, tasks.split.scenes
    removed = 0
    for row in range(100):
        sample = tasks.sample("edit", row, seed=2)
        source, target = (segment.pixels for segment in sample.segments if segment.pixels is not None)
        assert source is not None
        assert target is not None
        after = tasks.edited(row, seed=2)
        before = scenes.take(np.array([row]))
        for field in ("instance", "variant", "offset", "brightness"):
            np.testing.assert_array_equal(getattr(before, field), getattr(after, field))
        different = (before.digit != after.digit) | (before.colour != after.colour)
        assert different.sum() == 1
        cell = int(np.flatnonzero(different[0])[0])
        assert before.digit[0, cell] != EMPTY
        assert after.digit[0, cell] in (EMPTY, before.digit[0, cell])
        assert (after.digit[0] != EMPTY).any()
        removed += after.digit[0, cell] == EMPTY
        y, x = np.array(divmod(cell, world.grid)) * world.cell
        same = np.ones(source.shape, bool)
        same[:, y : y + world.cell, x : x + world.cell] = False
        np.testing.assert_array_equal(source[same], target[same])
        assert (source[~same] != target[~same]).any()
        instruction = " ".join(
            segment.text or "" for segment in sample.segments if not segment.supervised
        ).split()
        assert str(before.digit[0, cell]) in instruction
        if after.digit[0, cell] != EMPTY:
            assert things_of(after, 0)[int((before.digit[0, :cell] != EMPTY).sum())].colour in instruction
    assert 20 <= removed <= 60


def test_turns_bound_the_questions_about_one_image(tasks: SceneTasks) -> None:
    for turns in (1, 3):
        few = SceneTasks(tasks.split, turns=turns)
        for row in range(20):
            answers = [segment for segment in few.sample("vqa", row, 0).segments if segment.supervised]
            assert len(answers) == turns


def test_an_image_is_made_when_asked_for_and_named_by_its_content(tasks: SceneTasks) -> None:
    named: dict[str, bytes] = {}
    for task in ("caption", "edit", "interleaved"):
        for row in range(40):
            for segment in tasks.sample(task, row, 0).segments:
                if segment.picture is None:
                    continue
                assert "pixels" not in vars(segment.picture)
                pixels = segment.picture.pixels.tobytes()
                assert named.setdefault(segment.picture.key, pixels) == pixels
    assert len(named) > 100  # sources of edits are images of captions
    assert len(set(named.values())) == len(named)
