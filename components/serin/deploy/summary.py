"""A rollout as a person reads it."""

import json

from serin.deploy.rollout import Rollout


def markdown(rollout: Rollout) -> str:
    """The decision, its reasons and its numbers as Markdown."""
    decision = rollout.decision
    lines = [
        f"# Canary: {decision.outcome}",
        "",
        f"Candidate `{rollout.candidate[:12]}` against champion `{rollout.champion[:12]}`, "
        f"{rollout.requests} requests, {rollout.failed_requests} failed for users.",
        "",
        *(f"- {reason}" for reason in decision.reasons),
        "",
        "| evidence | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in decision.evidence.items()),
    ]
    return "\n".join(lines) + "\n"


def as_json(rollout: Rollout) -> str:
    """The rollout as JSON."""
    return json.dumps(rollout.summary(), indent=1)
