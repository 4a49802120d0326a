"""Which release a session gets: a sticky, weighted split.

A session's bucket depends on the rollout's salt and the session id alone.  The candidate serves the buckets below
its weight, so raising the weight only ever moves sessions from the champion to the candidate, and lowering it only
back; a new salt deals the sessions anew.

How many sessions of N that makes is chance for ids that clients give: at weight p the share has a standard deviation
of sqrt(p (1 - p) / N), 0.158 points at 50% of 100,000 sessions.  Ids that the gateway gives itself are chosen so that
their buckets go through all of 0 to 9999 evenly (``SessionIds``): there every 1,000 have the share exactly.
"""

import hashlib
import os
from collections import deque

BUCKETS = 10_000
STRATA = 1_000
"""Parts of the buckets, of 10 each, that ids are given in turn: shares are exact in steps of 0.1%."""
KEPT_IDS = 8
"""Ids that are kept in each part until its turn comes."""
DRAWN_IDS = 64
"""Random ids that are drawn at once."""
_DIGITS = (0, 6, 4, 2, 8, 1, 7, 5, 3, 9)
"""An order of 0 to 9 whose beginnings lie evenly: Faure's for base 10."""


def bucket(salt: str, session_id: str) -> int:
    """The session's bucket, 0 to 9999, even over sessions."""
    digest = hashlib.sha256(f"{salt}\0{session_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS


def takes_candidate(salt: str, session_id: str, weight_percent: float) -> bool:
    """Whether a session belongs to the candidate at a weight (0 to 100, in steps of 0.01)."""
    return bucket(salt, session_id) < round(weight_percent * BUCKETS / 100)


class SessionIds:
    """Gives ids to sessions that come without one, so that their buckets are even over any 1,000 in a row.

    The parts come in the order of van der Corput's sequence in base 10 with permuted digits (H. Faure, "Good
    permutations for extreme discrepancy", Journal of Number Theory 42, 1992): any 1,000 in a row hit each part once,
    and of fewer every weight gets about its share.  An id is random otherwise: random ids are drawn and kept until
    their part's turn.

    Args:
        salt: of the rollout.
        start: where in the sequence; None: anywhere, so that replicas do not all begin with the candidate.
    """

    def __init__(self, salt: str, start: int | None = None) -> None:
        self._salt = salt
        self._next = int.from_bytes(os.urandom(4), "big") if start is None else start
        self._kept: list[deque[str]] = [deque(maxlen=KEPT_IDS) for _ in range(STRATA)]

    def new(self) -> str:
        """An id of 32 hex digits."""
        wanted = self._kept[_part(self._next)]
        self._next += 1
        while not wanted:
            drawn = os.urandom(16 * DRAWN_IDS).hex()
            for begin in range(0, len(drawn), 32):
                session_id = drawn[begin : begin + 32]
                self._kept[bucket(self._salt, session_id) * STRATA // BUCKETS].append(session_id)
        return wanted.popleft()


def _part(number: int) -> int:
    """The sequence: the number's last three digits, permuted, in reverse order."""
    ones, tens, hundreds = number % 10, number // 10 % 10, number // 100 % 10
    return 100 * _DIGITS[ones] + 10 * _DIGITS[tens] + _DIGITS[hundreds]
