"""Drawn scenes by kind, edits in two parts, diversity: by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lab.evaluation.diversity import restyled, spread
from lab.evaluation.fidelity import Reading, edit_success, fidelity, geneval_tasks, read_images
from lab.scenes.judge import Judge, judge_images
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import EMPTY, Scenes, render

RED, BLUE = 0, 2


def scenes_of(*rows: list[tuple[int, int] | None]) -> Scenes:
    """Scenes of (digit, colour) or None in each of four cells."""
    shape = (len(rows), 4)
    digit, colour = np.full(shape, EMPTY, np.int8), np.zeros(shape, np.int8)
    for row, cells in enumerate(rows):
        for cell, thing in enumerate(cells):
            if thing is not None:
                digit[row, cell], colour[row, cell] = thing
    zeros = np.zeros(shape, np.int16)
    return Scenes(digit, colour, zeros, zeros.astype(np.int8), np.zeros((*shape, 2), np.int8), zeros + 1.0)


def seen_in(*rows: list[tuple[int, int] | None]) -> Reading:
    scenes = scenes_of(*rows)
    return Reading(scenes.digit.astype(np.int64), scenes.colour.astype(np.int64))


ASKED: list[tuple[int, int] | None] = [(3, RED), None, None, (7, BLUE)]
DRAWN: list[tuple[list[tuple[int, int] | None], dict[str, int]]] = [
    (ASKED, {"objects": 1, "count": 1, "attribution": 1, "position": 1, "scene": 1}),
    # the places swapped
    ([(7, BLUE), None, None, (3, RED)], {"objects": 1, "count": 1, "attribution": 1, "position": 0}),
    # the colours swapped
    ([(3, BLUE), None, None, (7, RED)], {"objects": 1, "count": 1, "attribution": 0, "position": 1}),
    # one too many
    ([(3, RED), (1, RED), None, (7, BLUE)], {"objects": 1, "count": 0, "attribution": 1, "position": 1}),
    # another digit
    ([(3, RED), None, None, (1, BLUE)], {"objects": 0, "count": 1, "attribution": 0, "position": 0}),
    # nothing
    ([None] * 4, {"objects": 0, "count": 0, "attribution": 0, "position": 0}),
]


@pytest.mark.parametrize(("drawn", "expected"), DRAWN)
def test_kinds_by_hand(drawn: list[tuple[int, int] | None], expected: dict[str, int]) -> None:
    scores = fidelity(seen_in(drawn), scenes_of(ASKED))
    assert {kind: values.tolist() for kind, values in scores.items()} == {
        kind: [float(value)] for kind, value in ({"scene": 0} | expected).items()
    }


def test_geneval_asks_each_task_of_its_prompts() -> None:
    one: list[tuple[int, int] | None] = [None, (5, RED), None, None]
    three: list[tuple[int, int] | None] = [(3, RED), (5, RED), None, (7, BLUE)]
    scenes = scenes_of(one, ASKED, three)
    wrong_colour: list[tuple[int, int] | None] = [None, (5, BLUE), None, None]
    tasks = geneval_tasks(fidelity(seen_in(wrong_colour, ASKED, ASKED), scenes), scenes)
    assert {task: values.tolist() for task, values in tasks.items()} == {
        "single_object": [1],
        "two_object": [1],
        "counting": [1, 0],
        "colours": [0],
        "position": [1, 0],
        "colour_attribution": [1],
    }
    alone = geneval_tasks(fidelity(seen_in(one), scenes_of(one)), scenes_of(one))
    assert set(alone) == {"single_object", "colours"}  # no prompt of two: nothing to ask


def test_an_edit_is_right_where_it_should_be_and_nowhere_else() -> None:
    recoloured: list[tuple[int, int] | None] = [(3, RED), None, None, (7, RED)]
    other: list[tuple[int, int] | None] = [(4, RED), None, None, (7, RED)]
    gone: list[tuple[int, int] | None] = [(3, RED), None, None, None]
    given = seen_in(recoloured, ASKED, other, gone, recoloured)
    before = scenes_of(*[ASKED] * 5)
    after = scenes_of(recoloured, recoloured, recoloured, gone, gone)
    success = edit_success(given, before, after)
    assert success["target"].tolist() == [1, 0, 1, 1, 0]
    assert success["rest"].tolist() == [1, 1, 0, 1, 1]
    assert success["both"].tolist() == [1, 0, 0, 1, 0]


def test_both_ways_of_asking_the_judge_agree(held_out: SceneTasks) -> None:
    torch.manual_seed(0)
    judge = Judge(held_out.split.world).eval()
    rows = np.arange(40)
    pixels, scenes = torch.from_numpy(held_out.split.pixels(rows)), held_out.split.scenes.take(rows)
    seen = read_images(judge, pixels)
    verdict = judge_images(judge, pixels, scenes)
    assert fidelity(seen, scenes)["scene"].tolist() == verdict.scene.tolist()
    filled = ((seen.digit != EMPTY) == (scenes.digit != EMPTY)).mean(axis=1)
    assert filled.tolist() == pytest.approx(verdict.place.tolist())
    order = np.random.default_rng(0).permutation(40)
    shuffled = fidelity(read_images(judge, pixels[order]), scenes.take(order))
    for kind, values in fidelity(seen, scenes).items():
        assert shuffled[kind].tolist() == values[order].tolist()


def test_spread_by_hand() -> None:
    corners = np.array([[[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]])  # distances 5, 0 and 5
    assert spread(corners).tolist() == pytest.approx([10 / 3])
    assert spread(np.ones((2, 4, 3))).tolist() == [0, 0]


def test_restyled_scenes_say_the_same_and_look_different(held_out: SceneTasks) -> None:
    split, rows = held_out.split, np.arange(20)
    old, new = split.scenes.take(rows), restyled(split, rows, 0)
    assert (old.digit == new.digit).all()
    assert (old.colour == new.colour).all()
    drawn = new.digit != EMPTY
    assert (split.digits.labels[new.instance[drawn]] == new.digit[drawn]).all()
    assert (render(split.world, split.digits, old) != render(split.world, split.digits, new)).any()
    assert (restyled(split, rows, 0).instance == new.instance).all()
    assert (split.scenes.take(rows).instance == old.instance).all()  # the split's own are untouched
