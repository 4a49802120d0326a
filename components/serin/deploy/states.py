"""The state machine of a rollout.  Pure: record and facts in, the next move out; it reads no clock and acts on nothing.

Every move is an entry of the journal before anything is done about it; ``split_of`` says what traffic belongs to a
state, so that a controller which finds a rollout at any point only has to have it served and go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from serin.core.decision import Decision
from serin.core.rollouts import RolloutRecord
from serin.deploy.config import DeployConfig
from serin.deploy.traffic_providers.base import Live, Split

NO_DECISION = Decision(outcome="hold", reasons=())


@dataclass(frozen=True)
class Facts:
    """What is known at a turn."""

    now_s: float
    """Seconds since 1970."""
    began_s: float
    """When the rollout started."""
    since_s: float
    """When the present state was entered."""
    live: Live
    serving: str | None
    """Release id that the journal names as champion now."""
    decision: Decision = NO_DECISION
    """The judge's, on users' traffic; in the shadow, on pairs of answers."""
    candidate_sessions: int = 0
    """Sessions of the candidate since the present step began."""
    sessions: int = 0
    """Sessions of both sides since the candidate got traffic."""
    pairs: int = 0
    """Answers of the candidate in the shadow."""


@dataclass(frozen=True)
class Move:
    """The next entry of the journal."""

    decision: str
    reasons: tuple[str, ...] = ()
    approved_by: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    policy_version: str = ""


def next_move(record: RolloutRecord, facts: Facts, config: DeployConfig) -> Move | None:
    """What comes next; None: stay, and look again.

    In order: what people asked for; a champion that changed under the rollout; then what the state itself asks.
    """
    if record.state in ("promoting", "rolling_back", "holding"):
        return _settled(record)
    if record.asked is not None:
        return _asked(record, facts, config)
    if facts.serving == record.candidate:
        return Move("promote", ("The journal names the candidate as champion already.",))
    if facts.serving != record.champion:
        return Move("rollback", ("The champion was changed by somebody else during the rollout.",))
    if (harm := _harm(record, facts)) is not None:
        return harm
    if record.paused_by:
        return None
    if (late := _late(record, facts, config)) is not None:
        return late
    return _onwards(record, facts, config)


def split_of(record: RolloutRecord, config: DeployConfig, serving: str | None) -> Split:
    """The traffic that belongs to a rollout's state.

    Args:
        record: the rollout.
        config: its settings.
        serving: the journal's champion, to whom everything goes where there is no candidate.
    """
    champion, candidate = record.champion, record.candidate
    if record.state == "pending":
        return Split(champion)
    if record.state in ("warmup", "shadow", "step"):
        percent = config.shares[record.step] if record.state == "step" else 0.0
        mirror = config.shadow.mirror_percent if record.state == "shadow" else 0.0
        return Split(champion, candidate, percent, record.rollout_id, mirror)
    if record.state in ("promoting", "promoted"):
        return Split(candidate, salt=record.rollout_id)
    return Split(serving or champion, salt=record.rollout_id)


def _settled(record: RolloutRecord) -> Move:
    """A decision whose traffic is served: said, so that nobody does it again."""
    return Move({"promoting": "promoted", "rolling_back": "rolled back", "holding": "held"}[record.state])


def _asked(record: RolloutRecord, facts: Facts, config: DeployConfig) -> Move | None:
    asked = record.asked
    assert asked is not None
    if asked.decision == "abort":
        why = (f"{asked.approved_by} aborted the rollout.", *asked.reasons)
        return Move("rollback", why, approved_by=asked.approved_by)
    if record.state in ("pending", "held"):
        return Move("warmup")  # nothing is promoted that cannot answer
    if record.state == "warmup" and not facts.live.candidate_ready:
        return _harm(record, facts) or _late(record, facts, config)
    why = (f"{asked.approved_by} promoted the candidate without the judge.", *asked.reasons)
    return Move("promote", why, approved_by=asked.approved_by, evidence=facts.decision.evidence)


def _harm(record: RolloutRecord, facts: Facts) -> Move | None:
    if record.state in ("warmup", "shadow", "step") and facts.live.failed:
        return Move("rollback", (f"The candidate does not run: {facts.live.reason or 'its engine ended.'}",))
    if record.state in ("shadow", "step") and facts.decision.outcome == "rollback":
        return _judged("rollback", facts.decision)
    return None


def _late(record: RolloutRecord, facts: Facts, config: DeployConfig) -> Move | None:
    if record.state == "warmup" and not facts.live.candidate_ready and _age(facts) > config.ready_timeout_s:
        reason = facts.live.reason or "no reason given."
        return Move("rollback", (f"The candidate was not ready within {config.ready_timeout_s:g} s: {reason}",))
    shadow = config.shadow
    if record.state == "shadow" and facts.pairs < shadow.min_answers and _age(facts) > shadow.deadline_s:
        why = f"The shadow has {facts.pairs} of {shadow.min_answers} answers after {shadow.deadline_s:g} s."
        return _judged(config.on_inconclusive, facts.decision, (why,))
    if record.state != "step" or facts.decision.outcome in ("promote", "rollback"):
        return None
    overdue = config.deadline_s and facts.now_s - facts.began_s > config.deadline_s
    if overdue or (config.max_sessions and facts.sessions >= config.max_sessions):
        return _judged(config.on_inconclusive, facts.decision, ("Undecided in time.", *facts.decision.reasons))
    return None


def _onwards(record: RolloutRecord, facts: Facts, config: DeployConfig) -> Move | None:
    if record.state == "pending":
        return Move("warmup")
    if record.state == "warmup":
        if not facts.live.candidate_ready:
            return None
        return Move("shadow") if config.shadow.min_answers else _step(0, config)
    if record.state == "shadow":
        return _step(0, config, facts.decision) if facts.pairs >= config.shadow.min_answers else None
    if facts.decision.outcome == "promote":
        return _judged("promote", facts.decision)
    grown = facts.candidate_sessions >= config.min_sessions_per_step and _age(facts) >= config.min_step_s
    if facts.decision.outcome == "advance" and grown and record.step + 1 < len(config.shares):
        return _step(record.step + 1, config, facts.decision)
    return None


def _step(step: int, config: DeployConfig, decision: Decision = NO_DECISION) -> Move:
    evidence = {"step": step, "share_percent": config.shares[step]}
    return Move("advance", decision.reasons, evidence=evidence, policy_version=decision.policy_version)


def _judged(what: str, decision: Decision, reasons: Sequence[str] | None = None) -> Move:
    why = tuple(decision.reasons if reasons is None else reasons)
    return Move(what, why, evidence=decision.evidence, policy_version=decision.policy_version)


def _age(facts: Facts) -> float:
    return facts.now_s - facts.since_s
