"""A promotion's verdict as Markdown, for the pull request or the CI job's page."""

import os
from pathlib import Path
from typing import Any

from serin.core.errors import ConfigError
from serin_pipelines.kubeflow.promotion import Outcome, Verdict

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
MAX_ROWS = 25
HEADLINES: dict[Outcome, str] = {
    "promoted": "✅ Promoted",
    "already_champion": "✅ Champion already",
    "gate_failed": "❌ The gate said no",
    "rolled_back": "❌ The canary was rolled back",
    "held": "⏸️ The canary is held",
    "run_failed": "❌ The run failed",
    "handed_over": "⏳ A controller carries the canary out",
    "canceled": "⏹️ The run was canceled",
}


def write_summary(verdict: Verdict, path: Path | None) -> None:
    """Write the summary to a file, else append it to the CI job's (``GITHUB_STEP_SUMMARY``), else nowhere.

    Raises:
        ConfigError: the file cannot be written.
    """
    job = os.environ.get(SUMMARY_VARIABLE, "")
    target = path or (Path(job) if job else None)
    if target is None:
        return
    try:
        with target.open("w" if path else "a", encoding="utf-8") as stream:
            stream.write(markdown(verdict))
    except OSError as error:
        raise ConfigError(f"The summary {target} cannot be written: {error.strerror}.") from error


def markdown(verdict: Verdict) -> str:
    """The verdict, its reasons and its main numbers."""
    run = f"[{verdict.run_id}]({verdict.url})" if verdict.url else verdict.run_id or "none"
    facts = {
        "release": f"`{verdict.release[:12]}`",
        "environment": verdict.environment,
        "endpoint": verdict.endpoint,
        "run": run,
        "approved by": verdict.approved_by or "nobody",
    }
    lines = [f"## {HEADLINES[verdict.verdict]}: `{verdict.release[:12]}` in {verdict.environment}", ""]
    lines += [f"- {_inline(reason)}" for reason in verdict.reasons]
    lines += ["", "| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    numbers = list(_flat(verdict.evidence))[:MAX_ROWS]
    if numbers:
        lines += ["", "| evidence | value |", "|---|---|"]
        lines += [f"| {_inline(name)} | {_inline(value)} |" for name, value in numbers]
    return "\n".join(lines) + "\n"


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Scalars by dotted name; lists and empty values tell a reader little and are left out."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            rows.append((f"{prefix}{name}", f"{value:.4g}"))
        elif isinstance(value, (str, int)) and value != "":
            rows.append((f"{prefix}{name}", str(value)))
    return rows


def _inline(text: str) -> str:
    """Text from a journal inside a table or a list: nothing in it starts a cell, a line or HTML."""
    flat = " ".join(text.split())
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
