"""The judge of a canary: per-session observations in, a Decision out.  Pure: it reads no clock and moves no traffic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serin.core.decision import Decision
from serin.core.digests import digest_of
from serin.core.events import EndpointEvent
from serin.deploy.config import JudgePolicy
from serin.deploy.sequential import Interval, difference_sequence, harm_e_value, rate_sequence

NUM_METRICS = 3
"""Errors, time to first token, support score: alpha is split over them."""


@dataclass(frozen=True)
class Session:
    """What one session saw; requests of a session are not independent, sessions are."""

    of_candidate: bool
    failed: bool
    log_ttft: float | None
    """Mean of log(milliseconds) over its streamed requests."""
    support: float | None
    """Mean support score (0 to 1) of its answers."""


@dataclass(frozen=True)
class Observations:
    """A rollout so far."""

    sessions: tuple[Session, ...]
    """Finished sessions of both sides, in order of arrival."""
    recent_failures: tuple[bool, ...]
    """Whether each of the candidate's requests failed, oldest first."""

    def side(self, *, of_candidate: bool) -> list[Session]:
        """The sessions of one side."""
        return [session for session in self.sessions if session.of_candidate == of_candidate]


def observe(events: Sequence[EndpointEvent], policy: JudgePolicy) -> Observations:
    """Group a rollout's events by side and session, the warm-up left out."""
    by_session: dict[tuple[bool, str], list[EndpointEvent]] = {}
    for event in sorted(events, key=lambda event: event.time):
        if event.track in ("candidate", "champion"):
            by_session.setdefault((event.track == "candidate", event.session_id), []).append(event)
    seen = {True: 0, False: 0}
    sessions = []
    for (of_candidate, _), of_one in by_session.items():
        seen[of_candidate] += 1
        if seen[of_candidate] > policy.warm_up_sessions:
            sessions.append(_session(of_candidate, of_one))
    failures = tuple(_failed(event) for (candidate, _), of_one in by_session.items() if candidate for event in of_one)
    return Observations(sessions=tuple(sessions), recent_failures=failures)


def judge(observations: Observations, policy: JudgePolicy, *, last_step: bool) -> Decision:
    """Decide what to do with the candidate now.

    Harm that is sure at any look rolls back; absence of harm within the margins, sure at the last step, promotes;
    otherwise ``advance`` (no harm seen, more traffic is safe) or, at the last step, ``hold`` (more data is needed).

    Args:
        observations: the rollout so far.
        policy: margins and levels.
        last_step: whether the candidate has its largest share already.
    """
    alpha = policy.alpha / NUM_METRICS
    ttft = _difference(observations, "log_ttft", alpha)
    support = _difference(observations, "support", alpha)
    e_value = harm_e_value([(session.of_candidate, session.failed) for session in observations.sessions])
    errors = _rate_difference(observations, alpha)
    evidence = _evidence(observations, ttft, support, errors, e_value, alpha)
    tripped = sum(observations.recent_failures[-policy.trip_window :]) >= policy.trip_errors

    harms = _harms(policy, ttft, support, e_value, alpha, tripped)
    if harms:
        return _decision("rollback", harms, evidence, policy)
    if not last_step:
        return _decision("advance", ["No harm is seen so far."], evidence, policy)
    open_questions = _open_questions(policy, observations, ttft, support, errors)
    if open_questions:
        return _decision("hold", open_questions, evidence, policy)
    return _decision("promote", _proofs(ttft, support, errors), evidence, policy)


def _harms(
    policy: JudgePolicy, ttft: Interval, support: Interval, e_value: float, alpha: float, tripped: bool
) -> list[str]:
    harms = []
    if tripped:
        harms.append(f"{policy.trip_errors} of the candidate's last {policy.trip_window} requests failed.")
    if e_value >= 1 / alpha:
        harms.append(f"The candidate fails in more sessions than the champion (e-value {e_value:.0f}).")
    if ttft.lower > math.log(policy.tolerated_ttft_ratio):
        harms.append(
            f"Time to first token is at least {math.exp(ttft.lower):.2f} times the champion's "
            f"(tolerated {policy.tolerated_ttft_ratio:.2f})."
        )
    if support.upper < -policy.max_support_drop:
        harms.append(f"The support score is at least {-support.upper:.2f} lower than the champion's.")
    return harms


def _open_questions(
    policy: JudgePolicy, observations: Observations, ttft: Interval, support: Interval, errors: Interval
) -> list[str]:
    questions = []
    fewest = min(len(observations.side(of_candidate=True)), len(observations.side(of_candidate=False)))
    if fewest < policy.min_sessions:
        questions.append(f"{fewest} sessions on the smaller side; {policy.min_sessions} are needed.")
    if not ttft.upper < math.log(policy.max_ttft_ratio):
        questions.append(f"Time to first token may still be {_ratio(ttft.upper)} times the champion's.")
    if not errors.upper < policy.max_error_increase:
        questions.append(f"Sessions with errors may still be {errors.upper:.1%} more.")
    if not support.lower > -policy.max_support_drop:
        questions.append(f"The support score may still be {-support.lower:.2f} lower.")
    return questions


def _proofs(ttft: Interval, support: Interval, errors: Interval) -> list[str]:
    return [
        f"Time to first token is {_ratio(ttft.estimate)} times the champion's, surely under {_ratio(ttft.upper)}.",
        f"Sessions with errors have risen by less than {errors.upper:.1%}.",
        f"The support score differs by {support.estimate:+.2f}, surely above {support.lower:+.2f}.",
    ]


def _ratio(log_value: float) -> str:
    return f"{math.exp(log_value):.2f}" if log_value < 5 else "over 100"


def _difference(observations: Observations, metric: str, alpha: float) -> Interval:
    sides = [
        [value for session in side if (value := getattr(session, metric)) is not None]
        for side in (observations.side(of_candidate=True), observations.side(of_candidate=False))
    ]
    return difference_sequence(sides[0], sides[1], alpha)


def _rate_difference(observations: Observations, alpha: float) -> Interval:
    first, second = (
        rate_sequence(sum(session.failed for session in side), len(side), alpha / 2)
        for side in (observations.side(of_candidate=True), observations.side(of_candidate=False))
    )
    return Interval(first.estimate - second.estimate, first.lower - second.upper, first.upper - second.lower)


def _session(of_candidate: bool, events: Sequence[EndpointEvent]) -> Session:
    logs = [math.log(event.ttft_ms) for event in events if event.ttft_ms]
    supports = [event.support_score for event in events if event.support_score is not None]
    return Session(
        of_candidate=of_candidate,
        failed=any(_failed(event) for event in events),
        log_ttft=math.fsum(logs) / len(logs) if logs else None,
        support=math.fsum(supports) / len(supports) if supports else None,
    )


def _failed(event: EndpointEvent) -> bool:
    return event.status >= 500


def _evidence(
    observations: Observations, ttft: Interval, support: Interval, errors: Interval, e_value: float, alpha: float
) -> dict[str, Any]:
    return {
        "candidate_sessions": len(observations.side(of_candidate=True)),
        "champion_sessions": len(observations.side(of_candidate=False)),
        "candidate_requests": len(observations.recent_failures),
        "alpha_per_metric": alpha,
        "ttft_ratio": {name: _finite(math.exp(min(value, 50.0))) for name, value in vars(ttft).items()},
        "support_difference": {name: _finite(value) for name, value in vars(support).items()},
        "error_rate_difference": {name: _finite(value) for name, value in vars(errors).items()},
        "error_e_value": _finite(e_value),
    }


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _decision(outcome: str, reasons: list[str], evidence: dict[str, Any], policy: JudgePolicy) -> Decision:
    version = digest_of(policy.dump())[:16]
    return Decision(outcome=outcome, reasons=tuple(reasons), evidence=evidence, policy_version=version)
