import numpy as np
import pytest
from scipy import stats

from serin.core.statistics import (
    bootstrap_mean,
    energy_coefficients,
    euclidean_distances,
    mean_shift_test,
    wilson_interval,
)


def test_the_bootstrap_interval_agrees_with_scipys_bca():
    values = np.random.default_rng(1).exponential(size=80)
    ours = bootstrap_mean(values, resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=2).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)
    assert ours.estimate == pytest.approx(values.mean())
    assert ours.count == 80


def test_the_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(3)
    covered = 0
    for seed in range(200):
        interval = bootstrap_mean(generator.normal(0.1, 0.4, 60), resamples=1_000, seed=seed)
        covered += interval.low <= 0.1 <= interval.high
    assert 0.89 <= covered / 200 <= 0.99


def test_the_bootstrap_is_repeatable_and_depends_on_its_seed():
    values = np.random.default_rng(1).normal(size=40)
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)


def test_equal_values_give_a_point():
    interval = bootstrap_mean([0.25] * 10)
    assert (interval.low, interval.estimate, interval.high) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_the_bootstrap_refuses_what_has_no_interval(values):
    with pytest.raises(ValueError, match=r"are needed|not finite"):
        bootstrap_mean(values)


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (7, 20), (20, 20), (3, 500)])
def test_the_wilson_interval_agrees_with_scipy(successes, trials):
    ours = wilson_interval(successes, trials)
    theirs = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_the_wilson_interval_of_no_trials_is_everything():
    assert (wilson_interval(0, 0).low, wilson_interval(0, 0).high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="impossible"):
        wilson_interval(3, 2)


def test_a_shifted_mean_is_found_in_its_direction_only():
    generator = np.random.default_rng(4)
    reference, current = generator.normal(size=150), generator.normal(0.6, 1, 80)
    assert mean_shift_test(reference, current).p_value < 0.01
    assert mean_shift_test(reference, current, alternative="greater").p_value < 0.01
    assert mean_shift_test(reference, current, alternative="less").p_value > 0.9
    assert mean_shift_test(reference, current).statistic == pytest.approx(current.mean() - reference.mean())


def test_the_mean_shift_test_raises_false_alarms_as_often_as_it_says():
    generator = np.random.default_rng(5)
    alarms = 0
    for seed in range(200):
        reference, current = generator.normal(size=60), generator.normal(size=40)
        alarms += mean_shift_test(reference, current, permutations=199, seed=seed).p_value <= 0.05
    assert alarms <= 20


def test_energy_coefficients_agree_with_their_definition_for_each_pair_of_samples():
    points = np.random.default_rng(6).normal(size=(12, 3))
    current, reference = np.zeros((12, 2)), np.zeros((12, 2))
    current[[0, 1, 2], 0] = [1, 2, 1]  # an item may be drawn twice
    reference[4:, 0] = 1
    current[:6, 1] = 1
    reference[6:, 1] = 1
    first = energy_coefficients(euclidean_distances(points), current, reference)
    for pair in (0, 1):
        one = np.repeat(points, current[:, pair].astype(int), axis=0)
        other = np.repeat(points, reference[:, pair].astype(int), axis=0)
        between, within_one, within_other = (
            np.linalg.norm(a[:, None] - b[None, :], axis=2).mean()
            for a, b in ((one, other), (one, one), (other, other))
        )
        assert first[pair] == pytest.approx((2 * between - within_one - within_other) / (2 * between))


def test_equal_points_have_no_energy():
    labels = np.array([[1.0], [1.0], [0.0]])
    assert energy_coefficients(euclidean_distances(np.ones((3, 2))), labels, 1 - labels) == [0.0]
