"""From a rollout's requests to what the judge compares: sessions of both sides, in order of arrival."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from serin.core.errors import InputError
from serin.core.events import EndpointEvent
from serin.deploy.config import JudgePolicy, MetricPolicy
from serin.deploy.judge_metrics import Fields, failed, metrics_of, value_of
from serin.deploy.sequential import Bools, Floats, Ints


@dataclass(frozen=True)
class Sample:
    """A metric's values in one session."""

    total: float
    """Their sum (of logarithms for a ``log_mean``)."""
    count: int

    @property
    def mean(self) -> float:
        """Their mean."""
        return self.total / self.count


@dataclass(frozen=True)
class Session:
    """What one session saw; requests of a session are not independent, sessions are."""

    of_candidate: bool
    samples: Mapping[str, Sample]
    """By name of the metric; absent where the session has no value of it."""
    requests: int = 1


@dataclass(frozen=True)
class Request:
    """One request as the judge needs it, wherever it was recorded."""

    of_candidate: bool
    session: str
    time_s: float
    """Seconds since any fixed moment."""
    fields: Fields
    """Its fields by name."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Values beside them, such as a judge model's score."""


@dataclass(frozen=True)
class Trips:
    """What the hard trips look at, on both sides."""

    recent: tuple[tuple[str, bool], ...] = ()
    """Session, and whether it failed, of each of the candidate's requests, oldest first, the warm-up included."""
    champion_recent: tuple[bool, ...] = ()
    """Whether each of the champion's failed, from the time of the candidate's last window on."""
    restarts: int = 0
    """How often the candidate's engine was started again."""
    leaks: int = 0
    """Answers of the candidate on which one of the policy's ``trip_rails`` acted."""
    champion_leaks: int = 0


@dataclass(frozen=True)
class Observations:
    """A rollout so far."""

    sessions: tuple[Session, ...]
    """Finished sessions of both sides, in order of arrival."""
    trips: Trips = field(default_factory=Trips)
    apart: bool = False
    """Whether the two sides were not recorded at the same time, and are compared in order only."""

    def number(self, *, of_candidate: bool) -> int:
        """How many sessions one side has."""
        return sum(session.of_candidate == of_candidate for session in self.sessions)


@dataclass(frozen=True)
class Stream:
    """One metric's values, session by session."""

    place: Ints
    """(values,) position of the session among all sessions."""
    of_candidate: Bools
    totals: Floats
    counts: Floats

    @property
    def means(self) -> Floats:
        """(values,) each session's mean."""
        return self.totals / self.counts


def observe(
    events: Sequence[EndpointEvent],
    policy: JudgePolicy,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
    restarts: int = 0,
) -> Observations:
    """Group a rollout's events by side and session, the warm-up left out.

    Args:
        events: of any track; only champion's and candidate's count.
        policy: which metrics, and which sessions.
        extra: values beside the events, by trace id, then by metric (or its ``field``).
        restarts: how often the candidate's engine was started again.

    Raises:
        InputError: a value does not fit its metric.
    """
    return observe_requests(
        [
            Request(
                of_candidate=event.track == "candidate",
                session=event.session_id,
                time_s=seconds(event.time),
                fields=lambda name, event=event: getattr(event, name, None),  # type: ignore[misc]
                extra=(extra or {}).get(event.trace_id, {}),
            )
            for event in events
            if event.track in ("candidate", "champion")
        ],
        policy,
        restarts=restarts,
    )


def observe_requests(requests: Sequence[Request], policy: JudgePolicy, *, restarts: int = 0) -> Observations:
    """Like ``observe``, for requests from anywhere; their order does not matter, their times do."""
    ordered = sorted(requests, key=lambda one: (one.time_s, one.session, one.of_candidate))
    by_session: dict[tuple[bool, str], list[Request]] = {}
    for request in ordered:
        by_session.setdefault((request.of_candidate, request.session), []).append(request)
    metrics = metrics_of(policy)
    groups = [group for group in by_session.values() if _old_enough(group, ordered, policy)]
    groups = _without_warm_up(groups, policy)
    if policy.concurrent:
        first = min((group[0].time_s for group in groups if group[0].of_candidate), default=math.inf)
        groups = [group for group in groups if group[0].of_candidate or group[0].time_s >= first]
    sessions = tuple(_session(_of_same_age(group, policy), metrics) for group in groups)
    return Observations(sessions=sessions, trips=_trips(ordered, policy, restarts))


def stream_of(sessions: Sequence[Session], name: str) -> Stream:
    """One metric of some sessions as arrays."""
    found = [(place, session) for place, session in enumerate(sessions) if name in session.samples]
    return Stream(
        place=np.array([place for place, _ in found], dtype=np.int64),
        of_candidate=np.array([session.of_candidate for _, session in found], dtype=bool),
        totals=np.array([session.samples[name].total for _, session in found]),
        counts=np.array([session.samples[name].count for _, session in found], dtype=float),
    )


def seconds(time: Any) -> float:
    """A time as seconds: ISO 8601 (UTC where it names no zone), or a number of seconds as it is.

    Raises:
        InputError: it is neither.
    """
    if isinstance(time, datetime):
        moment = time
    elif isinstance(time, (int, float)) and not isinstance(time, bool) and math.isfinite(time):
        return float(time)
    else:
        try:
            moment = datetime.fromisoformat(str(time))
        except ValueError as error:
            raise InputError(f"The time {time!r} is neither ISO 8601 nor a number of seconds.") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _old_enough(group: Sequence[Request], ordered: Sequence[Request], policy: JudgePolicy) -> bool:
    return not policy.session_age_s or group[0].time_s + policy.session_age_s <= ordered[-1].time_s


def _of_same_age(group: Sequence[Request], policy: JudgePolicy) -> Sequence[Request]:
    if not policy.session_age_s:
        return group
    return [request for request in group if request.time_s <= group[0].time_s + policy.session_age_s]


def _without_warm_up(groups: Sequence[list[Request]], policy: JudgePolicy) -> list[list[Request]]:
    seen, kept = {True: 0, False: 0}, []
    for group in groups:
        seen[group[0].of_candidate] += 1
        if seen[group[0].of_candidate] > policy.warm_up_sessions:
            kept.append(group)
    return kept


def _session(group: Sequence[Request], metrics: Sequence[MetricPolicy]) -> Session:
    samples = {}
    for metric in metrics:
        values = [value_of(metric, request.fields, request.extra) for request in group]
        present = [math.log(value) if metric.kind == "log_mean" else value for value in values if value is not None]
        if present:
            samples[metric.name] = Sample(math.fsum(present), len(present))
    return Session(of_candidate=group[0].of_candidate, samples=samples, requests=len(group))


def _trips(ordered: Sequence[Request], policy: JudgePolicy, restarts: int) -> Trips:
    candidate = [request for request in ordered if request.of_candidate]
    since = candidate[-policy.trip_window :][0].time_s if candidate else math.inf
    champion = [request for request in ordered if not request.of_candidate]
    return Trips(
        recent=tuple((request.session, bool(failed(request.fields))) for request in candidate),
        champion_recent=tuple(bool(failed(request.fields)) for request in champion if request.time_s >= since),
        restarts=restarts,
        leaks=sum(_leaks(request, policy) for request in candidate),
        champion_leaks=sum(_leaks(request, policy) for request in champion),
    )


def _leaks(request: Request, policy: JudgePolicy) -> bool:
    acted = {tuple(str(action).split(":")[:2]) for action in request.fields("guardrail_actions") or ()}
    return any(("output", rail) in acted for rail in policy.trip_rails)
