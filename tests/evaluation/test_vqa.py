"""VQA accuracy: the published values, the normalisation rule by rule."""

from __future__ import annotations

import itertools

import pytest

from lab.evaluation.vqa import exact_match, normalised, vqa_accuracy


@pytest.mark.parametrize(("agreeing", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_the_published_values_for_ten_people(agreeing: int, accuracy: float) -> None:
    people = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    assert vqa_accuracy("red", people) == pytest.approx(accuracy)


def test_it_is_the_mean_over_all_nine_of_ten() -> None:
    """The definition, with subsets written out; the order of the people changes nothing."""
    people = ["a dog", "dog", "cat", "dogs", "Dog.", "puppy", "cat", "the dog", "wolf", "fox"]
    for answer in ("dog", "cat", "wolf", "horse"):
        accuracies = []
        for nine in itertools.combinations(people, 9):
            same = sum(normalised(one) == answer for one in nine)
            accuracies.append(min(1.0, same / 3))
        assert vqa_accuracy(answer, people) == pytest.approx(sum(accuracies) / 10)
        assert vqa_accuracy(answer, people[::-1]) == pytest.approx(vqa_accuracy(answer, people))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Yes!", "yes"),
        ("A Red  dog\n", "red dog"),
        ("the", ""),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("black/white", "black white"),  # within a word it becomes a space
        ("black / white", "black white"),  # beside a space it goes
        ("half-eaten", "half eaten"),
        ("1,000", "1000"),  # a comma between digits: all punctuation goes
        ("1,000 t-shirts", "1000 tshirts"),
        ("yes.", "yes"),
        ("2.5 m.", "2.5 m"),
        ("u.s.", "us"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),  # two apostrophes missing: not in the table
        ("couldnt've", "couldn't've"),
        ("twas", "'twas"),
        ("'hello'", "'hello'"),  # apostrophes stay
        ("", ""),
    ],
)
def test_normalisation(given: str, expected: str) -> None:
    assert normalised(given) == expected
    assert normalised(normalised(given)) == normalised(given)


def test_both_sides_are_normalised() -> None:
    assert vqa_accuracy("A dog!", ["dog"] * 10) == 1
    assert vqa_accuracy("dog", ["a dog"] * 10) == 1  # ten people agree on an article
    assert exact_match("Two.", "2") == 1
    assert exact_match("2", "3") == 0
    assert exact_match("", "") == 1


def test_one_person_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="leaves one person out"):
        vqa_accuracy("dog", ["dog"])
