import itertools

import pytest

from serin.serve.routing import BUCKETS, SessionIds, bucket, takes_candidate

SESSIONS = [f"session-{number}" for number in range(20_000)]


def share(weight_percent: float, salt: str = "s") -> set[str]:
    return {session for session in SESSIONS if takes_candidate(salt, session, weight_percent)}


def test_the_candidates_share_is_its_weight():
    for weight in (1, 10, 33.3, 50, 90):
        assert abs(len(share(weight)) / len(SESSIONS) - weight / 100) < 0.01


def test_raising_the_weight_only_moves_sessions_to_the_candidate():
    shares = [share(weight) for weight in (0, 1, 5, 5.01, 20, 80, 100)]
    assert all(smaller <= larger for smaller, larger in itertools.pairwise(shares))
    assert shares[0] == set()
    assert len(shares[-1]) == len(SESSIONS)


def test_a_session_keeps_its_bucket_and_a_salt_deals_anew():
    assert bucket("a", "x") == bucket("a", "x")
    assert 0 <= bucket("a", "x") < BUCKETS
    both = len(share(50, "a") & share(50, "b")) / len(SESSIONS)
    assert 0.23 < both < 0.27


@pytest.mark.parametrize("weight", [1, 5, 10, 25, 50])
def test_ids_of_clients_get_the_share_within_two_tenths_of_a_point_over_100k(weight: int):
    ids = (f"{number:x}" for number in range(100_000))  # fixed: by chance alone 1 in 5 sets is further off at 50%
    share_percent = sum(takes_candidate("rollout", session, weight) for session in ids) / 1000
    assert abs(share_percent - weight) < 0.2


def test_ids_of_our_own_get_the_share_exactly_in_every_thousand():
    ids = SessionIds("rollout")
    buckets = [bucket("rollout", ids.new()) for _ in range(100_000)]
    for weight in (1, 5, 10, 25, 50):
        counts = [0, *itertools.accumulate(number < weight * 100 for number in buckets)]
        assert all(counts[end] - counts[end - 1000] == weight * 10 for end in range(1000, len(counts)))
        assert all(abs(counts[end] - counts[end - 40] - weight * 0.4) <= 2 for end in range(40, len(counts)))


def test_ids_of_our_own_are_distinct_and_start_anywhere():
    one, other = SessionIds("s"), SessionIds("s")
    first = [one.new() for _ in range(2000)]
    assert len({*first, *(other.new() for _ in range(2000))}) == 4000
    assert all(len(name) == 32 for name in first)
    assert len({bucket("s", SessionIds("s").new()) // 10 for _ in range(20)}) > 5
