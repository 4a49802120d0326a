"""What happens at the end of every run, also of one that failed."""

import logging
import os
from dataclasses import asdict, dataclass
from typing import Any

from serin.core.context import StageContext
from serin.core.errors import SerinError
from serin.core.gateway_client import GATEWAY_VARIABLE, GatewayClient
from serin.core.journal import Entry
from serin.core.rollouts import close_abandoned, command, open_rollout

logger = logging.getLogger(__name__)

SUCCEEDED = "SUCCEEDED"


@dataclass(frozen=True)
class Conclusion:
    """What was found at the end of a run."""

    state: str
    """As Kubeflow says: SUCCEEDED, FAILED or CANCELLED."""
    message: str
    """Why it failed, where it did."""
    champion: str
    """Release id that serves now; empty before the first promotion."""
    decisions: tuple[Entry, ...]
    """What this run wrote to the journal."""
    restored: str
    """What became of a rollout that its executor left open; empty when there was none."""
    killed_stages: int
    """Stages whose MLflow runs had to be closed for them."""

    def summary(self) -> dict[str, Any]:
        """The conclusion in a few JSON values."""
        decisions = [f"{entry.kind}: {entry.decision}" for entry in self.decisions]
        return {**asdict(self), "decisions": decisions}


def conclude(state: str, message: str, context: StageContext) -> Conclusion:
    """Close what a run left open, and tell how it ended.

    A rollout without a decision loses its traffic: the gateway goes back to the champion alone, and the journal says
    so.  MLflow runs of killed stages are closed.  Trouble with one of these is part of the report and stops nothing.

    Args:
        state: the run's final state.
        message: Kubeflow's message, for a failure.
        context: the stage's.
    """
    restored = _restore(context)
    killed = context.tracker.conclude("FINISHED" if state == SUCCEEDED else "FAILED")
    mine = [entry for entry in context.journal.entries() if entry.lineage_id == context.lineage_id]
    return Conclusion(state, message, context.journal.champion() or "", tuple(mine), restored, killed)


def markdown(conclusion: Conclusion, context: StageContext) -> str:
    """The conclusion for the Kubeflow UI."""
    lines = [f"# Run {context.lineage_id}: {conclusion.state.lower()}", ""]
    lines += [conclusion.message, ""] if conclusion.message else []
    champion = f"release `{conclusion.champion[:12]}`" if conclusion.champion else "no release yet"
    lines += [f"Endpoint `{context.endpoint}` serves {champion}.", ""]
    lines += [conclusion.restored, ""] if conclusion.restored else []
    if conclusion.killed_stages:
        lines += [f"{conclusion.killed_stages} stages were killed; their MLflow runs are closed.", ""]
    if conclusion.decisions:
        lines += ["| decided | release | outcome | because | approved by |", "|---|---|---|---|---|"]
        lines += [_row(entry) for entry in conclusion.decisions]
    return "\n".join(lines) + "\n"


def _row(entry: Entry) -> str:
    reason = (entry.reasons[0] if entry.reasons else "").replace("|", "\\|").replace("\n", " ")
    return f"| {entry.kind} | `{entry.release_id[:12]}` | {entry.decision} | {reason} | {entry.approved_by} |"


def _restore(context: StageContext) -> str:
    """Take the traffic from a rollout of this run that has no decision; one that was handed over goes on."""
    last = open_rollout(context.journal)
    if last is None or last.lineage_id != context.lineage_id:
        return ""
    if last.plan.get("driver") == "controller":
        return f"Rollout {last.rollout_id} is carried out by a controller: 'serin canary status' tells how it goes."
    kind = dict(dict(last.plan.get("config", {})).get("traffic", {})).get("kind", "gateway")
    if kind != "gateway":
        command(context.journal, "abort", approved_by="exit handler", reason="Its run ended without a decision.")
        return f"A rollout was left without a decision; the standing controller is asked to take its {kind} back."
    champion = context.journal.champion()
    fence = last.fence + 1  # whatever is left of its executor can neither write nor move traffic after this
    url = os.environ.get(GATEWAY_VARIABLE, "")
    said = "The rollout's own gateway ended with it."
    if url and champion:
        try:
            GatewayClient.from_environment(url).set_rollout(champion=champion, fence=fence)
            said = f"The gateway serves the champion {champion[:12]} alone again."
        except SerinError as error:
            logger.warning("Traffic could not be restored: %s", error)
            return f"A rollout was left without a decision, and its traffic could not be taken back: {error}"
    close_abandoned(context.journal, context.lineage_id, fence=fence)
    return f"A rollout was left without a decision and is closed as aborted. {said}"
