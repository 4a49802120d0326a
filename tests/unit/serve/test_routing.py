import itertools

from serin.serve.routing import BUCKETS, bucket, takes_candidate

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
