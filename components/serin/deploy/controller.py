"""The controller of a rollout: journals each move, has the traffic served that belongs to it, looks again.

It holds no state that matters.  At every turn it reads the journal, has the endpoint serve the split of the state that
it finds there, asks the pure state machine for the next move and writes it down - with the lease's fence, so that one
that lost its lease can neither write nor move traffic.  Killed at any line, it is started again by whoever comes next
and goes on from the journal.
"""

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from serin.core.errors import FencedError, InputError, ServingError, UnavailableError
from serin.core.events import EndpointEvent
from serin.core.gateway_client import NotReadyError
from serin.core.journal import Entry, Journal
from serin.core.kubernetes import Clock
from serin.core.rollouts import RolloutRecord, rollouts
from serin.deploy.config import DeployConfig
from serin.deploy.evidence import Evidence, evidence_of
from serin.deploy.history import Glance, History
from serin.deploy.lease import Lease
from serin.deploy.sources import Source
from serin.deploy.states import Facts, Move, next_move, split_of
from serin.deploy.traffic_providers.base import DriftError, Live, TrafficProvider

logger = logging.getLogger(__name__)

PATIENCE_S = 300.0
"""An endpoint that does not answer is waited for so long."""
WALL_CLOCK = Clock(now=time.time)
"""Seconds since 1970."""
POLL_S = 1.0
"""Between two looks at a candidate that is not ready."""


class Events(Protocol):
    """The endpoint's events since the rollout started."""

    def events(self) -> list[EndpointEvent]:
        """All by now, in time order."""


@dataclass
class Desk:
    """What a controller works with."""

    journal: Journal
    lease: Lease
    provider: TrafficProvider
    source: Source
    events: Events
    clock: Clock = WALL_CLOCK
    judge: Callable[..., Evidence] = evidence_of
    seen: Callable[[RolloutRecord, History, Sequence[Entry]], None] = lambda record, history, entries: None
    """Told after every look, to draw and to keep."""
    promoted: Callable[[], None] = lambda: None
    """Told when the journal names another champion, to mirror it."""
    revive: Callable[[], bool] = lambda: False
    """Starts an endpoint of one's own again that is gone; whether it did."""
    lineage_id: str = ""
    mlflow_run_id: str = ""


class Controller:
    """Drives one rollout to its end.

    Args:
        config: the rollout's settings.
        rollout_id: which one; it is in the journal already.
        desk: what it works with; the lease is held.
        history: what earlier controllers of this rollout saw.
    """

    def __init__(self, config: DeployConfig, rollout_id: str, desk: Desk, history: History | None = None) -> None:
        self._config, self._rollout_id, self._desk = config, rollout_id, desk
        self.history = history or History()
        self.entries: list[Entry] = []
        """The journal's, as they were read last."""
        self._known: tuple[RolloutRecord, str | None] | None = None
        self._length = 0
        self._lost_since: float | None = None

    def drive(self) -> RolloutRecord:
        """Go on until the rollout is over; returns how it ended.

        Raises:
            DriftError: somebody else moved the traffic; it is left as they set it, and the rollout is closed.
            FencedError: another controller has taken over.
            UnavailableError: a server did not answer for as long as one waits; the rollout stays open.
        """
        record, _ = self._read()
        if not record.over and record.fence != self._desk.lease.fence:
            self._write(record, Move("resumed", ("Another controller goes on from here.",)))
        while not record.over or (record.state == "held" and record.asked):
            record = self._turn()
        return record

    def _turn(self) -> RolloutRecord:
        self._desk.lease.check()
        record, serving = self._read()
        if record.state == "promoting" and serving != record.candidate:
            self._promote(record)  # journalled before the first user gets it
            return self._read()[0]
        try:
            live = self._serve(record, serving)
        except FencedError:
            raise
        except DriftError:
            self._close_where_drifted(record)
            raise
        except NotReadyError as error:
            self._wait_for_endpoint(error)
            return record
        except ServingError as error:
            return self._refused(record, error)
        self._lost_since = None
        move = next_move(record, self._facts(record, serving, live), self._config)
        if move is None:
            self._wait(record)
        else:
            self._write(record, move)
        return self._read()[0]

    def _serve(self, record: RolloutRecord, serving: str | None) -> Live:
        """Have the split of a state served."""
        split = split_of(record, self._config, serving)
        live = self._desk.provider.live()
        if live.split != split or live.fence != self._desk.lease.fence:
            self._desk.provider.apply(split, fence=self._desk.lease.fence)
            live = self._desk.provider.live()
        return live

    def _close_where_drifted(self, record: RolloutRecord) -> None:
        """Somebody moves the traffic by hand: what they set is theirs, and the rollout is over."""
        self._write(record, Move("aborted", ("The traffic was changed by somebody else; it is left as they set it.",)))

    def _promote(self, record: RolloutRecord) -> None:
        verdict = record.verdict
        assert verdict is not None
        try:
            self._desk.journal.append(
                "promotion",
                release_id=record.candidate,
                decision="promoted",
                reasons=verdict.reasons,
                evidence={**verdict.evidence, "rollout_id": self._rollout_id, "fence": self._desk.lease.fence},
                policy_version=verdict.policy_version,
                approved_by=self._approver(record, verdict),
                lineage_id=self._desk.lineage_id,
                mlflow_run_id=self._desk.mlflow_run_id,
                champion=record.champion,
                fence=self._desk.lease.fence,
            )
        except InputError as error:  # somebody else changed the champion between the decision and this line
            self._write(record, Move("rollback", (str(error),)))
            return
        self._desk.promoted()

    def _approver(self, record: RolloutRecord, verdict: Entry) -> str:
        asked_by = str(record.plan.get("approved_by", ""))
        decided_by = verdict.approved_by or "canary judge"
        return f"{asked_by}, {decided_by}" if asked_by else decided_by

    def _facts(self, record: RolloutRecord, serving: str | None, live: Live) -> Facts:
        evidence = Evidence()
        if record.state in ("shadow", "step") and not record.asked and live.candidate_ready:
            if not record.paused_by:
                self._let_traffic_pass(record)
            evidence = self._look(record, live)
        return Facts(
            now_s=self._desk.clock.now(),
            began_s=_seconds(record.started),
            since_s=_seconds(record.since),
            live=live,
            serving=serving,
            decision=evidence.decision,
            candidate_sessions=evidence.candidate_sessions,
            sessions=evidence.sessions,
            pairs=evidence.pairs,
        )

    def _let_traffic_pass(self, record: RolloutRecord) -> None:
        golden = min(self._config.shadow.questions, self._config.shadow.min_answers) if record.state == "shadow" else 0
        self.history = self.history.with_outcomes(self._desk.source.round(golden=golden))

    def _look(self, record: RolloutRecord, live: Live) -> Evidence:
        now = datetime.fromtimestamp(self._desk.clock.now(), UTC)
        events = self._desk.events.events()
        evidence = self._desk.judge(record, events, self._config, restarts=live.restarts, now=now)
        share = self._config.shares[record.step] if record.state == "step" else 0.0
        self.history = self.history.with_glance(_glance(record, share, evidence, now))
        self._desk.seen(record, self.history, self.entries)
        return evidence

    def _wait(self, record: RolloutRecord) -> None:
        if record.paused_by or record.state in ("pending", "warmup"):
            self._desk.source.wait(POLL_S)

    def _wait_for_endpoint(self, error: NotReadyError) -> None:
        """Start an endpoint of one's own again that is gone, or wait for whoever starts another's."""
        logger.warning("The endpoint does not answer: %s", error)
        if self._desk.revive():
            return
        now = self._desk.clock.now()
        self._lost_since = now if self._lost_since is None else self._lost_since
        if now - self._lost_since > PATIENCE_S:
            raise UnavailableError(
                f"The endpoint did not answer for {PATIENCE_S:g} s ({error}): start it, then the rollout again."
            ) from error
        self._desk.clock.sleep(POLL_S)

    def _refused(self, record: RolloutRecord, error: ServingError) -> RolloutRecord:
        """A candidate that cannot be served is turned away; a champion that cannot be is nothing to go on with.

        A candidate that is being promoted is the journal's champion already: the rollout stays open for the next try.
        """
        if record.state not in ("warmup", "shadow", "step"):
            raise error
        self._write(record, Move("rollback", (f"The candidate cannot be served: {error}",)))
        return self._read()[0]

    def _read(self) -> tuple[RolloutRecord, str | None]:
        """The rollout and the champion, as the journal tells them now; it is read again once it has grown."""
        length = self._desk.journal.length()
        if self._known is None or length != self._length:
            self.entries = entries = self._desk.journal.entries(self.entries)
            found = [record for record in rollouts(entries) if record.rollout_id == self._rollout_id]
            if not found:
                raise UnavailableError(f"The journal knows no rollout {self._rollout_id}: start it again.")
            self._known, self._length = (found[0], self._desk.journal.champion_of(entries)), len(entries)
        return self._known

    def _write(self, record: RolloutRecord, move: Move) -> None:
        self._desk.lease.check()
        evidence: dict[str, Any] = {
            **move.evidence,
            "rollout_id": self._rollout_id,
            "fence": self._desk.lease.fence,
        }
        if move.decision in ("promote", "rollback", "hold"):
            evidence |= {"requests": self.history.requests, "failed_requests": self.history.failed_requests}
        self._desk.journal.append(
            "rollout",
            release_id=record.candidate,
            decision=move.decision,
            reasons=move.reasons,
            evidence=evidence,
            policy_version=move.policy_version,
            approved_by=move.approved_by,
            lineage_id=self._desk.lineage_id,
            mlflow_run_id=self._desk.mlflow_run_id,
            fence=self._desk.lease.fence,
        )


def begin(
    journal: Journal,
    lease: Lease,
    *,
    candidate: str,
    champion: str,
    plan: Mapping[str, Any],
    lineage_id: str = "",
    mlflow_run_id: str = "",
) -> str:
    """Journal the start of a rollout; returns its id.

    Args:
        journal: the endpoint's.
        lease: held.
        candidate: release id.
        champion: release id that serves.
        plan: JSON values that another controller needs to go on.
        lineage_id: of the run that asks.
        mlflow_run_id: of its task.
    """
    rollout_id = uuid.uuid4().hex[:12]
    journal.append(
        "rollout",
        release_id=candidate,
        decision="started",
        evidence={**plan, "rollout_id": rollout_id, "champion": champion, "fence": lease.fence},
        lineage_id=lineage_id,
        mlflow_run_id=mlflow_run_id,
        champion=champion,
        fence=lease.fence,
    )
    return rollout_id


def _glance(record: RolloutRecord, share: float, evidence: Evidence, now: datetime) -> Glance:
    numbers = evidence.decision.evidence
    return Glance(
        time=now.isoformat(timespec="milliseconds"),
        state=record.state,
        share_percent=share,
        outcome=evidence.decision.outcome,
        e_value=numbers.get("e_value"),
        e_threshold=numbers.get("e_threshold"),
        candidate_sessions=numbers.get("candidate_sessions", 0),
        champion_sessions=numbers.get("champion_sessions", 0),
        metrics=numbers.get("metrics", {}),
    )


def _seconds(time_: str) -> float:
    return datetime.fromisoformat(time_).timestamp()
