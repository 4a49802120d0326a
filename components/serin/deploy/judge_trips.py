"""Hard trips: what rolls a candidate back at once, without waiting for statistics."""

import math
from typing import Any

from serin.deploy.config import JudgePolicy
from serin.deploy.judge_sessions import Trips

MIN_CHAMPION_REQUESTS = 3
"""So many of the champion's requests tell whether it fails as well."""


def tripped(trips: Trips, policy: JudgePolicy) -> tuple[list[str], dict[str, Any]]:
    """What tripped, as sentences, and what each trip saw, with its chance of a false alarm.

    The burst: ``burst_bound`` at the champion's own rate of failures.  The leak acts on a candidate that leaked where
    the champion, with more answers, did not; its bound is the chance that an identical release leaks at all in as many
    answers, at the upper 95% limit (the rule of three) of the champion's rate.  A crash loop cannot come about by
    chance: its bound is 0.
    """
    window = trips.recent[-policy.trip_window :]
    errors = sum(failed for _, failed in window)
    sessions = len({session for session, failed in window if failed})
    champion = trips.champion_recent
    champion_too = len(champion) >= MIN_CHAMPION_REQUESTS and sum(champion) / len(champion) >= errors / (
        2 * max(len(window), 1)
    )
    burst = errors >= policy.trip_errors and sessions >= min(policy.trip_sessions, policy.trip_errors)
    reasons = []
    if trips.restarts >= policy.trip_restarts:
        reasons.append(f"The candidate's engine was started again {trips.restarts} times.")
    if trips.leaks and not trips.champion_leaks:
        reasons.append(
            f"{trips.leaks} answers of the candidate held what {', '.join(policy.trip_rails)} must not let out."
        )
    if burst and not champion_too:
        reasons.append(f"{errors} of the candidate's last {len(window)} requests failed.")
    rate = (sum(champion) + 0.5) / (len(champion) + 1) if champion else 0.01
    seen = {
        "recent_errors": errors,
        "failing_sessions": sessions,
        "champion_fails_too": champion_too and errors > 0,
        "burst_false_trip_bound": float(f"{burst_bound(policy, rate, len(trips.recent)):.3g}"),
        "restarts": trips.restarts,
        "leaks": trips.leaks,
        "champion_leaks": trips.champion_leaks,
    }
    return reasons, seen


def burst_bound(policy: JudgePolicy, rate: float, num_requests: int) -> float:
    """Bound on the chance that a burst trips although requests fail independently, each at ``rate``.

    A union bound over the failures that complete a burst: n p P(Binomial(w - 1, p) >= k - 1).  Requests of one session
    do not fail independently, which is why a burst needs ``trip_sessions`` sessions as well.
    """
    window, errors = policy.trip_window - 1, policy.trip_errors - 1
    tail = math.fsum(
        math.comb(window, count) * rate**count * (1 - rate) ** (window - count) for count in range(errors, window + 1)
    )
    return min(1.0, num_requests * rate * tail)
