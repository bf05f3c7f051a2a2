"""The judge of images, and the distance between sets of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lab.scenes.digits import load_patches, split_instances
from lab.scenes.judge import Judge, frechet_distance, judge_images, train_judge
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import EMPTY, World, WorldSplit, compose


@pytest.fixture(scope="module")
def judge(tasks: SceneTasks) -> Judge:
    return train_judge(tasks.split, steps=120, batch_size=48, learning_rate=3e-3, seed=0)


def test_it_reads_held_out_digits_far_above_chance(judge: Judge, held_out: SceneTasks) -> None:
    split = held_out.split
    verdict = judge_images(judge, torch.from_numpy(split.pixels(np.arange(len(split.scenes)))), split.scenes)
    assert verdict.digit.mean() > 0.5  # chance 0.1
    assert verdict.colour.mean() > 0.9  # chance 1/6
    assert verdict.place.mean() > 0.95  # chance 0.75


def test_other_scenes_are_judged_wrong(judge: Judge, tasks: SceneTasks) -> None:
    split = tasks.split
    rows = np.arange(200)
    right = judge_images(judge, torch.from_numpy(split.pixels(rows)), split.scenes.take(rows))
    wrong = judge_images(judge, torch.from_numpy(split.pixels(rows)), split.scenes.take(rows[::-1]))
    assert wrong.digit.mean() < 0.3 < right.digit.mean()
    assert wrong.colour.mean() < 0.4 < right.colour.mean()
    assert wrong.scene.mean() < 0.05 < right.scene.mean()


def test_it_can_be_perfect_and_says_so() -> None:
    """On few scenes that it knows by heart every score is 1, and on those scenes in another order none is."""
    world = World(variants=1)
    digits = load_patches(split_instances(0)["train"], 1, 0)
    split = WorldSplit(world, digits, compose(world, digits, 12, 0))
    judge = train_judge(split, steps=120, batch_size=12, learning_rate=3e-3, seed=0)
    pixels = torch.from_numpy(split.pixels(np.arange(12)))
    verdict = judge_images(judge, pixels, split.scenes)
    for score in (verdict.digit, verdict.colour, verdict.place, verdict.scene):
        assert score.tolist() == [1.0] * 12
    assert len(verdict.features) == (split.scenes.digit != EMPTY).sum()
    assert judge_images(judge, pixels.roll(1, dims=0), split.scenes).scene.mean() < 0.2


def test_an_empty_picture_has_no_digit_and_no_colour(judge: Judge, tasks: SceneTasks) -> None:
    scenes = tasks.split.scenes.take(np.arange(20))
    blank = compose(tasks.split.world, tasks.split.digits, 20, 0)
    blank.digit[:] = EMPTY
    pixels = torch.from_numpy(WorldSplit(tasks.split.world, tasks.split.digits, blank).pixels(np.arange(20)))
    verdict = judge_images(judge, pixels, scenes)
    assert verdict.digit.max() == 0
    assert verdict.colour.max() == 0
    np.testing.assert_allclose(verdict.place, (scenes.digit == EMPTY).mean(axis=1))


def test_equal_seeds_train_equal_judges(tasks: SceneTasks) -> None:
    one, two = (train_judge(tasks.split, 5, 8, 1e-3, seed=4).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("image_size", "grid"), [(32, 2), (48, 3), (28, 2), (36, 2), (45, 3), (51, 3)])
def test_it_fits_cells_of_every_size(image_size: int, grid: int) -> None:
    world = World(image_size, grid, 1, 1)
    digit, colour, features = Judge(world).eval()(torch.rand(2, 3, image_size, image_size))
    assert digit.shape == (2, grid * grid, 11)
    assert colour.shape == (2, grid * grid, 6)
    assert features.shape == (2, grid * grid, Judge.FEATURES)


def test_distance_of_shifted_gaussians_is_the_squared_shift() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(500, 3)) @ np.array([[2.0, 0, 0], [0.5, 1, 0], [0, 0.3, 0.7]])
    assert frechet_distance(first, first + np.array([3.0, 0.0, -4.0])) == pytest.approx(25, abs=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)


def test_distance_of_scaled_gaussians_by_hand() -> None:
    """For covariances s^2 I and t^2 I it is F (s - t)^2; here 2 (3 - 1)^2 = 8."""
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], float) * np.sqrt(3 / 4)  # unit covariance
    assert frechet_distance(corners, 3 * corners) == pytest.approx(8)
    assert frechet_distance(3 * corners, corners) == pytest.approx(8)


@pytest.mark.filterwarnings("error")
def test_distance_of_features_with_a_dead_unit() -> None:
    rng = np.random.default_rng(0)
    dead = np.concatenate([rng.normal(size=(50, 4)), np.zeros((50, 1))], axis=1)
    assert frechet_distance(dead, dead + 1) == pytest.approx(5, abs=1e-6)
