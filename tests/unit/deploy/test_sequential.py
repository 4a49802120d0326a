"""The judge's statistics against what they promise: error over all looks, by simulation with fixed seeds."""

import math
import random

import pytest

from serin.deploy.sequential import difference_sequence, harm_e_value, mean_sequence, rate_sequence

RUNS = 300
LOOKS = range(20, 201, 20)


def test_the_mean_stays_inside_its_sequence_at_every_look() -> None:
    left = 0
    for seed in range(RUNS):
        rng = random.Random(seed)
        values = [rng.gauss(1.0, 2.0) for _ in range(max(LOOKS))]
        intervals = [mean_sequence(values[:n], alpha=0.1) for n in LOOKS]
        left += any(not interval.lower <= 1.0 <= interval.upper for interval in intervals)
    assert left / RUNS <= 0.1


def test_a_sequence_narrows_and_is_infinite_without_data() -> None:
    rng = random.Random(1)
    values = [rng.gauss(0, 1) for _ in range(400)]
    widths = [mean_sequence(values[:n], 0.05).upper - mean_sequence(values[:n], 0.05).lower for n in (20, 100, 400)]
    assert widths == sorted(widths, reverse=True)
    assert mean_sequence([], 0.05).lower == -math.inf
    assert mean_sequence([3.0], 0.05).upper == math.inf
    assert difference_sequence([], [1.0, 2.0], 0.05).upper == math.inf


def test_the_rate_stays_inside_its_sequence_at_every_look() -> None:
    left = 0
    for seed in range(RUNS):
        rng = random.Random(seed)
        failures = [rng.random() < 0.05 for _ in range(max(LOOKS))]
        intervals = [rate_sequence(sum(failures[:n]), n, alpha=0.1) for n in LOOKS]
        left += any(not interval.lower <= 0.05 <= interval.upper for interval in intervals)
    assert left / RUNS <= 0.1


@pytest.mark.parametrize(("events", "trials"), [(0, 60), (60, 60), (3, 60), (0, 0)])
def test_rate_bounds_lie_in_zero_to_one_around_the_rate(events: int, trials: int) -> None:
    interval = rate_sequence(events, trials, 0.05)
    assert 0 <= interval.lower <= interval.upper <= 1
    if trials:
        assert interval.lower <= events / trials <= interval.upper
    if (events, trials) == (0, 60):  # closed form of the bound without events: 1 - (alpha / (n + 1))^(1 / n)
        assert interval.upper == pytest.approx(1 - (0.05 / 61) ** (1 / 60), abs=1e-4)


def outcomes(seed: int, candidate: float, champion: float, share: float = 0.5) -> list[tuple[bool, bool]]:
    rng = random.Random(seed)
    sides = [rng.random() < share for _ in range(400)]
    return [(side, rng.random() < (candidate if side else champion)) for side in sides]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_e_value_rarely_accuses_an_equal_candidate(share: float) -> None:
    accused = sum(
        any(harm_e_value(outcomes(seed, 0.05, 0.05, share)[:n]) >= 20 for n in range(20, 401, 20))
        for seed in range(RUNS)
    )
    assert accused / RUNS <= 0.05


def test_the_e_value_accuses_a_candidate_that_fails_more() -> None:
    caught = sum(harm_e_value(outcomes(seed, 0.12, 0.0)) >= 20 for seed in range(RUNS))
    assert caught / RUNS >= 0.95


def test_more_data_never_changes_closed_blocks() -> None:
    stream = outcomes(3, 0.3, 0.1)
    champion_only = [(False, False)] * 5
    closed = next(n for n in range(50, 60) if stream[n - 1][0] != stream[n - 2][0])
    assert harm_e_value(stream[:closed]) <= harm_e_value([*stream[:closed], *champion_only]) + 1e-9


def test_no_data_is_no_evidence() -> None:
    assert harm_e_value([]) == 1.0
    assert harm_e_value([(True, True)] * 50) == 1.0
