"""The executor of a rollout: moves traffic, sends it, asks the judge, carries out and journals what it says."""

import asyncio
import itertools
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from serin.core.artifacts import Artifact
from serin.core.context import StageContext
from serin.core.decision import Decision
from serin.core.errors import InputError
from serin.core.events import EndpointEvent, read_events
from serin.core.gateway_client import GATEWAY_VARIABLE, GatewayClient, GatewayProcess
from serin.core.records import Conversation, read_jsonl
from serin.core.release import Release
from serin.core.rollouts import close_abandoned
from serin.core.verification import (
    ReleaseRequirements,
    environment_requirements,
    require_verified,
    verify_release,
)
from serin.deploy import traffic
from serin.deploy.config import DeployConfig
from serin.deploy.judge import judge, observe

logger = logging.getLogger(__name__)

GATEWAY_WAIT_S = 300.0
"""A gateway that follows the journal has so long to load a champion that has just been named."""


@dataclass(frozen=True)
class Rollout:
    """How a rollout ended."""

    rollout_id: str
    champion: str
    """Release id in traffic at the start."""
    candidate: str
    decision: Decision
    requests: int
    failed_requests: int
    """Requests that a user saw fail."""
    sample: dict[str, Any] | None
    """One answered question of the winner, with its trace id."""

    def summary(self) -> dict[str, Any]:
        """The rollout as JSON values."""
        return {**asdict(self), "decision": self.decision.model_dump(mode="json")}


def deploy(
    config: DeployConfig,
    candidate: Release,
    baseline: Release,
    dataset: Artifact,
    context: StageContext,
    *,
    approved_by: str = "",
) -> Rollout:
    """Roll a release out against the champion on replayed traffic, and promote it, hold it or roll it back.

    An endpoint without a champion gets the baseline first, so that the candidate has something to be judged against.
    A promotion's journal entry names who asked for it (``approved_by``) beside the judge.

    Raises:
        IntegrityError: a part of the release, its lineage, its signature or its gate does not hold.
        InputError: the dataset has no held-out conversation.
        ServingError: the gateway does not start or answer.
    """
    _require_deployable(candidate, config, context)
    champion = context.journal.champion() or _bootstrap(baseline, config, context)
    if champion == candidate.id:
        return _unchanged(candidate)
    questions = read_jsonl(dataset.path / "test.jsonl", Conversation)
    if not questions:
        raise InputError("The dataset has no held-out conversation to replay: give data_prep more conversations.")
    close_abandoned(context.journal, context.lineage_id)
    rollout_id = uuid.uuid4().hex[:12]
    _journal(context, candidate, "started", rollout_id, champion=champion, config=config.dump())
    context.progress("starting the gateway", 0.0)
    with _gateway(config, champion, context) as gateway:
        try:
            rollout = _run(config, rollout_id, champion, candidate, questions, gateway, context)
        except BaseException:
            _journal(context, candidate, "aborted", rollout_id, reasons=("The rollout was interrupted.",))
            raise
        _carry_out(rollout, candidate, gateway, approved_by, context)
    return rollout


def _run(
    config: DeployConfig,
    rollout_id: str,
    champion: str,
    candidate: Release,
    questions: list[Conversation],
    gateway: GatewayClient,
    context: StageContext,
) -> Rollout:
    started = datetime.now(UTC).isoformat()
    source = traffic.sessions(questions, config.seed)
    outcomes: list[traffic.Outcome] = []
    step, sent = 0, 0
    _set_share(gateway, champion, candidate, config.steps_percent[step], rollout_id)
    while True:
        batch = list(itertools.islice(source, config.sessions_per_look))
        outcomes += asyncio.run(
            traffic.replay(
                gateway.url,
                batch,
                token=gateway.admin_token,
                concurrency=config.concurrency,
                timeout_s=config.request_timeout_s,
            )
        )
        sent += len(batch)
        gateway.flush()
        decision = _look(config, champion, candidate, started, step, context)
        context.progress(
            f"{config.steps_percent[step]:g}% canary, {sent} sessions: {decision.outcome}", sent / config.max_sessions
        )
        if decision.outcome == "hold" and sent >= config.max_sessions:
            decision = decision.model_copy(
                update={"outcome": config.on_inconclusive, "reasons": ("Undecided in time.", *decision.reasons)}
            )
            break
        if decision.outcome in ("promote", "rollback"):
            break
        if decision.outcome == "advance" and _enough(decision, step, config):
            step += 1
            _journal(context, candidate, "advance", rollout_id, share_percent=config.steps_percent[step])
            _set_share(gateway, champion, candidate, config.steps_percent[step], rollout_id)
    return _rollout(rollout_id, champion, candidate, decision, outcomes)


def _look(
    config: DeployConfig, champion: str, candidate: Release, started: str, step: int, context: StageContext
) -> Decision:
    events = read_events(context.store.storage, context.endpoint, since=started)
    mine: list[EndpointEvent] = [event for event in events if event.release_id in (champion, candidate.id)]
    last = step == len(config.steps_percent) - 1
    return judge(observe(mine, config.judge), config.judge, last_step=last)


def _enough(decision: Decision, step: int, config: DeployConfig) -> bool:
    return decision.evidence["candidate_sessions"] >= config.min_sessions_per_step * (step + 1)


def _set_share(gateway: GatewayClient, champion: str, candidate: Release, percent: float, rollout_id: str) -> None:
    gateway.set_rollout(champion=champion, candidate=candidate.id, candidate_weight_percent=percent, salt=rollout_id)


def _rollout(
    rollout_id: str, champion: str, candidate: Release, decision: Decision, outcomes: list[traffic.Outcome]
) -> Rollout:
    winner = candidate.id if decision.outcome == "promote" else champion
    answered = [o for o in outcomes if o.status == 200 and o.answer and o.release_id == winner]
    failed = sum(outcome.status == 0 or outcome.status >= 500 for outcome in outcomes)
    return Rollout(
        rollout_id=rollout_id,
        champion=champion,
        candidate=candidate.id,
        decision=decision,
        requests=len(outcomes),
        failed_requests=failed,
        sample=asdict(answered[-1]) if answered else None,
    )


def _carry_out(
    rollout: Rollout, candidate: Release, gateway: GatewayClient, approved_by: str, context: StageContext
) -> None:
    """Journal the decision, then move traffic, then mirror it to MLflow's aliases."""
    decision = rollout.decision
    numbers = {"requests": rollout.requests, "failed_requests": rollout.failed_requests, **decision.evidence}
    _journal(
        context, candidate, decision.outcome, rollout.rollout_id, reasons=decision.reasons,
        policy_version=decision.policy_version, **numbers,
    )  # fmt: skip
    if decision.outcome == "promote":
        promote(
            candidate.id,
            reasons=decision.reasons,
            evidence={"rollout_id": rollout.rollout_id, **numbers},
            approved_by=f"{approved_by}, canary judge" if approved_by else "canary judge",
            policy_version=decision.policy_version,
            context=context,
        )
        gateway.set_rollout(
            champion=candidate.id, candidate=None, candidate_weight_percent=0.0, salt=rollout.rollout_id
        )
    else:
        gateway.set_rollout(
            champion=rollout.champion, candidate=None, candidate_weight_percent=0.0, salt=rollout.rollout_id
        )


def promote(
    release_id: str,
    *,
    reasons: tuple[str, ...],
    evidence: dict[str, Any],
    approved_by: str,
    context: StageContext,
    policy_version: str = "",
) -> None:
    """Make a release the champion: the journal first, then MLflow's aliases."""
    before = context.journal.champion()
    if before == release_id:
        return
    context.journal.append(
        "promotion",
        release_id=release_id,
        decision="promoted",
        reasons=reasons,
        evidence=evidence,
        policy_version=policy_version,
        approved_by=approved_by,
        lineage_id=context.lineage_id,
        mlflow_run_id=context.tracker.run_id,
    )
    mirror_aliases(context)


def rollback(*, approved_by: str, reason: str, context: StageContext, serving: str = "") -> str:
    """Make the release before the champion the champion again; returns its id.

    With ``serving``, only while that release is the champion, so that two rollbacks at once do not go back twice.

    Raises:
        InputError: the endpoint has no previous release, or another rollback came first.
    """
    previous, champion = context.journal.previous(), serving or context.journal.champion()
    if previous is None:
        raise InputError(f"Endpoint {context.endpoint!r} has no release before its champion to go back to.")
    context.journal.append(
        "rollback",
        release_id=previous,
        decision="rolled back",
        reasons=(reason,),
        evidence={"from": champion, "to": previous},
        approved_by=approved_by,
        lineage_id=context.lineage_id,
        mlflow_run_id=context.tracker.run_id,
        champion=champion,
    )
    mirror_aliases(context)
    return previous


def mirror_aliases(context: StageContext) -> None:
    """Point MLflow's aliases at what the journal says."""
    champion, previous = context.journal.champion(), context.journal.previous()
    for alias, release_id in (("champion", champion), ("previous", previous)):
        if release_id:
            context.tracker.alias(context.endpoint, alias, release_id)


def _require_deployable(
    release: Release, config: DeployConfig, context: StageContext, *, needs_gate: bool = True
) -> None:
    context.progress(f"verifying release {release.short_id}", 0.0)
    asked = [config.release, environment_requirements()]
    for requirements in asked if asked[1] != ReleaseRequirements() else asked[:1]:
        checks = verify_release(release, context.store, context.journal, requirements, needs_gate=needs_gate)
        require_verified(checks, release)


def _bootstrap(baseline: Release, config: DeployConfig, context: StageContext) -> str:
    _require_deployable(baseline, config, context, needs_gate=False)
    promote(
        baseline.id,
        reasons=("The endpoint had no champion: the base model becomes the first one.",),
        evidence={"bootstrap": True},
        approved_by="bootstrap",
        context=context,
    )
    return baseline.id


def _unchanged(candidate: Release) -> Rollout:
    decision = Decision(outcome="unchanged", reasons=("The release is the champion already.",))
    return Rollout("", candidate.id, candidate.id, decision, 0, 0, None)


def _journal(
    context: StageContext,
    candidate: Release,
    decision: str,
    rollout_id: str,
    *,
    reasons: tuple[str, ...] = (),
    policy_version: str = "",
    **evidence: Any,
) -> None:
    context.journal.append(
        "rollout",
        release_id=candidate.id,
        decision=decision,
        reasons=reasons,
        evidence={"rollout_id": rollout_id, **evidence},
        policy_version=policy_version,
        lineage_id=context.lineage_id,
        mlflow_run_id=context.tracker.run_id,
    )


@contextmanager
def _gateway(config: DeployConfig, champion: str, context: StageContext) -> Iterator[GatewayClient]:
    """The gateway that is named, or one of our own for as long as the rollout takes."""
    url = config.gateway_url or os.environ.get(GATEWAY_VARIABLE, "")
    if not url:
        with GatewayProcess(context.store.uri, context.endpoint, champion) as process:
            yield process
        return
    client = GatewayClient.from_environment(url)
    client.wait_for(champion, timeout_s=GATEWAY_WAIT_S)
    yield client
