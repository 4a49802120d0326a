"""How other tools decide on a canary, re-implemented from their documentation, on the same requests as our judge.

Each rule sees, at every look, what its tool would see, and answers with the first look at which it would roll back.
Thresholds that a user would have to set are set with knowledge that no user has: the champion's true level.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_ERRORS_RATIO, MAX_LATENCY_RATIO = 2.0, 1.25
"""Of the threshold rules: double the usual error rate, a quarter more than the usual latency."""
STRIKES = 5
"""Flagger's ``threshold`` in its own examples: failed checks before a rollback."""
FAILURE_LIMIT = 2
"""Argo Rollouts' ``failureLimit``: more failed measurements end an analysis (its default of 0 is stricter)."""
TOLERANCE = 0.25
"""Kayenta's default tolerance of its Mann-Whitney classifier: a share of the baseline's mean."""
KAYENTA_Z = 2.33
"""98% confidence, two-sided, as in Kayenta's NetflixACAJudge."""
MIN_POINTS = 5
Z_LEVEL = 2.2414
"""One-sided 5% split over two metrics, at each look anew."""


@dataclass(frozen=True)
class Recorded:
    """Requests of a rollout in order, and the looks at them."""

    of_candidate: NDArray[np.bool_]
    latency: Floats
    """(requests,)"""
    failed: Floats
    """(requests,) 0 or 1; all 0 where failures are not measured."""
    looks: NDArray[np.int64]
    """Requests that had arrived at each."""
    usual_latency: float
    """The champion's true mean."""
    usual_errors: float
    """The champion's true rate."""

    def per_look(self, values: Floats, *, of_candidate: bool) -> tuple[Floats, Floats]:
        """(looks,) sum of a value over one side's requests since the look before, and their number."""
        side = self.of_candidate == of_candidate
        edges = np.append(0, self.looks)
        total = np.append(0.0, np.cumsum(values * side))
        number = np.append(0, np.cumsum(side))
        return np.diff(total[edges]), np.diff(number[edges]).astype(float)


def strikes(recorded: Recorded) -> int | None:
    """Flagger-like: a check of the last interval fails on either threshold; the fifth failed check rolls back."""
    return _first(np.cumsum(_beyond(recorded)) >= STRIKES)


def thresholds(recorded: Recorded) -> int | None:
    """Argo-like: a measurement of the last interval fails on either threshold; ``failureLimit`` of them may pass."""
    return _first(np.cumsum(_beyond(recorded)) > FAILURE_LIMIT)


def mann_whitney(recorded: Recorded) -> int | None:
    """Kayenta-like: interval means of both sides so far, canary less tolerance surely above the baseline's ranks."""
    tripped = np.zeros(len(recorded.looks), dtype=bool)
    for values in (recorded.latency, recorded.failed):
        if not values.any():
            continue
        means = []
        for of_candidate in (True, False):
            total, number = recorded.per_look(values, of_candidate=of_candidate)
            means.append(total / np.maximum(number, 1))
        points = np.arange(1, len(recorded.looks) + 1)
        base = np.cumsum(means[1]) / points
        for look in points[MIN_POINTS - 1 :] - 1:
            canary = means[0][: look + 1] - TOLERANCE * base[look]
            above = np.sign(canary[:, None] - means[1][None, : look + 1])
            n = look + 1
            z = (above.sum() / 2) / math.sqrt(n * n * (2 * n + 1) / 12)
            tripped[look] |= z > KAYENTA_Z
    return _first(tripped)


def repeated_z(recorded: Recorded) -> int | None:
    """A z-test of all requests so far at every look, as if it were the only one and requests were independent."""
    tripped = np.zeros(len(recorded.looks), dtype=bool)
    for values in (np.log(recorded.latency), recorded.failed):
        moments = []
        for of_candidate in (True, False):
            side = recorded.of_candidate == of_candidate
            number = np.maximum(np.cumsum(side)[recorded.looks - 1], 2)
            mean = np.cumsum(values * side)[recorded.looks - 1] / number
            square = np.cumsum(values**2 * side)[recorded.looks - 1] / number
            moments.append((mean, np.maximum(square - mean**2, 0) / number))
        error = np.sqrt(moments[0][1] + moments[1][1])
        with np.errstate(divide="ignore", invalid="ignore"):
            tripped |= (moments[0][0] - moments[1][0]) / error > Z_LEVEL
    return _first(tripped)


PEERS: dict[str, Callable[[Recorded], int | None]] = {
    "flagger_like_strikes": strikes,
    "argo_like_thresholds": thresholds,
    "kayenta_like_mann_whitney": mann_whitney,
    "repeated_z_test": repeated_z,
}


def _beyond(recorded: Recorded) -> NDArray[np.bool_]:
    """(looks,) whether the candidate's last interval is beyond a threshold."""
    slow, number = recorded.per_look(recorded.latency, of_candidate=True)
    bad, _ = recorded.per_look(recorded.failed, of_candidate=True)
    asked = np.maximum(number, 1)
    too_slow = slow / asked > MAX_LATENCY_RATIO * recorded.usual_latency
    return too_slow | (bad / asked > MAX_ERRORS_RATIO * max(recorded.usual_errors, 1e-9))


def _first(tripped: NDArray[np.bool_]) -> int | None:
    return int(np.argmax(tripped)) if tripped.any() else None
