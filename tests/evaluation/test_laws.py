"""Laws of data: found again where they are known, and refused where data carry none."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.optimize import least_squares

from lab.evaluation.curves import Box, fit_curves
from lab.evaluation.laws import (
    PARAMETERS,
    Law,
    Observations,
    bounds,
    evaluate,
    fit_law,
)

LEVELS = (0.0, 1280.0, 2560.0, 5120.0)
START, HALF, POWER = 0.9, 2000.0, 1.5


def observe(
    exchange: float = 0.2,
    noise: float = 0.02,
    floor: float = 0.0,
    seeds: int = 3,
    levels: Sequence[float] = LEVELS,
    draw: int = 0,
) -> Observations:
    """Errors of a factorial in which the law holds, with luck of seeds and of arms."""
    generator = np.random.default_rng(draw)
    cells = [(own, other) for own in levels for other in levels if own or other]
    own, other = np.array(cells * seeds).T
    seed = np.repeat(np.arange(seeds), len(cells))
    truth = evaluate(np.array([[START, HALF, POWER, floor, exchange]]), own, other)[0]
    luck = generator.normal(0, noise / 2, seeds)[seed] + generator.normal(0, noise, len(own))
    return Observations(own, other, np.clip(truth + luck, 0, 1), seed, most=1.0)


def worth(law: Law) -> tuple[float, float, float]:
    assert law.exchange is not None
    return law.exchange


def test_a_law_without_noise_is_found_exactly() -> None:
    law = fit_law(observe(noise=1e-9), resamples=20)
    assert law.chosen == "transfer"
    assert law.best.values == pytest.approx([START, HALF, POWER, 0.0, 0.2], rel=1e-3, abs=1e-6)
    assert law.r_squared > 0.999999
    own, other = np.array([1000.0, 3000.0]), np.array([500.0, 0.0])
    assert law.error(own, other) == pytest.approx(
        START / (1 + ((own + 0.2 * other) / HALF) ** POWER), rel=1e-4
    )


def test_a_floor_is_found_where_there_is_one() -> None:
    levels = (0.0, 1280.0, 5120.0, 20480.0, 81920.0)
    law = fit_law(observe(noise=1e-3, floor=0.1, levels=levels), resamples=20)
    assert law.chosen == "transfer, floor"
    assert law.best.values[PARAMETERS.index("floor")] == pytest.approx(0.1, abs=0.01)


def test_no_curve_of_the_family_is_nearer_than_the_one_found() -> None:
    seen = observe(noise=0.05)
    law = fit_law(seen, resamples=20)

    def residual(p: np.ndarray) -> np.ndarray:
        parameters = np.array([[p[0], math.exp(p[1]), math.exp(p[2]), 0.0, p[3]]])
        return np.asarray(seen.error - evaluate(parameters, seen.own, seen.other)[0])

    box = bounds(seen)
    keep = [0, 1, 2, 4]
    found = [
        least_squares(residual, start, bounds=(box.low[keep], box.high[keep])).cost * 2
        for start in ([0.8, 7.0, 0.0, 0.1], [0.9, 8.0, 0.5, 0.3], [0.9, 7.6, 0.4, 0.0])
    ]
    assert law.candidates["transfer"].squares == pytest.approx(min(found), rel=1e-4)


def test_many_curves_at_once_are_each_fitted_as_alone() -> None:
    x = np.linspace(0, 3, 12)
    rows = np.array([2 * np.exp(-0.5 * x), np.exp(-1.5 * x)])
    box = Box(np.array([0.0, 0.0]), np.array([5.0, 5.0]))
    values, squares = fit_curves(
        lambda p: p[:, :1] * np.exp(-p[:, 1:] * x), rows, np.ones_like(rows), np.ones((2, 2)), box
    )
    assert values == pytest.approx(np.array([[2, 0.5], [1, 1.5]]), rel=1e-4)
    assert squares == pytest.approx([0, 0], abs=1e-9)


@pytest.mark.parametrize("exchange", [0.25, 0.0, -0.15])
def test_intervals_hold_the_truth_as_often_as_they_say(exchange: float) -> None:
    held = {"exchange": 0, "half": 0}
    laws = [fit_law(observe(exchange, draw=draw), resamples=80) for draw in range(12)]
    for law in laws:
        _, low, high = worth(law)
        held["exchange"] += low <= exchange <= high
        low, high = law.interval("half")
        held["half"] += low <= HALF <= high
    assert min(held.values()) >= 9  # of 12 at 95%: fewer than 9 come once in 5,000 times
    if exchange:
        assert all(law.chosen.startswith("transfer") for law in laws)


def test_what_does_nothing_gets_no_term() -> None:
    laws = [fit_law(observe(0.0, draw=draw), resamples=20) for draw in range(8)]
    assert sum(law.chosen.startswith("own") for law in laws) >= 6
    assert sum(low <= 0 <= high for _, low, high in map(worth, laws)) >= 6


def test_a_band_is_narrow_where_there_are_data_and_holds_the_law() -> None:
    law = fit_law(observe(), resamples=100)
    own, other = np.array([0.0, 2560.0, 5120.0]), np.array([2560.0, 2560.0, 0.0])
    truth = evaluate(np.array([[START, HALF, POWER, 0.0, 0.2]]), own, other)[0]
    low, high = law.band(own, other)
    assert (low - 0.01 <= truth).all()
    assert (truth <= high + 0.01).all()
    assert (high - low < 0.1).all()


def test_too_few_mixes_make_no_law() -> None:
    two = Observations(
        own=np.array([1280.0, 3840.0] * 3),
        other=np.array([3840.0, 1280.0] * 3),
        error=np.array([0.5, 0.4, 0.52, 0.41, 0.5, 0.42]),
        seed=np.repeat([0, 1, 2], 2),
        most=1.0,
    )
    law = fit_law(two)
    assert not law.chosen
    assert law.refusal.endswith("there are 2 and 2")


def test_noise_makes_no_law() -> None:
    seen = observe()
    error = np.random.default_rng(1).uniform(0.4, 0.6, seen.error.size)
    law = fit_law(Observations(seen.own, seen.other, error, seen.seed, 1.0), resamples=20)
    assert "no law" in law.refusal
    assert law.exchange is None


def test_a_metric_that_never_changes_makes_no_law() -> None:
    seen = observe()
    law = fit_law(Observations(seen.own, seen.other, np.zeros_like(seen.error), seen.seed, 1.0))
    assert law.refusal == "the metric is the same everywhere"


def test_mixes_of_one_total_tell_nothing_of_the_other_task() -> None:
    own = np.tile([0.0, 800.0, 1600.0, 2400.0, 3200.0, 4000.0, 4800.0], 3)
    other = 4800 - own
    seed = np.repeat([0, 1, 2], 7)
    error = evaluate(np.array([[START, HALF, POWER, 0.0, 0.0]]), own, other)[0]
    law = fit_law(Observations(own, other, error + 0.002 * seed, seed, 1.0), resamples=20)
    assert law.chosen.startswith("own")
    assert law.exchange is None


def test_equal_data_give_equal_laws() -> None:
    first, second = fit_law(observe(), resamples=20), fit_law(observe(), resamples=20)
    assert np.array_equal(first.draws, second.draws)


def test_a_parameter_that_the_data_do_not_bound_is_marked() -> None:
    seen = observe(noise=1e-3)
    flat = Observations(
        seen.own, seen.other, 0.9 - 1e-6 * seen.own + 1e-3 * (seen.error - 0.5), seen.seed, 1.0
    )
    law = fit_law(flat, resamples=40)
    assert law.refusal or law.undetermined("half") or law.undetermined("power")
