"""Leakage: equal and near images and equal questions are found, all of them and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from lab.samples.leakage import NEAR, Seen, leaks


def seen(prints: list[int], digests: list[str] | None = None, questions: list[str] | None = None) -> Seen:
    found = Seen()
    for row, print_ in enumerate(prints):
        digest = digests[row] if digests else f"{row + 1:032x}"
        found.add(row, [digest], [print_], questions[row] if questions else "")
    return found


@pytest.mark.parametrize("seed", range(3))
def test_near_images_are_those_that_all_pairs_would_give(seed: int) -> None:
    rng = np.random.default_rng(seed)
    training = [int(one) for one in rng.integers(0, 2**63, 400)]
    flips = rng.integers(0, 8, 200)  # copies with up to seven bits changed
    held_out = []
    for number, count in enumerate(flips):
        bits = rng.choice(64, int(count), replace=False)
        held_out.append(training[number] ^ sum(1 << int(bit) for bit in bits))
    own = seen(held_out, [f"{number + 10**6:x}".rjust(16, "f") for number in range(200)])
    found = {leak.held_out: leak for leak in leaks(seen(training), own)}
    expected = {row: min((one ^ other).bit_count() for other in training) for row, one in enumerate(held_out)}
    assert {row: leak.distance for row, leak in found.items()} == {
        row: distance for row, distance in expected.items() if distance <= NEAR
    }
    assert all(leak.kind == "near image" for leak in found.values())


def test_an_equal_image_is_said_once() -> None:
    training = seen([5, 9], ["a" * 32, "b" * 32])
    held_out = seen([9], ["b" * 32])
    (leak,) = leaks(training, held_out)
    assert (leak.kind, leak.held_out, leak.training) == ("equal image", 0, 1)


def test_an_equal_question_needs_the_equal_image() -> None:
    names = ["a" * 32, "b" * 32]
    training = seen([1 << 60, 2 << 40], names, ["what ?", "who ?"])
    same = list(leaks(training, seen([1 << 60], names[:1], ["what ?"])))
    assert [leak.kind for leak in same] == ["equal image", "equal question"]
    other = list(leaks(training, seen([1 << 60], names[:1], ["who ?"])))
    assert [leak.kind for leak in other] == ["equal image"]


def test_images_without_fingerprint_are_compared_for_equality_alone() -> None:
    training, held_out = Seen(), Seen()
    training.add(0, ["a" * 32], [], "")
    held_out.add(0, ["b" * 32], [], "")
    held_out.add(1, ["a" * 32], [], "")
    assert [(leak.kind, leak.held_out) for leak in leaks(training, held_out)] == [("equal image", 1)]
