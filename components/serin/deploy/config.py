"""Settings of a rollout and the policy of its judge."""

from typing import Literal

from pydantic import Field

from serin.core.config import Section
from serin.core.verification import ReleaseRequirements


class JudgePolicy(Section):
    """What counts as harm, what counts as proof of no harm, and how sure the judge must be."""

    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Chance of a false alarm over the whole rollout, all metrics and looks together (split evenly over metrics)."""
    tolerated_ttft_ratio: float = Field(1.1, ge=1)
    """Roll back once the candidate's time to first token is surely more than this times the champion's."""
    max_ttft_ratio: float = Field(1.4, gt=1)
    """Promote only once it is surely less than this."""
    max_error_increase: float = Field(0.10, gt=0, le=1)
    """Promote only once the share of sessions with an error has surely risen by less than this."""
    max_support_drop: float = Field(0.15, gt=0, le=1)
    """Promote only once the support score (0 to 1) has surely dropped by less than this."""
    min_sessions: int = Field(30, ge=5)
    """Sessions on each side before any promotion."""
    warm_up_sessions: int = Field(3, ge=0)
    """First sessions of each side that are left out: caches and connections are cold."""
    trip_window: int = Field(10, ge=3)
    """The last so many requests of the candidate that the hard trip looks at."""
    trip_errors: int = Field(5, ge=2)
    """Roll back at once when so many of them failed."""


class DeployConfig(Section):
    """How a release is rolled out."""

    steps_percent: tuple[float, ...] = (20.0, 50.0)
    """The candidate's share of sessions, step by step."""
    sessions_per_look: int = Field(20, ge=1)
    """Sessions between two looks of the judge."""
    min_sessions_per_step: int = Field(8, ge=1)
    """Sessions of the candidate before the share grows."""
    max_sessions: int = Field(600, ge=10)
    """Sessions after which an undecided rollout ends as ``on_inconclusive`` says."""
    on_inconclusive: Literal["hold", "rollback"] = "rollback"
    """``hold`` leaves the champion alone in traffic and the question open; ``rollback`` turns the candidate away."""
    concurrency: int = Field(2, ge=1)
    """Sessions under way at once."""
    request_timeout_s: float = Field(60.0, gt=0)
    """Limit of one replayed request."""
    gateway_url: str = ""
    """A running gateway to roll out on (its token in SERIN_ADMIN_TOKEN); empty: ``$SERIN_GATEWAY_URL``, else one is
    started for the rollout's length."""
    seed: int = 7
    """Order of the replayed questions."""
    judge: JudgePolicy = JudgePolicy()
    """When to advance, promote and roll back."""
    release: ReleaseRequirements = ReleaseRequirements()
    """What is asked of a release, beside what the environment asks (``SERIN_RELEASE_REQUIREMENTS``)."""
