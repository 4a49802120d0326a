"""What the Kubeflow UI shows of a rollout."""

import html
import json
from pathlib import Path

from serin.core.context import StageContext
from serin.deploy.rollout import Rollout


def write(result: Rollout, context: StageContext, *, summary: Path, rollout: Path, page: Path) -> None:
    """Write a rollout's outputs.

    Args:
        result: how it ended.
        context: the stage's, in whose store the page is.
        summary: gets Markdown.
        rollout: gets JSON.
        page: gets the rollout's page as it was drawn last; where none was, the summary's text.
    """
    for path in (summary, rollout, page):
        path.parent.mkdir(parents=True, exist_ok=True)
    summary.write_text(markdown(result), encoding="utf-8")
    rollout.write_text(as_json(result), encoding="utf-8")
    storage = context.store.storage
    if result.page and storage.exists(result.page):
        page.write_bytes(storage.read(result.page))
    else:
        reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in result.decision.reasons)
        page.write_text(f"<!DOCTYPE html><title>Canary</title><ul>{reasons}</ul>", encoding="utf-8")


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
        *(f"| {name} | {value} |" for name, value in decision.evidence.items() if name != "metrics"),
        "",
        *_metrics(decision.evidence.get("metrics", {})),
    ]
    return "\n".join(lines) + "\n"


def as_json(rollout: Rollout) -> str:
    """The rollout as JSON."""
    return json.dumps(rollout.summary(), indent=1)


def _metrics(metrics: dict[str, dict[str, object]]) -> list[str]:
    if not metrics:
        return []
    names = ("champion", "candidate", "estimate", "lower", "upper", "proven", "e_value", "e_threshold_alone")
    rows = [
        f"| {name} | " + " | ".join(str(values.get(key, "")) for key in names) + " |"
        for name, values in metrics.items()
    ]
    return [f"| metric | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|", *rows]
