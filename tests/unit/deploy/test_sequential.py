"""The judge's statistics against what they promise: errors over all looks, by simulation with fixed seeds."""

import itertools
import math

import numpy as np
import pytest

from serin.deploy.sequential import (
    ODDS_WEIGHTS,
    SHIFT_WEIGHTS,
    Path,
    betting_path,
    blocks_of,
    bounded_sequence,
    difference_path,
    difference_sequence,
    rate_log_scores,
    shift_log_scores,
    tilted_path,
)

RUNS = 600
SESSIONS = 300


def sides(rng: np.random.Generator, share: float, number: int = SESSIONS) -> np.ndarray:
    return rng.random(number) < share


def failures(
    rng: np.random.Generator, rates: np.ndarray | float, number: int = SESSIONS
) -> tuple[np.ndarray, np.ndarray]:
    """Failures and requests of sessions whose requests fail together: correlation 0.2 within a session."""
    lengths = rng.geometric(0.4, number)
    level = rng.beta(np.asarray(rates) * 4, (1 - np.asarray(rates)) * 4, number)
    return rng.binomial(lengths, level).astype(float), lengths.astype(float)


def rate_path(of_candidate: np.ndarray, events: np.ndarray, trials: np.ndarray) -> Path:
    blocks = blocks_of(of_candidate, 20)
    return tilted_path(of_candidate, rate_log_scores(events, trials, blocks), blocks, ODDS_WEIGHTS)


def shift_path(of_candidate: np.ndarray, values: np.ndarray) -> Path:
    blocks = blocks_of(of_candidate, 20)
    return tilted_path(of_candidate, shift_log_scores(values, blocks), blocks, SHIFT_WEIGHTS)


def test_blocks_end_at_their_size_once_both_sides_are_in_them() -> None:
    of_candidate = np.array([0, 0, 0, 1, 1, 1, 1, 0, 0], dtype=bool)
    blocks = blocks_of(of_candidate, 2)
    assert blocks.ends.tolist() == [4, 8]
    assert blocks.index.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, -1]
    assert blocks_of(np.zeros(50, dtype=bool), 2).number == 0
    assert blocks_of(np.zeros(0, dtype=bool), 2).number == 0


def test_a_blocks_e_value_is_the_tilt_over_its_mean_of_all_hands() -> None:
    rng = np.random.default_rng(1)
    for candidates in (1, 3, 6, 7):
        of_candidate = np.arange(8) < candidates
        scores = rng.normal(0, 1, (8, 1))
        hands = [math.exp(sum(scores[list(hand), 0])) for hand in itertools.combinations(range(8), candidates)]
        expected = math.log(math.exp(scores[of_candidate, 0].sum()) / np.mean(hands))
        assert tilted_path(of_candidate, scores, blocks_of(of_candidate, 8), (1.0,)).last == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_e_values_have_a_mean_of_at_most_one_under_the_null(share: float) -> None:
    """At a fixed time; correlated failures, heavy tails, and a level that drifts over the rollout."""
    found: dict[str, list[float]] = {"rate": [], "shift": [], "bet": []}
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        of_candidate = sides(rng, share, 60)
        drift = np.linspace(0, 1, 60)
        found["rate"].append(rate_path(of_candidate, *failures(rng, 0.05 + 0.1 * drift, 60)).last)
        found["shift"].append(shift_path(of_candidate, drift + rng.standard_t(3, 60)).last)
        gains = rng.choice([-0.5, 0.5], 20)
        found["bet"].append(betting_path(gains, np.arange(1, 21), 0.5).last)
    for name, logs in found.items():
        e_values = np.exp(logs)
        error = e_values.std() / math.sqrt(RUNS)
        assert e_values.mean() - 3 * error <= 1.0, (name, e_values.mean(), error)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_equal_releases_are_rarely_accused_at_any_time(share: float) -> None:
    accused = {"rate": 0, "shift": 0, "bounded": 0}
    runs = 400
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        of_candidate = sides(rng, share)
        accused["rate"] += rate_path(of_candidate, *failures(rng, 0.05)).log_e.max() >= math.log(20)
        accused["shift"] += shift_path(of_candidate, rng.exponential(1.0, SESSIONS)).log_e.max() >= math.log(20)
        interval = bounded_sequence(rng.beta(8, 2, SESSIONS), of_candidate, 0.05)
        accused["bounded"] += not interval.lower <= 0 <= interval.upper
    assert all(number / runs <= 0.05 for number in accused.values()), accused


def test_a_candidate_that_is_better_is_accused_even_less() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        of_candidate = sides(rng, 0.3)
        assert rate_path(of_candidate, *failures(rng, np.where(of_candidate, 0.01, 0.1))).last < math.log(20)
        assert shift_path(of_candidate, rng.normal(0, 0.4, SESSIONS) - 0.2 * of_candidate).last < 0


def test_a_candidate_that_is_worse_is_accused() -> None:
    caught = {"rate": 0, "shift": 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        of_candidate = sides(rng, 0.5)
        caught["rate"] += rate_path(of_candidate, *failures(rng, np.where(of_candidate, 0.2, 0.05))).last >= math.log(
            20
        )
        caught["shift"] += shift_path(of_candidate, rng.normal(0, 0.5, SESSIONS) + 0.3 * of_candidate).last >= math.log(
            20
        )
    assert min(caught.values()) >= 57, caught


def test_more_data_never_changes_what_a_closed_block_said() -> None:
    rng = np.random.default_rng(3)
    of_candidate = sides(rng, 0.3)
    events, trials = failures(rng, 0.1)
    values = rng.normal(0, 1, SESSIONS)
    for number in (50, 137, 200):
        whole, part = (
            rate_path(of_candidate, events, trials),
            rate_path(of_candidate[:number], events[:number], trials[:number]),
        )
        assert whole.log_e[: len(part.log_e)] == pytest.approx(part.log_e)
        whole, part = shift_path(of_candidate, values), shift_path(of_candidate[:number], values[:number])
        assert whole.log_e[: len(part.log_e)] == pytest.approx(part.log_e)
        assert whole.ends[: len(part.ends)].tolist() == part.ends.tolist()


def test_the_order_of_sessions_within_a_block_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    of_candidate = np.arange(20) % 4 == 0
    values = rng.normal(0, 1, 20)
    order = np.append(rng.permutation(19), 19)
    assert shift_path(of_candidate[order], values[order]).last == pytest.approx(shift_path(of_candidate, values).last)


def test_one_outlier_decides_nothing() -> None:
    rng = np.random.default_rng(5)
    of_candidate = sides(rng, 0.3)
    values = rng.normal(0, 0.3, SESSIONS)
    values[np.flatnonzero(of_candidate)[7]] = 50.0
    assert shift_path(of_candidate, values).log_e.max() < math.log(20)


def test_the_difference_stays_inside_its_sequence_at_every_look_though_the_level_drifts_and_the_share_grows() -> None:
    left = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        of_candidate = rng.random(400) < np.repeat([0.1, 0.5], 200)
        level = np.repeat([0.0, 1.0], 200)  # a pooled comparison would be off by 0.4
        values = level + rng.normal(0, np.where(of_candidate, 0.9, 0.5))
        ends, estimates, widths = difference_path(values, of_candidate, 0.1)
        judged = ends >= 60
        left += bool((np.abs(estimates[judged]) > widths[judged]).any())
    assert left / 400 <= 0.1


def test_sequences_narrow_and_are_widest_without_data() -> None:
    rng = np.random.default_rng(1)
    of_candidate, values = sides(rng, 0.5, 800), rng.beta(4, 4, 800)
    for sequence in (difference_sequence, bounded_sequence):
        intervals = [sequence(values[:n], of_candidate[:n], 0.05) for n in (40, 200, 800)]
        widths = [interval.upper - interval.lower for interval in intervals]
        assert widths == sorted(widths, reverse=True)
        assert all(interval.lower <= interval.estimate <= interval.upper for interval in intervals)
    none = np.zeros(0)
    assert difference_sequence(none, none.astype(bool), 0.05).upper == math.inf
    assert bounded_sequence(none, none.astype(bool), 0.05).lower == -1.0


def test_values_without_any_spread_are_proof_but_no_certainty() -> None:
    of_candidate = np.arange(120) % 2 == 0
    interval = bounded_sequence(np.zeros(120), of_candidate, 0.05)
    assert interval.estimate == 0.0
    assert 0.02 < interval.upper < 0.15
    assert -0.15 < interval.lower < -0.02


def test_no_data_is_no_evidence() -> None:
    assert rate_path(np.zeros(0, dtype=bool), np.zeros(0), np.zeros(0)).last == 0.0
    assert rate_path(np.ones(50, dtype=bool), np.ones(50), np.ones(50)).last == 0.0
    assert betting_path(np.zeros(0), np.zeros(0, dtype=np.int64), 1.0).last == 0.0
