"""What the journal says of rollouts: the state of each, what people asked of it, and how one is closed.

A rollout is a sequence of journal entries of the kind ``rollout``.  Each names the state that is entered, *before*
anything is done about it, so that whoever finds the rollout later knows what was meant::

    started ─► warmup ─► shadow ─► advance (step 0, 1, ...) ─► promote ─► promoted
    (pending)                          │
                                       ├─► hold ─────► held            champion alone, the question open
                                       └─► rollback ─► rolled back     champion alone
    aborted: it ended without a decision of its own     resumed: another controller goes on from here

What people ask (pause, resume, promote, abort) are entries of the kind ``command``, with who asked.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from serin.core.errors import InputError
from serin.core.journal import Entry, Journal

State = Literal[
    "pending", "warmup", "shadow", "step", "promoting", "promoted", "holding", "held", "rolling_back", "rolled_back",
    "aborted",
]  # fmt: skip
STATES: dict[str, State] = {
    "started": "pending",
    "warmup": "warmup",
    "shadow": "shadow",
    "advance": "step",
    "promote": "promoting",
    "promoted": "promoted",
    "hold": "holding",
    "held": "held",
    "rollback": "rolling_back",
    "rolled back": "rolled_back",
    "aborted": "aborted",
}
"""The state that each decision enters; a decision that is not here (resumed) changes none."""
OVER: frozenset[State] = frozenset({"promoted", "held", "rolled_back", "aborted"})
"""States in which a rollout is over, and its traffic is where it belongs."""
Command = Literal["pause", "resume", "promote", "abort"]


@dataclass(frozen=True)
class RolloutRecord:
    """One rollout, as its journal entries tell it."""

    rollout_id: str
    candidate: str
    """Release id."""
    champion: str
    """Release id of the champion at its start."""
    started: str
    """UTC, ISO 8601."""
    lineage_id: str = ""
    state: State = "pending"
    step: int = -1
    """Position among its shares; -1 before the first."""
    since: str = ""
    """When the state was entered."""
    exposed: str = ""
    """When the candidate first got traffic; empty before."""
    fence: int = 0
    """Of the last lease under which something was journalled."""
    last: Entry | None = None
    """The entry that entered the state."""
    verdict: Entry | None = None
    """The entry that decided it: promote, hold, rollback or aborted."""
    plan: dict[str, Any] = field(default_factory=dict)
    """Evidence of its first entry: settings and inputs, all that another controller needs to go on."""
    paused_by: str = ""
    """Who paused it; empty while it goes on."""
    asked: Entry | None = None
    """A promote or abort that somebody asked for and that is not carried out yet."""

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.state in OVER


def rollouts(entries: Iterable[Entry]) -> list[RolloutRecord]:
    """All rollouts of a journal, in the order in which they started."""
    found: dict[str, RolloutRecord] = {}
    for entry in entries:
        if entry.kind not in ("rollout", "command"):
            continue
        name = str(entry.evidence.get("rollout_id", ""))
        known = found.get(name)
        if entry.kind == "rollout":
            found[name] = _with(known or _begun(name, entry), entry)
        elif known is not None:
            found[name] = _commanded(known, entry)
    return list(found.values())


def last_rollout(journal: Journal) -> RolloutRecord | None:
    """The rollout that started last; None when there never was one."""
    found = rollouts(journal.entries())
    return found[-1] if found else None


def open_rollout(journal: Journal) -> RolloutRecord | None:
    """The rollout that is under way; None when the last one is over."""
    last = last_rollout(journal)
    return last if last is not None and not last.over else None


def close_abandoned(journal: Journal, lineage_id: str, reason: str = "", fence: int | None = None) -> None:
    """Journal that the open rollout is over, because nobody drives it any more; nothing where none is open."""
    open_one = open_rollout(journal)
    if open_one is None:
        return
    journal.append(
        "rollout",
        release_id=open_one.candidate,
        decision="aborted",
        reasons=(reason or "The process that ran it ended without a decision.",),
        evidence={"rollout_id": open_one.rollout_id, "fence": open_one.fence if fence is None else fence},
        lineage_id=lineage_id,
        fence=fence,
    )


def command(journal: Journal, what: Command, *, approved_by: str, reason: str) -> RolloutRecord:
    """Ask something of the endpoint's last rollout, in the journal, for its controller to carry out.

    Args:
        journal: the endpoint's.
        what: ``pause`` keeps traffic as it is (harm still rolls back), ``resume`` ends that, ``promote`` and
            ``abort`` decide the rollout; both also decide one that was held.
        approved_by: who asks.
        reason: why.

    Raises:
        InputError: nobody is named, or there is no rollout to which this can be said.
    """
    if not approved_by.strip():
        raise InputError("A command to a rollout needs a name: say who approves it.")
    record = last_rollout(journal)
    if record is None or (record.over and not (record.state == "held" and what in ("promote", "abort"))):
        raise InputError(f"No rollout of {journal.endpoint!r} is under way: there is nothing to {what}.")
    journal.append(
        "command",
        release_id=record.candidate,
        decision=what,
        reasons=(reason,) if reason else (),
        evidence={"rollout_id": record.rollout_id},
        approved_by=approved_by.strip(),
        lineage_id=record.lineage_id,
    )
    return record


def _begun(name: str, entry: Entry) -> RolloutRecord:
    champion = str(entry.evidence.get("champion", ""))
    return RolloutRecord(
        name, entry.release_id, champion, entry.time, entry.lineage_id, since=entry.time, plan=entry.evidence
    )


def _with(record: RolloutRecord, entry: Entry) -> RolloutRecord:
    record = replace(record, fence=max(record.fence, int(entry.evidence.get("fence", 0))))
    state = STATES.get(entry.decision)
    if state is None:
        return record
    decides = state in ("promoting", "holding", "rolling_back", "aborted")
    return replace(
        record,
        state=state,
        step=int(entry.evidence.get("step", record.step)),
        since=entry.time,
        exposed=record.exposed or (entry.time if state == "step" else ""),
        last=entry,
        verdict=entry if decides else record.verdict,
        asked=None if decides else record.asked,
    )


def _commanded(record: RolloutRecord, entry: Entry) -> RolloutRecord:
    if entry.decision in ("pause", "resume"):
        return replace(record, paused_by=entry.approved_by if entry.decision == "pause" else "")
    return replace(record, asked=entry)
