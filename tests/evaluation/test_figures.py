"""Figures and their intervals: known formulas, and nothing that depends on the order of samples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lab.evaluation.figures import (
    macro_figure,
    mean_figure,
    rate_figure,
    share_by_group,
    share_figure,
    sums_figure,
)


def test_a_rate_has_wilsons_interval_also_at_its_ends() -> None:
    figure = share_figure([1.0] * 7 + [0.0] * 3)
    theirs = stats.binomtest(7, 10).proportion_ci(method="wilson")
    assert (figure.low, figure.high) == pytest.approx((theirs.low, theirs.high))
    assert (figure.value, figure.samples) == (0.7, 10)
    always = share_figure(np.ones(20))
    assert always.high == 1
    assert 0.8 < always.low < 0.9  # a bootstrap would say 1


def test_a_mean_of_shares_is_bootstrapped_whatever_their_order() -> None:
    values = np.random.default_rng(0).random(80)
    figure = mean_figure(values)
    assert mean_figure(values[::-1]) == figure == share_figure(values)
    half = 1.96 * values.std() / np.sqrt(80)
    assert (figure.low, figure.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_every_group_weighs_the_same_however_many_samples_it_has() -> None:
    groups = {"many": np.ones(900), "few": np.array([0.0, 1.0] * 8)}
    figure = macro_figure(groups)
    assert (figure.value, figure.samples) == (0.75, 916)
    half = 1.96 * 0.5 / np.sqrt(16) / 2  # by hand: only the few vary, and count half
    assert (figure.low, figure.high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.035)


def test_a_mean_over_groups_is_no_certainty_at_its_ends() -> None:
    figure = macro_figure({"digits": np.ones(40), "colours": np.ones(30)})
    assert (figure.value, figure.high, figure.samples) == (1, 1, 70)
    assert figure.low == pytest.approx(stats.binomtest(30, 30).proportion_ci(method="wilson").low)


def test_scores_of_one_group_are_drawn_together() -> None:
    """Ten answers about each of 20 images that are all right or all wrong are worth 20, not 200."""
    right = np.repeat(np.arange(20) % 2, 10).astype(float)
    images = [f"image {row // 10}" for row in range(200)]
    figure = share_by_group(right, images)
    assert (figure.value, figure.samples) == (0.5, 20)
    half = 1.96 * 0.5 / np.sqrt(20)
    assert (figure.low, figure.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.04)
    alike = share_by_group(np.zeros(200), images)
    assert (alike.low, alike.high) == (0, share_figure(np.zeros(20)).high)
    assert share_by_group(right, range(200)) == share_figure(right)


def test_a_rate_of_sums_counts_what_has_a_share_in_it() -> None:
    """Precision: three images without a yes say nothing of it."""
    rows = np.array([[2.0, 2.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])

    def precision(sums: np.ndarray) -> np.ndarray:
        return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)

    figure = rate_figure(rows, precision)
    assert (figure.value, figure.high, figure.samples) == (1, 1, 6)
    assert figure.low == pytest.approx(stats.binomtest(3, 3).proportion_ci(method="wilson").low)


def test_sums_in_any_order() -> None:
    rows = np.random.default_rng(0).random((40, 2))

    def ratio(sums: np.ndarray) -> np.ndarray:
        return np.asarray(sums[:, 0] / sums[:, 1])

    figure = sums_figure(rows, ratio)
    assert figure.value == pytest.approx(rows[:, 0].sum() / rows[:, 1].sum())
    assert sums_figure(rows[::-1], ratio) == figure
    assert figure.low < figure.value < figure.high


def test_a_score_that_is_no_share_is_no_rate_either() -> None:
    """Captions that all score 0 in CIDEr-D, whose scale ends at 10."""
    assert (mean_figure(np.zeros(5)).low, mean_figure(np.zeros(5)).high) == (0, 0)
