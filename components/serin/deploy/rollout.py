"""A rollout from outside: start it or go on with it, hand it over, ask how it ended; promote and roll back by hand."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from serin.core.artifacts import Artifact
from serin.core.context import StageContext
from serin.core.decision import Decision
from serin.core.errors import ConfigError, InputError, SerinError
from serin.core.events import EventLog
from serin.core.gateway_client import GATEWAY_VARIABLE, GatewayClient, GatewayProcess
from serin.core.journal import Entry
from serin.core.records import Conversation, read_jsonl
from serin.core.release import Release, load_release
from serin.core.rollouts import RolloutRecord, close_abandoned, open_rollout, rollouts
from serin.core.verification import (
    ReleaseRequirements,
    environment_requirements,
    require_verified,
    verify_release,
)
from serin.deploy.config import DeployConfig
from serin.deploy.controller import WALL_CLOCK, Controller, Desk, begin
from serin.deploy.history import History, load_history, page_key, save_history
from serin.deploy.lease import Lease
from serin.deploy.page import canary_page
from serin.deploy.sources import Replayed, Source, Users
from serin.deploy.traffic_providers.base import TrafficProvider
from serin.deploy.traffic_providers.from_config import provider_for

logger = logging.getLogger(__name__)

GATEWAY_WAIT_S = 300.0
"""A gateway that follows the journal has so long to load a champion that has just been named."""
HANDED_OVER, UNCHANGED = "handed over", "unchanged"


@dataclass(frozen=True)
class Rollout:
    """How a rollout ended, or that it goes on elsewhere."""

    rollout_id: str
    champion: str
    """Release id in traffic at the start."""
    candidate: str
    decision: Decision
    """promote, hold, rollback, aborted; ``unchanged`` where the candidate served already, ``handed over`` where a
    controller carries it out."""
    requests: int
    """That the rollout sent itself."""
    failed_requests: int
    """Requests that a user saw fail."""
    sample: dict[str, Any] | None
    """One answered question of the winner, with its trace id."""
    page: str = ""
    """Where in the store the rollout's page is."""

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
    """Roll a release out against the champion, and promote it, hold it or roll it back; or hand that over.

    An endpoint without a champion gets the baseline first, so that the candidate has something to be judged against.
    A rollout of the same candidate that lost its controller is gone on with; one of another candidate is closed.
    A promotion's journal entry names who asked for it (``approved_by``) beside the judge.

    Raises:
        IntegrityError: a part of the release, its lineage, its signature or its gate does not hold.
        InputError: the dataset has no held-out conversation.
        ConfigError: the endpoint cannot be split as the settings ask.
        UnavailableError: another controller drives a rollout of this endpoint.
        ServingError: the endpoint does not start or answer, or somebody else moved its traffic.
    """
    _require_deployable(candidate, config, context)
    plan = {"config": config.dump(), "dataset": dataset.uri, "approved_by": approved_by, "driver": config.driver}
    with Lease(context.store.storage, context.endpoint) as lease:
        going_on = _same_rollout(candidate, plan, context)
        champion = context.journal.champion() or _bootstrap(baseline, config, context)
        if going_on is None and champion == candidate.id:
            return _unchanged(candidate)
        if going_on is None:
            _questions(config, dataset)
            close_abandoned(context.journal, context.lineage_id, fence=lease.fence)
            rollout_id = _begin(candidate, champion, plan, lease, context)
        else:
            rollout_id = going_on.rollout_id
            context.progress(f"going on with rollout {rollout_id}", 0.0)
        if config.driver == "controller":
            return handed_over(rollout_id, context)
        return carry_on(rollout_id, lease, context)


def carry_on(rollout_id: str, lease: Lease, context: StageContext) -> Rollout:
    """Drive a rollout of the journal to its end, whoever started it.

    Args:
        rollout_id: which.
        lease: held.
        context: of whoever drives.

    Raises:
        SerinError: as ``deploy``; the rollout stays open, but where somebody else moved the traffic.
    """
    record = _record(rollout_id, context)
    config = DeployConfig.load(record.plan["config"])
    history = load_history(context.store.storage, context.endpoint, rollout_id)
    context.progress("starting the endpoint", 0.0)
    with _endpoint(config, record, context) as (provider, source, revive):
        provider.check(config.shares, mirror=bool(config.shadow.min_answers))
        desk = Desk(
            journal=context.journal,
            lease=lease,
            provider=provider,
            source=source,
            events=EventLog(context.store.storage, context.endpoint, record.started),
            seen=partial(_seen, config=config, context=context),
            promoted=partial(_mirror, context),
            revive=revive,
            lineage_id=context.lineage_id,
            mlflow_run_id=context.tracker.run_id,
        )
        controller = Controller(config, rollout_id, desk, history)
        ended = controller.drive()
        _seen(ended, controller.history, controller.entries, config=config, context=context)
    return _rollout(ended, controller.history, context)


def verdict(rollout_id: str, context: StageContext) -> Rollout | None:
    """How a rollout that was handed over ended; None while it is under way.

    Args:
        rollout_id: which; empty: the endpoint's last one.
        context: the stage's.

    Raises:
        InputError: the journal knows no such rollout.
    """
    record = _record(rollout_id, context)
    if not record.over:
        return None
    return _rollout(record, load_history(context.store.storage, context.endpoint, record.rollout_id), context)


def handed_over(rollout_id: str, context: StageContext) -> Rollout:
    """A rollout that a controller carries out, as its task leaves it."""
    record = _record(rollout_id, context)
    why = f"A controller carries rollout {record.rollout_id} out: 'serin canary status' tells how it goes."
    decision = Decision(outcome=HANDED_OVER, reasons=(why,))
    page = page_key(context.endpoint, record.rollout_id)
    return Rollout(record.rollout_id, record.champion, record.candidate, decision, 0, 0, None, page)


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


def _begin(candidate: Release, champion: str, plan: Mapping[str, Any], lease: Lease, context: StageContext) -> str:
    return begin(
        context.journal,
        lease,
        candidate=candidate.id,
        champion=champion,
        plan=plan,
        lineage_id=context.lineage_id,
        mlflow_run_id=context.tracker.run_id,
    )


def _same_rollout(candidate: Release, plan: Mapping[str, Any], context: StageContext) -> RolloutRecord | None:
    """The open rollout, where it is of this candidate with these settings."""
    last = open_rollout(context.journal)
    if last is None or last.candidate != candidate.id:
        return None
    same = all(last.plan.get(name) == plan[name] for name in ("config", "dataset"))
    return last if same else None


def _record(rollout_id: str, context: StageContext) -> RolloutRecord:
    known = rollouts(context.journal.entries())
    found = [record for record in known if record.rollout_id == rollout_id] if rollout_id else known[-1:]
    if not found:
        raise InputError(f"The journal of {context.endpoint!r} knows no rollout {rollout_id}: start one first.")
    return found[0]


def _questions(config: DeployConfig, dataset: Artifact) -> list[Conversation]:
    questions = read_jsonl(dataset.path / "test.jsonl", Conversation)
    if not questions and config.requests == "replayed":
        raise InputError("The dataset has no held-out conversation to replay: give data_prep more conversations.")
    return questions


@contextmanager
def _endpoint(
    config: DeployConfig, record: RolloutRecord, context: StageContext
) -> Iterator[tuple[TrafficProvider, Source, Any]]:
    """The endpoint that is named, or a gateway of one's own for as long as the rollout takes."""
    release_of = partial(load_release, context.store.storage)
    urls = [*config.traffic.gateways, os.environ.get(GATEWAY_VARIABLE, "")]
    serving = context.journal.champion() or record.champion
    if config.traffic.kind != "gateway" or any(urls):
        client = GatewayClient.from_environment(next(filter(None, urls))) if any(urls) else None
        if client is not None and config.traffic.kind == "gateway":
            client.wait_for(serving, timeout_s=GATEWAY_WAIT_S)
        yield provider_for(config.traffic, release_of), _source(config, record, client, context), lambda: False
        return
    with GatewayProcess(context.store.uri, context.endpoint, serving) as process:
        provider = provider_for(config.traffic, release_of, gateway=process)
        yield provider, _source(config, record, process, context), partial(_revive, process)


def _source(
    config: DeployConfig, record: RolloutRecord, gateway: GatewayClient | None, context: StageContext
) -> Source:
    dataset = str(record.plan.get("dataset", ""))
    questions = _questions(config, context.open(dataset)) if dataset else []
    replayed = Replayed(gateway, questions, config, WALL_CLOCK) if gateway is not None and questions else None
    if config.requests == "replayed":
        if replayed is None:
            raise ConfigError(
                f"Requests cannot be replayed to a {config.traffic.kind}: set deploy.requests to users, whose traffic "
                "is judged then."
            )
        return replayed
    journal, seen = context.journal, [context.journal.length()]

    def asked() -> bool:
        before, seen[0] = seen[0], journal.length()
        return seen[0] != before

    return Users(config, WALL_CLOCK, asked, replayed)


def _revive(process: GatewayProcess) -> bool:
    """Start one's own gateway again where it ended."""
    if process.alive:
        return False
    logger.warning("The rollout's gateway ended; it is started again.")
    process.start()
    return True


def _mirror(context: StageContext) -> None:
    """Aliases follow the journal; users do not wait for MLflow."""
    try:
        mirror_aliases(context)
    except SerinError as error:
        logger.warning("MLflow's aliases could not be moved, and the journal counts: %s", error)


def _seen(
    record: RolloutRecord,
    history: History,
    entries: Sequence[Entry],
    *,
    config: DeployConfig,
    context: StageContext,
) -> None:
    """Tell how a rollout goes: progress, history, page."""
    last = history.glances[-1] if history.glances else None
    if last is not None and not record.over:
        context.progress(
            f"{last.state}, {last.share_percent:g}% canary, {last.candidate_sessions} of "
            f"{last.candidate_sessions + last.champion_sessions} sessions: {last.outcome}",
            _fraction(record, last.candidate_sessions + last.champion_sessions, config),
        )
    storage = context.store.storage
    save_history(storage, context.endpoint, record.rollout_id, history)
    mine = [entry for entry in entries if entry.evidence.get("rollout_id") == record.rollout_id]
    page = canary_page(record, history, mine, config)
    storage.write(page_key(context.endpoint, record.rollout_id), page.encode())


def _fraction(record: RolloutRecord, sessions: int, config: DeployConfig) -> float:
    if not config.max_sessions:
        return max(record.step, 0) / len(config.shares)
    return min(1.0, sessions / config.max_sessions)


def _rollout(record: RolloutRecord, history: History, context: StageContext) -> Rollout:
    verdict = record.verdict
    assert verdict is not None
    winner = record.candidate if record.state == "promoted" else record.champion
    decision = Decision(
        outcome=verdict.decision,
        reasons=verdict.reasons,
        evidence=verdict.evidence,
        policy_version=verdict.policy_version,
    )
    return Rollout(
        rollout_id=record.rollout_id,
        champion=record.champion,
        candidate=record.candidate,
        decision=decision,
        requests=history.requests,
        failed_requests=history.failed_requests,
        sample=history.samples.get(winner),
        page=page_key(context.endpoint, record.rollout_id),
    )


def _unchanged(candidate: Release) -> Rollout:
    decision = Decision(outcome=UNCHANGED, reasons=("The release is the champion already.",))
    return Rollout("", candidate.id, candidate.id, decision, 0, 0, None)
