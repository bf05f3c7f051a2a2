from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lab.evaluation.statistics import (
    JointBootstrap,
    bootstrap_interval,
    deviation_interval,
    holm,
    least_squares,
    power,
    seeds_for,
    seeds_needed,
    sums_interval,
    t_interval,
    t_probability,
    wilson_interval,
)


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


def test_paired_differences_agree_with_scipy() -> None:
    generator = np.random.default_rng(0)
    ours, theirs = generator.normal(0.6, 0.05, 5), generator.normal(0.55, 0.05, 5)
    expected = stats.ttest_rel(ours, theirs)
    differences = ours - theirs
    error = differences.std(ddof=1) / math.sqrt(5)
    assert t_probability(float(differences.mean()), float(error), 4) == pytest.approx(expected.pvalue)
    assert t_interval(differences) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_seeds_that_coincide_prove_nothing() -> None:
    values = np.array([0.1 + 0.2, 0.3, 0.15 + 0.15])  # equal, but for rounding
    error = float(values.std(ddof=1)) / math.sqrt(3)
    assert math.isnan(t_probability(float(values.mean()), error, 2))


def crossed(arms: int, seeds: int, samples: int, of_seeds: float, of_samples: float, seed: int) -> np.ndarray:
    """Scores (arms, seeds, samples) of arms without any difference, with noise of every kind."""
    generator = np.random.default_rng(seed)
    return (
        generator.normal(0, of_seeds, (arms, seeds, 1))
        + generator.normal(0, of_samples, (arms, 1, samples))
        + generator.normal(0, 1, (1, 1, samples))  # difficulty, which pairing removes
        + generator.normal(0, 0.3, (arms, seeds, samples))
    )


def test_joint_bootstrap_agrees_with_one_that_loops() -> None:
    scores = crossed(2, 4, 30, 0.3, 0.5, 1)
    difference = scores[0] - scores[1]  # (seeds, samples)
    generator = np.random.default_rng(2)
    looped = []
    for _ in range(4000):
        seeds, samples = generator.integers(4, size=3), generator.integers(30, size=30)
        looped.append(np.mean([[difference[s, i] for i in samples] for s in seeds]))
    weights = np.array([[0.25] * 4, [-0.25] * 4])
    ours = JointBootstrap([scores]).replicates(weights)
    assert ours.mean() == pytest.approx(difference.mean(), abs=0.02)
    assert ours.std() == pytest.approx(np.std(looped), rel=0.05)
    assert JointBootstrap([scores]).interval(weights) == pytest.approx(
        tuple(np.quantile(looped, [0.025, 0.975])), abs=0.05
    )


def test_joint_bootstrap_of_few_seeds_has_the_variance_of_their_mean() -> None:
    values = np.array([0.2, 0.5, 0.6])
    scores = np.repeat(values[None, :, None], 50, axis=2)  # (1, seeds, samples): all spread is between seeds
    ours = JointBootstrap([scores], resamples=20_000).replicates([[1 / 3] * 3])
    assert ours.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.03)  # not two thirds of it


def test_joint_bootstrap_of_one_seed_is_that_over_samples() -> None:
    values = (np.random.default_rng(4).random(300) < 0.7).astype(float)
    ours = JointBootstrap([values[None, None]]).interval([[1.0]])
    assert ours == pytest.approx(bootstrap_interval(values), abs=0.007)


def test_what_arms_have_in_common_drops_out_of_their_difference() -> None:
    scores = np.random.default_rng(5).random((1, 3, 40)).repeat(2, axis=0)
    scores[1] += 0.25  # the same on every seed and sample
    bootstrap = JointBootstrap([scores])
    third = np.full(3, 1 / 3)
    assert bootstrap.interval([third, -third]) == pytest.approx((-0.25, -0.25))
    assert bootstrap.probability([third, -third]) < 0.001
    alone = bootstrap.interval([third, 0 * third])
    assert alone[1] - alone[0] > 0.05


def test_strata_weigh_the_same_whatever_their_size() -> None:
    few, many = np.zeros((1, 2, 10)), np.ones((1, 2, 1000))
    bootstrap = JointBootstrap([few, many])
    assert bootstrap.interval([[0.5, 0.5]]) == pytest.approx((0.5, 0.5))


def test_joint_interval_covers_about_as_often_as_it_says() -> None:
    weights = np.array([[0.125] * 8, [-0.125] * 8])
    hits = 0
    for number in range(150):
        bootstrap = JointBootstrap([crossed(2, 8, 60, 0.15, 0.5, number)], resamples=500)
        low, high = bootstrap.interval(weights)
        hits += low <= 0 <= high
    assert 0.88 < hits / 150 < 0.99


def test_seeds_alone_mistake_the_luck_of_their_samples_for_a_difference() -> None:
    """Equally good arms, on samples that suit now the one, now the other: both tests are needed."""
    weights = np.array([[0.2] * 5, [-0.2] * 5])
    alarms = []
    for number in range(150):
        scores = crossed(2, 5, 200, 0.02, 0.3, number)
        differences = (scores[0] - scores[1]).mean(axis=1)
        error = float(differences.std(ddof=1)) / math.sqrt(5)
        over_seeds = t_probability(float(differences.mean()), error, 4)
        joint = JointBootstrap([scores], resamples=500).probability(weights)
        alarms.append((over_seeds < 0.05, max(over_seeds, joint) < 0.05))
    seeds_alone, both = np.mean(alarms, axis=0)
    assert seeds_alone > 0.1
    assert both <= 0.05


def test_t_interval_covers_as_often_as_it_says_with_three_seeds() -> None:
    values = np.random.default_rng(6).normal(1.0, 0.2, (2000, 3))
    hits = [low <= 1.0 <= high for low, high in map(t_interval, values)]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)


def test_joint_bootstrap_wants_arms_seeds_and_samples() -> None:
    for wrong in ([], [np.zeros((2, 3))], [np.zeros((1, 2, 5)), np.zeros((1, 3, 5))], [np.zeros((1, 2, 0))]):
        with pytest.raises(ValueError, match="arms, seeds and samples"):
            JointBootstrap(wrong)


def test_contrasts_of_groups_agree_with_the_t_test() -> None:
    generator = np.random.default_rng(7)
    first, second = generator.normal(0, 1, 6), generator.normal(0.5, 1, 9)
    design = np.column_stack([np.ones(15), np.r_[np.zeros(6), np.ones(9)]])
    fit = least_squares(design, np.r_[first, second], [[0.0, 1.0]])
    expected = stats.ttest_ind(second, first)
    assert fit.freedom == 13
    assert fit.estimates[0] / fit.errors[0] == pytest.approx(expected.statistic)
    assert t_probability(fit.estimates[0], fit.errors[0], fit.freedom) == pytest.approx(expected.pvalue)


def test_a_line_agrees_with_scipy() -> None:
    x = np.arange(8.0)
    y = 2 * x + np.random.default_rng(8).normal(size=8)
    fit = least_squares(np.column_stack([np.ones(8), x]), y, [[0, 1], [1, 0]])
    expected = stats.linregress(x, y)
    assert fit.estimates == pytest.approx([expected.slope, expected.intercept])
    assert fit.errors == pytest.approx([expected.stderr, expected.intercept_stderr])
    assert fit.weights @ y == pytest.approx(fit.estimates)


def test_a_factorial_by_hand() -> None:
    """Two factors of two levels, sum-to-zero coded: means 1, 3, 2, 8, each seen at plus and minus 0.5."""
    rows = [(1, 1, 1.0), (1, -1, 3.0), (-1, 1, 2.0), (-1, -1, 8.0)]
    design = [[1, a, b, a * b] for a, b, _ in rows for _ in range(2)]
    observed = [mean + noise for _, _, mean in rows for noise in (0.5, -0.5)]
    fit = least_squares(design, observed, [[0, -2, 0, 0], [0, 0, -2, 0], [0, 0, 0, 4]])
    # (2 + 8) / 2 - (1 + 3) / 2 = 3; (3 + 8) / 2 - (1 + 2) / 2 = 4; (8 - 2) - (3 - 1) = 4
    assert fit.estimates == pytest.approx([3.0, 4.0, 4.0])
    # residual variance 8 * 0.25 / 4 = 0.5; of two means of 4: sqrt(0.5 / 4 * 2) = 0.5; of four means of 2: 1
    assert fit.freedom == 4
    assert fit.errors == pytest.approx([0.5, 0.5, 1.0])


def test_what_the_data_do_not_determine_is_nan() -> None:
    design = [[1, 1, 0], [1, 1, 0], [1, 0, 1]]  # the last two columns add up to the first
    fit = least_squares(design, [1.0, 3.0, 7.0], [[0, -1, 1], [0, 1, 0]])
    assert fit.estimates[0] == pytest.approx(5.0)
    assert math.isnan(fit.estimates[1])
    saturated = least_squares(np.eye(2), [1.0, 2.0], [[1, -1]])
    assert saturated.estimates == pytest.approx([-1.0])
    assert saturated.freedom == 0
    assert math.isnan(saturated.errors[0])


def test_holm_by_hand() -> None:
    # 0.01 * 4; 0.02 * 3; 0.04 * 2; the last may not be below the one before
    assert holm([0.04, 0.01, 0.05, 0.02]) == pytest.approx([0.08, 0.04, 0.08, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    (untested, tested) = holm([math.nan, 0.03])
    assert math.isnan(untested)
    assert tested == 0.03


def test_holm_keeps_false_alarms_at_the_stated_share() -> None:
    families = np.random.default_rng(9).random((2000, 10))
    alarms = [min(holm(family)) < 0.05 for family in families.tolist()]
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.015)


def test_deviation_interval_agrees_with_chi_square() -> None:
    values = [1.0, 2.0, 4.0]  # variance 7/3, two degrees of freedom
    low, high = deviation_interval(values)
    assert low == pytest.approx(math.sqrt(14 / 3 / stats.chi2.ppf(0.975, 2)))
    assert high == pytest.approx(math.sqrt(14 / 3 / stats.chi2.ppf(0.025, 2)))
    with pytest.raises(ValueError, match="two values"):
        deviation_interval([1.0])


def test_the_planner_gives_the_known_table() -> None:
    """Two-sided 5%, 80% power; difference in standard deviations."""
    ratios = (0.5, 1, 1.5, 2, 3, 4)
    assert [seeds_for(ratio, paired=False) for ratio in ratios] == [64, 17, 9, 6, 4, 3]
    assert [seeds_for(ratio) for ratio in ratios] == [34, 10, 6, 5, 4, 3]
    assert seeds_for(1e-4) is None
    assert seeds_for(1000) == 2


def test_power_agrees_with_simulated_experiments() -> None:
    generator = np.random.default_rng(10)
    for seeds, ratio in ((3, 3.0), (5, 1.0), (10, 1.0)):
        differences = generator.normal(ratio, 1, (8000, seeds))
        found = stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05
        assert power(seeds, ratio) == pytest.approx(np.mean(found), abs=0.015)
    assert power(4, 0.0) == pytest.approx(0.05)


def test_power_grows_with_seeds_and_difference_and_stays_a_probability() -> None:
    for seeds in (2, 3, 10, 1000):
        powers = [power(seeds, ratio) for ratio in np.geomspace(1e-3, 1e3, 60)]
        assert all(0 <= p <= 1 for p in powers)
        assert np.all(np.diff(powers) >= -1e-9)


def test_a_pilot_gives_a_range() -> None:
    pilot = [0.01, 0.03, 0.02]  # SD 0.01: the difference is one SD, two SDs
    assert seeds_needed(pilot, 0.01).likely == 10
    assert seeds_needed(pilot, -0.02).likely == 5
    found = seeds_needed(pilot, 0.02)
    low, high = deviation_interval(pilot)
    assert (found.fewest, found.most) == (seeds_for(0.02 / low), seeds_for(0.02 / high))
    assert seeds_needed(pilot, 0.0).likely is None
    assert seeds_needed(pilot, 0.02, wanted=0.95).likely > 5


def test_bootstrap_of_sums_is_that_of_a_mean_where_the_figure_is_one() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 200)
    rows = np.stack([values, np.ones(200)], axis=1)
    ours = sums_interval(rows, lambda sums: sums[:, 0] / sums[:, 1], seed=4)
    assert ours == pytest.approx(bootstrap_interval(values, seed=4), rel=1e-12)  # the same draws


def test_bootstrap_of_a_ratio_agrees_with_scipy() -> None:
    generator = np.random.default_rng(1)
    whole = generator.integers(1, 30, 300).astype(float)
    part = whole * generator.beta(2, 3, 300)
    ours = sums_interval(np.stack([part, whole], 1), lambda s: s[:, 0] / s[:, 1], resamples=9999)
    theirs = stats.bootstrap(
        (part, whole),
        lambda p, w, axis: p.sum(axis=axis) / w.sum(axis=axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.002)


def test_bootstrap_of_sums_leaves_out_what_is_undefined() -> None:
    """Precision, where in some draws nothing was called positive, and where nothing ever was."""

    def precision(sums: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.asarray(sums[:, 0] / sums[:, 1])

    low, high = sums_interval([[1, 1], [0, 0], [0, 0]], precision)
    assert (low, high) == (1, 1)
    assert all(math.isnan(end) for end in sums_interval([[0, 0], [0, 0]], precision))
    with pytest.raises(ValueError, match="at least one row"):
        sums_interval(np.zeros((0, 2)), precision)
