"""Settings of a rollout and the policy of its judge."""

from typing import Literal, Self

from pydantic import Field, model_validator

from serin.core.config import Section
from serin.core.verification import ReleaseRequirements
from serin.deploy.traffic_providers.config import TrafficConfig

REPLAYED_STEPS, USERS_STEPS = (20.0, 50.0), (1.0, 5.0, 10.0, 25.0, 50.0)
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


class ShadowConfig(Section):
    """What the candidate answers unseen, before any user gets an answer of it."""

    min_answers: int = Field(12, ge=0)
    """Answers of the candidate before it gets traffic; 0: no shadow."""
    questions: int = Field(12, ge=0)
    """Held-out questions that the rollout asks itself; the rest are mirrored requests of users."""
    mirror_percent: float = Field(100.0, gt=0, le=100)
    """Share of the champion's requests that are mirrored meanwhile."""
    deadline_s: float = Field(600.0, gt=0)
    """With too few answers after this long the rollout ends as ``on_inconclusive`` says."""
    alpha_fraction: float = Field(0.02, gt=0, lt=1)
    """The shadow's part of the judge's ``alpha``; the steps have the rest."""


class DeployConfig(Section):
    """How a release is rolled out."""

    steps_percent: tuple[float, ...] = ()
    """The candidate's share of sessions, step by step; empty: 20 and 50 where the rollout sends the traffic itself,
    and 1, 5, 10, 25 and 50 on users' traffic."""
    requests: Literal["replayed", "users"] = "replayed"
    """Whose requests are judged: held-out conversations that the rollout sends, or those that come anyway."""
    driver: Literal["task", "controller"] = "task"
    """Who carries the rollout out: the task that starts it, or a controller ('serin canary run --follow') to which the
    task hands over, so that no pod waits for hours."""
    shadow: ShadowConfig = ShadowConfig()
    """What happens before the candidate gets traffic."""
    sessions_per_look: int = Field(20, ge=1)
    """Replayed sessions between two looks of the judge."""
    look_interval_s: float = Field(30.0, gt=0)
    """Time between two looks at users' traffic."""
    settle_s: float = Field(15.0, ge=0)
    """Users' requests of the last so many seconds wait for the next look: the slow ones among them are still under
    way. Trips look at all."""
    min_sessions_per_step: int = Field(8, ge=1)
    """Sessions of the candidate at each share before it grows."""
    min_step_s: float = Field(0.0, ge=0)
    """Shortest time at each share."""
    max_sessions: int = Field(600, ge=0)
    """Sessions after which an undecided rollout ends as ``on_inconclusive`` says; 0: no limit."""
    deadline_s: float = Field(0.0, ge=0)
    """Time after which it does; 0: no limit."""
    on_inconclusive: Literal["hold", "rollback"] = "rollback"
    """``hold`` leaves the champion alone in traffic and the question open (``serin canary promote`` or ``abort``
    answer it); ``rollback`` turns the candidate away."""
    ready_timeout_s: float = Field(600.0, gt=0)
    """A candidate that is not ready by then is turned away."""
    concurrency: int = Field(2, ge=1)
    """Replayed sessions under way at once."""
    request_timeout_s: float = Field(60.0, gt=0)
    """Limit of one replayed request."""
    traffic: TrafficConfig = TrafficConfig()
    """What moves the traffic: our gateway, or an object of the cluster."""
    seed: int = 7
    """Order of the replayed questions."""
    judge: JudgePolicy = JudgePolicy()
    """When to advance, promote and roll back."""
    release: ReleaseRequirements = ReleaseRequirements()
    """What is asked of a release, beside what the environment asks (``SERIN_RELEASE_REQUIREMENTS``)."""

    @property
    def shares(self) -> tuple[float, ...]:
        """The steps, in percent of sessions."""
        return self.steps_percent or (REPLAYED_STEPS if self.requests == "replayed" else USERS_STEPS)

    @property
    def step_policy(self) -> JudgePolicy:
        """The judge's policy for the steps, less the shadow's part of alpha."""
        if not self.shadow.min_answers:
            return self.judge
        return self.judge.model_copy(update={"alpha": self.judge.alpha * (1 - self.shadow.alpha_fraction)})

    @model_validator(mode="after")
    def _steps_grow(self) -> Self:
        pairs = zip((0.0, *self.steps_percent), self.steps_percent, strict=False)
        if any(after <= before for before, after in pairs) or any(share > 100 for share in self.steps_percent):
            raise ValueError("steps_percent must grow from above 0 to at most 100, as (1, 5, 10, 25, 50)")
        if self.requests == "users" and not (self.max_sessions or self.deadline_s):
            raise ValueError("max_sessions or deadline_s must be set: a rollout on users' traffic has to end")
        return self
