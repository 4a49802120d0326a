"""Settings of a rollout and the policy of its judge."""

from typing import Literal, Self

from pydantic import Field, model_validator

from serin.core.config import Section
from serin.core.verification import ReleaseRequirements

MetricKind = Literal["rate", "log_mean", "bounded_mean"]


class MetricPolicy(Section):
    """One metric of the judge: what is compared, what is harm, and what proves that there is none."""

    name: str = Field(min_length=1)
    """One of the built-in metrics (serin.deploy.judge_metrics), or a name of your own."""
    field: str = ""
    """Field of the events, or of the extra values, that a metric of your own reads; empty: its name."""
    kind: MetricKind
    """``rate``: a share of requests (values 0 or 1); ``log_mean``: a positive number, compared as a ratio of geometric
    means; ``bounded_mean``: a score in 0 to 1, compared as a difference."""
    better: Literal["lower", "higher"] = "lower"
    """Which way is good."""
    tolerated: float | None = Field(None, ge=0)
    """Roll back once the change for the worse surely exceeds this: a ratio (1.1) for ``log_mean``, else a difference
    (0.05). Nothing: the metric is reported and never rolls back."""
    limit: float | None = Field(None, gt=0)
    """Promote only once the change for the worse is surely less than this, in the same unit; nothing: not asked."""
    required: bool = False
    """Whether ``limit`` must be proven for a promotion even where there are no values yet."""
    weight: float = Field(1.0, gt=0)
    """The metric's part of ``alpha``, relative to the other metrics that can roll back."""

    @model_validator(mode="after")
    def _ratios_are_at_least_one(self) -> Self:
        if self.kind == "log_mean" and any(value is not None and value < 1 for value in (self.tolerated, self.limit)):
            raise ValueError("tolerated and limit of a log_mean are ratios for the worse: 1.1 means ten percent")
        if self.required and self.limit is None:
            raise ValueError("a required metric needs a limit")
        return self


class JudgePolicy(Section):
    """What counts as harm, what counts as proof of no harm, and how sure the judge must be."""

    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Bound on the chance that a candidate that is no worse is ever rolled back, over all metrics and looks together;
    and, for each metric, on the chance that a candidate beyond its limit is promoted."""
    tolerated_ttft_ratio: float = Field(1.1, ge=1)
    """Roll back once the candidate's time to first token is surely more than this times the champion's."""
    max_ttft_ratio: float = Field(1.4, gt=1)
    """Promote only once it is surely less than this."""
    max_error_increase: float = Field(0.05, gt=0, le=1)
    """Promote only once the share of requests with an error (of a session's, on average) has surely risen by less."""
    tolerated_support_drop: float | None = Field(None, ge=0, le=1)
    """Roll back once the support score (0 to 1) has surely dropped by more than this; nothing: a third of
    ``max_support_drop``."""
    max_support_drop: float = Field(0.15, gt=0, le=1)
    """Promote only once the support score has surely dropped by less than this."""
    metrics: tuple[MetricPolicy, ...] = ()
    """Further metrics, and those that replace a built-in one of the same name."""
    default_metrics: bool = True
    """Whether the built-in metrics are judged; without them ``metrics`` says all."""
    min_sessions: int = Field(30, ge=5)
    """Sessions on each side before any promotion."""
    warm_up_sessions: int = Field(3, ge=0)
    """First sessions of each side that are left out: caches and connections are cold."""
    session_age_s: float = Field(0.0, ge=0)
    """Judge every session at the same age: by the requests of its first so many seconds, once those have passed.
    0 judges sessions as they are, for traffic whose sessions have ended at a look."""
    concurrent: bool = True
    """Leave out the champion's sessions from before the candidate's first."""
    trip_window: int = Field(10, ge=3)
    """The last so many requests of the candidate that the burst trip looks at."""
    trip_errors: int = Field(5, ge=2)
    """Roll back at once when so many of them failed, unless the champion fails half as often at the same time."""
    trip_sessions: int = Field(4, ge=1)
    """... and came from so many sessions at least: one broken conversation is no burst."""
    trip_restarts: int = Field(3, ge=1)
    """Roll back at once when the candidate's engine was started again so often (a crash loop)."""
    trip_rails: tuple[str, ...] = ("secrets",)
    """Roll back at once when one of these output rails acts on an answer of the candidate and on none of the
    champion's: what it found was in the answer, even where it was masked."""


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
