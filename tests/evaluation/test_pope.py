"""POPE: its questions, how answers are read, and figures by hand and against scikit-learn."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from lab.evaluation.pope import NEGATIVES, co_occurrence, polls, pope_figures, says_yes
from lab.scenes.language import things_of
from lab.scenes.tasks import SceneTasks


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_questions_are_balanced_and_true(held_out: SceneTasks, tasks: SceneTasks, negatives: str) -> None:
    asked = polls(held_out, tasks.split.scenes, negatives, 40, seed=0)
    assert Counter(poll.there for poll in asked)[True] * 2 == len(asked)
    assert len({poll.sample.id for poll in asked}) == len(asked)
    for poll in asked:
        things = things_of(held_out.split.scenes, poll.row)
        words = (poll.sample.segments[2].text or "").split()  # is there a red 3 ?
        what = words[3:-1]
        seen = any([thing.colour, str(thing.digit)][-len(what) :] == what for thing in things)
        assert seen == poll.there
        assert (poll.sample.segments[-1].text or "").startswith("yes" if poll.there else "no")
        if negatives == "attribute":
            assert int(what[1]) in {thing.digit for thing in things}  # only its colour can be wrong
    fewer = polls(held_out, tasks.split.scenes, negatives, 10, seed=0)
    assert [poll.sample.id for poll in fewer] == [poll.sample.id for poll in asked[: len(fewer)]]


def test_popular_and_adversarial_objects(held_out: SceneTasks, tasks: SceneTasks) -> None:
    """Counted again by hand: frequencies of digits, and of pairs, in the training scenes."""
    training = tasks.split.scenes
    sets = [{thing.digit for thing in things_of(training, row)} for row in range(len(training))]
    alone = Counter(digit for digits in sets for digit in digits)
    pairs = Counter((a, b) for digits in sets for a in digits for b in digits)
    assert co_occurrence(training)[3, 3] == alone[3]
    assert co_occurrence(training)[3, 5] == pairs[3, 5]
    for negatives in ("popular", "adversarial"):
        for poll in polls(held_out, training, negatives, 30, seed=1):
            if poll.there:
                continue
            there = {thing.digit for thing in things_of(held_out.split.scenes, poll.row)}
            weight = {
                digit: alone[digit] if negatives == "popular" else sum(pairs[other, digit] for other in there)
                for digit in range(10)
                if digit not in there
            }
            asked = int((poll.sample.segments[2].text or "").split()[3])
            count = min(3, len(there), len(weight))
            assert weight[asked] >= sorted(weight.values())[-count]


@pytest.mark.parametrize(
    ("given", "yes"),
    [
        ("yes", True),
        ("no", False),
        ("No, there is none.", False),
        ("There is not.", False),
        ("Yes. But no cat.", True),  # the first sentence counts
        ("3 nowhere so no", False),
        ("3 red top-left so yes", True),
        ("nothing", True),  # as in the paper's code, whatever has no "no" in it is a yes
        ("", True),
    ],
)
def test_how_answers_are_read(given: str, yes: bool) -> None:
    assert says_yes(given) == yes


def test_figures_by_hand() -> None:
    """Four images of two questions each: 3 hits, 2 false alarms, 1 miss, 2 right noes."""
    said = [True, True, True, True, True, False, False, False]
    there = [True, False, True, False, True, False, True, False]
    figures = pope_figures([0, 0, 1, 1, 2, 2, 3, 3], said, there)
    values = {name: figure.value for name, figure in figures.items()}
    expected = {"accuracy": 5 / 8, "precision": 3 / 5, "recall": 3 / 4, "f1": 2 / 3, "yes_ratio": 5 / 8}
    assert values == pytest.approx(expected)
    assert all(figure.samples == 4 for figure in figures.values())


def test_figures_are_those_of_scikit_learn_in_any_order() -> None:
    rng = np.random.default_rng(0)
    rows, said, there = rng.integers(40, size=240), rng.random(240) < 0.6, rng.random(240) < 0.5
    figures = pope_figures(rows.tolist(), said.tolist(), there.tolist())
    theirs = precision_recall_fscore_support(there, said, average="binary")[:3]
    ours = [figures[name].value for name in ("precision", "recall", "f1")]
    assert ours == pytest.approx(theirs)
    order = rng.permutation(240)
    again = pope_figures(rows[order].tolist(), said[order].tolist(), there[order].tolist())
    assert again == figures
    for figure in figures.values():
        assert figure.low < figure.value < figure.high


def test_questions_about_one_image_are_not_independent() -> None:
    """Each image answered wholly right or wholly wrong: six times the questions say nothing more."""
    right = np.arange(30) % 2 == 0
    alone = pope_figures(range(30), (right).tolist(), [True] * 30)["accuracy"]
    rows = np.repeat(np.arange(30), 6)
    many = pope_figures(rows.tolist(), np.repeat(right, 6).tolist(), [True] * 180)["accuracy"]
    assert many.high - many.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_always_yes_and_always_no() -> None:
    there = [True, False] * 10
    rows = np.repeat(np.arange(10), 2).tolist()
    yes = pope_figures(rows, [True] * 20, there)
    assert yes["f1"].value == pytest.approx(2 / 3)
    assert (yes["yes_ratio"].value, yes["recall"].value) == (1, 1)
    no = pope_figures(rows, [False] * 20, there)
    assert math.isnan(no["precision"].value)
    assert (no["f1"].value, no["accuracy"].value) == (0, 0.5)
