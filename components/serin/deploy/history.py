"""What a rollout has seen, look by look: kept in the store, for its page and for a controller that goes on."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from serin.core.errors import StorageError
from serin.core.storage import Storage
from serin.deploy.traffic import Outcome

MOST_LOOKS = 400
"""Of more, every second one is left out."""


@dataclass(frozen=True)
class Glance:
    """One look of the judge, as the page draws it."""

    time: str
    """UTC, ISO 8601."""
    state: str
    share_percent: float
    outcome: str
    e_value: float | None
    """Of all metrics together: harm is sure at ``e_threshold``."""
    e_threshold: float | None
    candidate_sessions: int
    champion_sessions: int
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: estimate, low, high, e_value and its threshold, tolerated, limit, proven."""


@dataclass(frozen=True)
class History:
    """A rollout so far."""

    requests: int = 0
    """Requests that the rollout sent."""
    failed_requests: int = 0
    """Of those, how many a user would have seen fail."""
    samples: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By release id, its last answered question."""
    glances: tuple[Glance, ...] = ()

    def with_outcomes(self, outcomes: Sequence[Outcome]) -> Self:
        """With what a batch of requests came back with."""
        answered = {one.release_id: asdict(one) for one in outcomes if one.status == 200 and one.answer}
        return replace(
            self,
            requests=self.requests + len(outcomes),
            failed_requests=self.failed_requests + sum(one.status == 0 or one.status >= 500 for one in outcomes),
            samples={**self.samples, **answered},
        )

    def with_glance(self, glance: Glance) -> Self:
        """With one look more; of too many, every second one of the older half is dropped."""
        glances = (*self.glances, glance)
        if len(glances) > MOST_LOOKS:
            half = len(glances) // 2
            glances = (*glances[:half:2], *glances[half:])
        return replace(self, glances=glances)


def load_history(storage: Storage, endpoint: str, rollout_id: str) -> History:
    """What is known of a rollout; an empty history where nothing is."""
    key = _key(endpoint, rollout_id)
    if not storage.exists(key):
        return History()
    try:
        values = json.loads(storage.read(key))
        glances = tuple(Glance(**glance) for glance in values.pop("glances"))
        return History(**values, glances=glances)
    except (StorageError, ValueError, TypeError, KeyError):
        return History()  # a picture, no record: the journal and the events hold what counts


def save_history(storage: Storage, endpoint: str, rollout_id: str, history: History) -> None:
    """Keep a history, whole or not at all."""
    storage.write(_key(endpoint, rollout_id), json.dumps(asdict(history)).encode())


def page_key(endpoint: str, rollout_id: str) -> str:
    """Where a rollout's page lies in the store."""
    return f"endpoints/{endpoint}/rollouts/{rollout_id}/canary.html"


def _key(endpoint: str, rollout_id: str) -> str:
    return f"endpoints/{endpoint}/rollouts/{rollout_id}/history.json"
