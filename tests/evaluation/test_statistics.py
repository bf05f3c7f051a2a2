from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lab.evaluation.statistics import bootstrap_interval, t_interval, wilson_interval


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.5, 400)
    ours = bootstrap_interval(values, seed=1, resamples=9999)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.01)  # a fifteenth of its width


def test_bootstrap_of_a_rate_is_close_to_its_normal_interval() -> None:
    low, high = bootstrap_interval([1.0] * 750 + [0.0] * 250, seed=0)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 1000)  # by hand: 0.0268
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.003)


def test_bootstrap_is_deterministic_also_when_drawn_in_parts() -> None:
    values = np.arange(50_000) % 7
    assert bootstrap_interval(values, seed=5, resamples=100) == bootstrap_interval(
        values, seed=5, resamples=100
    )
    assert bootstrap_interval(values, seed=5, resamples=100) != bootstrap_interval(
        values, seed=6, resamples=100
    )


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    samples = generator.random((300, 60)) < 0.6  # 300 experiments of 60 samples
    hits = [low <= 0.6 <= high for low, high in (bootstrap_interval(s, resamples=400) for s in samples)]
    assert 0.9 < np.mean(hits) <= 0.99


def test_constant_values_have_no_width() -> None:
    assert bootstrap_interval([1.0] * 9) == (1.0, 1.0)
    assert t_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_t_interval_agrees_with_scipy_and_with_the_table() -> None:
    values = [0.71, 0.74, 0.69]
    expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert t_interval(values) == pytest.approx(expected)
    low, high = t_interval([0.0, 1.0])  # t(1, .975) = 12.706 times .7071 / sqrt(2) = 6.353
    assert (low, high) == pytest.approx((-5.853, 6.853), abs=1e-3)
    assert t_interval([0.7]) == (-math.inf, math.inf)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (1433, 1600)])
def test_wilson_agrees_with_scipy(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx(tuple(expected), abs=1e-12)


def test_nothing_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="at least one"):
        t_interval([])
    with pytest.raises(ValueError, match="no rate"):
        wilson_interval(1, 0)
