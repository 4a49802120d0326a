"""What the judge is shown of a rollout: users' requests for the steps, pairs of answers for the shadow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from serin.core.decision import Decision
from serin.core.events import SHADOW, EndpointEvent, shadow_pairs
from serin.core.rollouts import RolloutRecord
from serin.deploy.config import DeployConfig, JudgePolicy
from serin.deploy.judge import judge, observe
from serin.deploy.judge_metrics import metrics_of
from serin.deploy.states import NO_DECISION

TIMINGS = ("ttft", "inter_token", "latency")
"""Metrics that the shadow leaves out: its answers wait behind those that users wait for."""


@dataclass(frozen=True)
class Evidence:
    """What a turn knows of the traffic."""

    decision: Decision = NO_DECISION
    candidate_sessions: int = 0
    """Of the candidate since the present step began."""
    sessions: int = 0
    """Of both sides since the candidate got traffic."""
    pairs: int = 0
    """Questions that both answered in the shadow."""


def evidence_of(
    record: RolloutRecord, events: Sequence[EndpointEvent], config: DeployConfig, *, restarts: int, now: datetime
) -> Evidence:
    """Judge what a rollout's events show in its present state.

    Args:
        record: the rollout.
        events: of the endpoint since its start, of any release.
        config: its settings.
        restarts: how often the candidate's engine was started again.
        now: UTC.
    """
    if record.state == "shadow":
        return _of_shadow(record, events, config, restarts)
    if record.state != "step":
        return Evidence()
    mine = [event for event in _of_rollout(record, events) if event.time >= record.exposed]
    decision = _judge_steps(record, mine, config, restarts, now)
    of_step = {e.session_id for e in mine if e.track == "candidate" and e.time >= record.since}
    return Evidence(decision, len(of_step), len({(e.track, e.session_id) for e in mine}))


def shadow_policy(config: DeployConfig) -> JudgePolicy:
    """How the shadow is judged: every metric but the timings, with its own part of alpha, and no warm-up."""
    metrics = tuple(metric for metric in metrics_of(config.judge) if metric.name not in TIMINGS)
    update = {
        "metrics": metrics,
        "default_metrics": False,
        "alpha": config.judge.alpha * config.shadow.alpha_fraction,
        "warm_up_sessions": 0,
        "session_age_s": 0.0,
        "concurrent": False,
    }
    return config.judge.model_copy(update=update)


def _judge_steps(
    record: RolloutRecord, events: list[EndpointEvent], config: DeployConfig, restarts: int, now: datetime
) -> Decision:
    policy = config.step_policy
    observations = observe(events, policy, restarts=restarts)
    if config.requests == "users" and config.settle_s:
        until = (now.astimezone(UTC) - timedelta(seconds=config.settle_s)).isoformat()
        settled = observe([event for event in events if event.time <= until], policy)
        observations = replace(settled, trips=observations.trips)
    return judge(observations, policy, last_step=record.step == len(config.shares) - 1)


def _of_shadow(record: RolloutRecord, events: Sequence[EndpointEvent], config: DeployConfig, restarts: int) -> Evidence:
    """The candidate's unseen answers beside the champion's to the same questions."""
    shadows = [e for e in events if e.track == SHADOW and e.release_id == record.candidate and e.time >= record.since]
    pairs = shadow_pairs(_of_rollout(record, events), shadows)
    sides = [event for old, new in pairs for event in (old, new.model_copy(update={"track": "candidate"}))]
    policy = shadow_policy(config)
    decision = judge(observe(sides, policy, restarts=restarts), policy, last_step=False)
    return Evidence(decision, pairs=len(pairs))


def _of_rollout(record: RolloutRecord, events: Sequence[EndpointEvent]) -> list[EndpointEvent]:
    tracks = {"champion": record.champion, "candidate": record.candidate}
    return [event for event in events if tracks.get(event.track) == event.release_id]
