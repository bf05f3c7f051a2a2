"""Spaces: mixes are uniform on their simplex under every sampler, designs hold every point once."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from lab.search.space import Dimension, broken_stick, grid, low_discrepancy, read_space

PARTS = {"look": {"vqa": 0.75, "caption": 0.25}, "draw": {"text_to_image": 1.0}}
MIX = Dimension("mix", "simplex", ("look", "draw"), {}, PARTS)
THREE = Dimension("mix", "simplex", ("a", "b", "c"), {}, {one: {one: 1.0} for one in "abc"})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_shares_are_a_point_of_the_simplex(numbers: list[float]) -> None:
    shares = broken_stick(numbers)
    assert len(shares) == len(numbers) + 1
    assert min(shares) >= 0
    assert math.isclose(sum(shares), 1, abs_tol=1e-9)


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_shares_are_uniform_on_the_simplex(parts: int) -> None:
    """Every share, the last as well, has the distribution function 1 - (1 - x)^(k - 1)."""
    draws = np.random.default_rng(0).random((4000, parts - 1))
    shares = np.array([broken_stick(row) for row in draws])
    for column in shares.T:
        assert kstest(column, lambda x: 1 - (1 - x) ** (parts - 1)).pvalue > 0.01
    # and no pair of them is favoured: any two sum up as any other two
    sums = [np.mean(shares[:, [a, b]].sum(1)) for a in range(parts) for b in range(a)]
    assert max(sums) - min(sums) < 0.03


def test_two_parts_are_one_number_and_tasks_share_their_part() -> None:
    assert MIX.names == ("mix.look",)
    assert MIX.chosen([0.25]) == {"mix.look": 0.25, "mix.draw": 0.75}
    settings = MIX.settings([0.25])
    assert settings["mix"] == "swept"
    assert settings["mixes.swept"] == {"vqa": 0.1875, "caption": 0.0625, "text_to_image": 0.75}
    align = Dimension("stages.align.mix", "simplex", MIX.values, {}, PARTS)
    assert set(align.settings([0.5])) == {"stages.align.mix"}


def test_corners_are_each_part_alone() -> None:
    found = [tuple(round(share, 6) for share in broken_stick(corner)) for corner in THREE.corners()]
    assert found == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


def conditional() -> tuple[Dimension, ...]:
    mistakes: list[str] = []
    space = read_space(
        {
            "connector": {"choices": ["linear", "q_former"]},
            "connector.num_queries": {"int": [8, 10], "when": {"connector": "q_former"}},
            "seed": {"choices": [0, 1]},
        },
        mistakes,
    )
    assert not mistakes
    return space


def test_a_grid_holds_every_point_that_exists_once() -> None:
    points = list(grid(conditional()))
    assert len(points) == 2 + 3 * 2
    assert len({tuple(sorted(point.items())) for point in points}) == len(points)
    assert all(("connector.num_queries" in point) == (point["connector"] == "q_former") for point in points)


def test_a_sobol_sequence_fills_the_space_evenly_and_goes_on_where_it_was() -> None:
    space = (Dimension("a", "float", (0.0, 1.0)), Dimension("b", "log", (1e-4, 1e-2)), MIX)
    points = [low_discrepancy(space, number, seed=1) for number in range(64)]
    assert points[40] == low_discrepancy(space, 40, seed=1)
    assert points[0] != low_discrepancy(space, 0, seed=2)
    for values in (
        [point["a"] for point in points],
        [math.log10(point["b"]) / 2 + 2 for point in points],
        [point["mix.look"] for point in points],
    ):
        inside = sorted(values)
        assert max(b - a for a, b in pairwise(inside)) < 4 / 64  # random points leave far larger gaps


def test_sobol_points_exist_under_their_conditions() -> None:
    for number in range(16):
        point = low_discrepancy(conditional(), number, 0)
        assert ("connector.num_queries" in point) == (point["connector"] == "q_former")


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    mistakes: list[str] = []
    (dimension,) = read_space(yaml.safe_load("shift: {float: [-1e-3, 1e-3]}"), mistakes)
    assert (dimension.values, mistakes) == ((-1e-3, 1e-3), [])
