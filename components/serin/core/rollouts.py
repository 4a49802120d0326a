"""What a journal says of rollouts: whether one is under way, and how one that lost its executor is closed."""

from serin.core.journal import Entry, Journal

FINAL = ("promote", "rollback", "hold", "aborted")
"""Decisions after which a rollout is over."""


def open_rollout(journal: Journal) -> Entry | None:
    """The last entry of the rollout that has no final decision; None when the last one is over."""
    rollouts = journal.find(kind="rollout")
    return rollouts[-1] if rollouts and rollouts[-1].decision not in FINAL else None


def close_abandoned(journal: Journal, lineage_id: str) -> Entry | None:
    """Journal that the open rollout is over, because the process that ran it is gone; returns its last entry."""
    last = open_rollout(journal)
    if last is not None:
        journal.append(
            "rollout",
            release_id=last.release_id,
            decision="aborted",
            reasons=("The process that ran it ended without a decision.",),
            evidence={"rollout_id": last.evidence.get("rollout_id", "")},
            lineage_id=lineage_id,
        )
    return last
