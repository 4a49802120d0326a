"""What a finished run prints: what serves now, on which evidence, and where to look next."""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table

from serin.core.storage import join
from serin_pipelines.records import RunRecord


def print_report(record: RunRecord, console: Console) -> None:
    """Print the outcome of a run in a terminal."""
    summaries = {stage.name: stage.summary for stage in record.stages}
    console.print(Rule(f"run {record.run_id}: {record.status} in {record.wall_s:.0f} s"))
    _reuse(record, console)
    if evaluation := summaries.get("evaluate"):
        _evaluation(evaluation, console)
    if rollout := summaries.get("deploy"):
        _canary(record, rollout, console)
    if monitor := summaries.get("monitor"):
        console.print(f"\n[bold]Monitor[/]  {monitor.get('outcome', '')}")
        _reasons(monitor.get("reasons", []), console)
    _next(record, summaries, console)


def _reuse(record: RunRecord, console: Console) -> None:
    reused = list(dict.fromkeys(kind for stage in record.stages for kind in stage.reused))
    if reused:
        console.print(f"Reused from an earlier run, same digests: {', '.join(reused)}.", soft_wrap=True)


def _evaluation(summary: dict[str, Any], console: Console) -> None:
    console.print(f"\n[bold]Evaluation[/]  gate: {summary['outcome']}")
    _reasons(summary["reasons"], console)
    table = Table(box=None, padding=(0, 2))
    table.add_column("metric on held-out data")
    roles = list(summary["metrics"])
    for role in roles:
        table.add_column(role, justify="right")
    names = list(summary["metrics"]["candidate"])
    for name in names:
        table.add_row(name, *(_number(summary["metrics"][role].get(name)) for role in roles))
    console.print(table)


def _canary(record: RunRecord, rollout: dict[str, Any], console: Console) -> None:
    decision = rollout["decision"]
    console.print(f"\n[bold]Canary[/]  {decision['outcome']}")
    _reasons(decision["reasons"], console)
    if evidence := decision["evidence"]:
        console.print(
            f"  {evidence['candidate_sessions']} sessions on the candidate, {evidence['champion_sessions']} on the "
            f"champion; {rollout['requests']} requests, {rollout['failed_requests']} failed for users",
            soft_wrap=True,
        )
    role = "candidate, now champion" if record.champion == record.release else "candidate, not promoted"
    if decision["outcome"] == "unchanged":
        role = "champion already"
    console.print(f"\n[bold]Champion[/]  release {record.champion}", soft_wrap=True)
    console.print(f"  candidate of this run: {record.release[:12]} ({role})")


def _next(record: RunRecord, summaries: dict[str, dict[str, Any]], console: Console) -> None:
    serin = _command("serin")
    pages = [summaries[stage]["report"] for stage in ("evaluate", "monitor") if summaries.get(stage, {}).get("report")]
    lines = [("report", f"file://{pages[0]}")] if pages else []
    if page := summaries.get("deploy", {}).get("page"):
        lines.append(("canary", join(record.store_uri, page)))
    if record.champion:
        body = json.dumps({"messages": [{"role": "user", "content": _question(summaries)}]}, ensure_ascii=False)
        lines += [
            ("ask it", f"{serin} serve   # then, in another terminal:"),
            ("", f"curl -si http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' -d '{body}'"),
        ]
    if sample := summaries.get("deploy", {}).get("sample"):
        lines += [
            ("lineage", f"{serin} lineage {sample['trace_id']}   # x-serin-trace-id of an answer"),
            ("", f"asked in the canary: {sample['question']}"),
            ("", f"answered: {sample['answer']}"),
        ]
    elif record.champion:
        lines.append(("lineage", f"{serin} lineage {record.champion[:12]}   # or the x-serin-trace-id of an answer"))
    lines += [
        ("MLflow", f"{_command('mlflow')} ui --host 127.0.0.1 --backend-store-uri {record.tracking_uri}"),
        ("logs", str(record.folder / "logs")),
    ]
    console.print("\n[bold]Next[/]")
    for name, text in lines:
        console.print(f"  {name:8} {escape(text)}", soft_wrap=True)


def _question(summaries: dict[str, dict[str, Any]]) -> str:
    sample = summaries.get("deploy", {}).get("sample") or {}
    question = sample.get("question") or "What can you help me with?"
    return str(question).replace("'", " ").replace('"', " ")


def _command(name: str) -> str:
    """How to call a command of this environment from the working folder."""
    path = Path(sys.executable).parent / name
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _reasons(reasons: list[str], console: Console) -> None:
    for reason in reasons:
        console.print(f"  {escape(reason)}", soft_wrap=True)


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3f}"
