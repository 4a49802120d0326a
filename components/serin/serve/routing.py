"""Which release a session gets: a sticky, weighted split.

A session's bucket depends on the rollout's salt and the session id alone.  The candidate serves the buckets below
its weight, so raising the weight only ever moves sessions from the champion to the candidate, and lowering it only
back; a new salt deals the sessions anew.
"""

import hashlib

BUCKETS = 10_000


def bucket(salt: str, session_id: str) -> int:
    """The session's bucket, 0 to 9999, even over sessions."""
    digest = hashlib.sha256(f"{salt}\0{session_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS


def takes_candidate(salt: str, session_id: str, weight_percent: float) -> bool:
    """Whether a session belongs to the candidate at a weight (0 to 100, in steps of 0.01)."""
    return bucket(salt, session_id) < round(weight_percent * BUCKETS / 100)
