"""``serin canary``: look at a rollout and decide it by hand; carry rollouts out; judge recorded requests; simulate."""

import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table

from serin.core.context import StageContext
from serin.core.errors import ConfigError, InputError, UnavailableError
from serin.core.rollouts import Command
from serin.core.storage import Storage, join, storage_for
from serin.deploy.config import DeployConfig, JudgePolicy
from serin_pipelines.options import (
    AsJson,
    Endpoint,
    Store,
    Tracking,
    console,
    show,
    stage_from_options,
    store_or_default,
)

app = typer.Typer(help="Look at rollouts, decide and drive them; judge recorded ones; simulate.", no_args_is_help=True)

DECISION_CODES = {"rollback": 21, "hold": 22}
Policy = Annotated[
    Path | None,
    typer.Option("--policy", help="YAML or JSON: a judge policy, or a configuration that holds one (deploy.judge)."),
]


ApprovedBy = Annotated[str, typer.Option("--approved-by", help="Who decides this; goes into the journal.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; goes into the journal.")]


@app.command("status")
def status_command(store: Store = "", endpoint: Endpoint = "assistant", as_json: AsJson = False) -> None:
    """The endpoint's last rollout: state, share, who drives it, what the judge said last, and its page.

    Example: serin canary status --endpoint assistant
    """
    show(status_of(storage_for(store_or_default(store)), endpoint), as_json)


@app.command("pause")
def pause_command(
    approved_by: ApprovedBy, reason: Reason = "", store: Store = "", endpoint: Endpoint = "assistant",
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Keep a rollout's share as it is until it is resumed; harm still takes the traffic back.

    Example: serin canary pause --approved-by ada --reason "campaign starts at noon"
    """
    _say("pause", approved_by, reason, store, endpoint, as_json)


@app.command("resume")
def resume_command(
    approved_by: ApprovedBy, reason: Reason = "", store: Store = "", endpoint: Endpoint = "assistant",
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Let a paused rollout go on.

    Example: serin canary resume --approved-by ada
    """
    _say("resume", approved_by, reason, store, endpoint, as_json)


@app.command("promote")
def promote_command(
    approved_by: ApprovedBy, reason: Reason = "", store: Store = "", tracking: Tracking = "",
    endpoint: Endpoint = "assistant", as_json: AsJson = False,
) -> None:  # fmt: skip
    """Promote the candidate of a rollout, also of one that was held, without waiting for the judge.

    Whoever drives the rollout carries it out; where nobody does, this command.

    Example: serin canary promote --approved-by ada --reason "forty answers read, all right"
    """
    _say("promote", approved_by, reason, store, endpoint, as_json, tracking)


@app.command("abort")
def abort_command(
    approved_by: ApprovedBy, reason: Reason = "", store: Store = "", tracking: Tracking = "",
    endpoint: Endpoint = "assistant", as_json: AsJson = False,
) -> None:  # fmt: skip
    """Take the traffic back to the champion and end the rollout.

    Whoever drives the rollout carries it out; where nobody does, this command.

    Example: serin canary abort --approved-by ada --reason "wrong release"
    """
    _say("abort", approved_by, reason, store, endpoint, as_json, tracking)


@app.command("run")
def run_command(
    follow: Annotated[bool, typer.Option("--follow", help="Stand by for rollouts until it is stopped.")] = False,
    store: Store = "",
    tracking: Tracking = "",
    endpoint: Endpoint = "assistant",
    as_json: AsJson = False,
) -> None:
    """Drive the endpoint's open rollout to its end; with --follow, every rollout that tasks hand over.

    Example: serin canary run --follow --store s3://bucket/serin --endpoint assistant
    """
    from serin.deploy import standing

    with stage_from_options("deploy", store, tracking, endpoint) as context:
        if follow:
            stop = threading.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: stop.set())
            standing.follow(context, stopped=stop.is_set)
            return
        _drive(context, as_json)


@app.command("judge")
def judge_command(
    stable: Annotated[Path, typer.Option("--stable", help="The champion's requests: JSON lines or Parquet.")],
    canary: Annotated[Path, typer.Option("--canary", help="The candidate's.")],
    policy: Policy = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Judge this field alone: NAME, NAME:KIND or NAME:KIND:higher; can be repeated."),
    ] = None,
    not_last_step: Annotated[
        bool, typer.Option("--not-last-step", help="The share can still grow: 'advance' where no harm is seen.")
    ] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 21 for a rollback and 22 for a hold.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Judge two files of recorded requests: advance, hold, promote or rollback, with the evidence.

    One object a request: 'session', 'time' (ISO 8601 or seconds) and metric fields, such as an endpoint's events.

    Example: serin canary judge --stable champion.jsonl --canary candidate.jsonl --metric ttft_ms --json
    """
    from serin.deploy.judge import judge
    from serin.deploy.judge_files import observe_files, policy_for, read_requests, without_absent

    chosen = _policy(policy)
    old, new = read_requests(stable, of_candidate=False), read_requests(canary, of_candidate=True)
    if metric:
        chosen = policy_for(chosen, metric, [*old, *new])
    observations = observe_files(old, new, chosen)
    if not metric and policy is None:
        chosen = without_absent(chosen, observations)
    decision = judge(observations, chosen, last_step=not not_last_step)
    found = {"decision": decision.outcome, **decision.model_dump(mode="json", exclude={"outcome"})}
    if as_json:
        show(found, as_json)
    else:
        _print_decision(found)
    if exit_code and (code := DECISION_CODES.get(decision.outcome)):
        raise typer.Exit(code)


@app.command("simulate")
def simulate_command(
    policy: Policy = None,
    events: Annotated[
        Path | None,
        typer.Option("--events", help="Recorded requests to draw sessions from: JSON lines or Parquet."),
    ] = None,
    harm: Annotated[
        list[str] | None,
        typer.Option("--harm", help="METRIC=SIZE: a ratio (ttft=1.4) or what is added (errors=0.06); repeatable."),
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Rollouts of each kind.")] = 200,
    requests: Annotated[int, typer.Option("--requests", min=100, help="Requests of both sides in a rollout.")] = 6000,
    share: Annotated[
        list[float] | None,
        typer.Option("--share", min=0.1, max=99, help="Per cent of sessions; repeatable, equally long steps."),
    ] = None,
    looks: Annotated[int, typer.Option("--looks", min=1, help="Looks of the judge in a rollout.")] = 30,
    seed: Annotated[int, typer.Option("--seed", help="Of the random numbers.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Simulate rollouts: how often identical releases are rolled back, which harms are found, after how many requests.

    Example: serin canary simulate --policy policy.yaml --events champion.jsonl --harm ttft=1.4 --json
    """
    from serin.deploy import simulate as simulation
    from serin.deploy.judge_metrics import metrics_of

    chosen = _policy(policy)
    model, measured = _model(events, chosen)
    harms = [_harm(text) for text in harm or ()] or simulation.default_harms(chosen, measured)
    plan = simulation.Plan(num_requests=requests, looks=looks, shares_percent=tuple(share or (10.0,)))
    found = simulation.report(chosen, model, harms, plan=plan, runs=runs, seed=seed)
    found["metrics"] = [metric.name for metric in metrics_of(chosen) if metric.name in measured]
    found["traffic"] = str(events) if events else "synthetic"
    if as_json:
        show(found, as_json)
    else:
        _print_report(found)


def status_of(storage: Storage, endpoint: str) -> dict[str, Any]:
    """What is known of an endpoint's last rollout, as JSON values; ``rollout`` is None where there never was one."""
    from serin.core.journal import Journal
    from serin.core.rollouts import last_rollout
    from serin.deploy.history import load_history, page_key
    from serin.deploy.lease import Lease

    journal = Journal(storage, endpoint)
    record = last_rollout(journal)
    champion = journal.champion()
    if record is None:
        return {"endpoint": endpoint, "champion": champion, "rollout": None}
    history = load_history(storage, endpoint, record.rollout_id)
    last = history.glances[-1] if history.glances else None
    holder = Lease(storage, endpoint).holder()
    page = page_key(endpoint, record.rollout_id)
    return {
        "endpoint": endpoint,
        "champion": champion,
        "rollout": record.rollout_id,
        "state": record.state,
        "since": record.since,
        "candidate": record.candidate,
        "share_percent": last.share_percent if last and record.state == "step" else 0.0,
        "paused_by": record.paused_by,
        "asked": record.asked.decision if record.asked else "",
        "reasons": list(record.verdict.reasons) if record.verdict else [],
        "judge": last.outcome if last else "",
        "e_value": last.e_value if last else None,
        "e_threshold": last.e_threshold if last else None,
        "sessions": {"candidate": last.candidate_sessions, "champion": last.champion_sessions} if last else {},
        "driven_by": f"{holder.host}, process {holder.process}" if holder and not record.over else "",
        "page": join(storage.uri, page) if storage.exists(page) else "",
    }


def _say(
    what: Command, approved_by: str, reason: str, store: str, endpoint: str, as_json: bool, tracking: str = ""
) -> None:
    """Put a command into the journal; a decision that nobody is there to carry out is carried out here."""
    from serin.core.journal import Journal
    from serin.core.rollouts import command
    from serin.deploy.lease import Lease

    storage = storage_for(store_or_default(store))
    record = command(Journal(storage, endpoint), what, approved_by=approved_by, reason=reason)
    nobody = Lease(storage, endpoint).holder() is None
    if what in ("pause", "resume") or not nobody:
        show({"rollout": record.rollout_id, "asked": what, "carried_out": False}, as_json)
        return
    with stage_from_options("deploy", store, tracking, endpoint) as context:
        _drive(context, as_json, decided=True)


def _drive(context: StageContext, as_json: bool, *, decided: bool = False) -> None:
    from serin.core.rollouts import last_rollout
    from serin.deploy import standing

    record = last_rollout(context.journal)
    if record is None or (record.over and not record.asked):
        raise InputError(f"No rollout of {context.endpoint!r} is under way: 'serin canary status' shows the last one.")
    rollout = standing.attend(record, context)
    if rollout is None:
        raise UnavailableError(
            f"Another controller drives rollout {record.rollout_id}: 'serin canary status' names it."
        )
    show(rollout.summary(), as_json)
    if not decided and (code := DECISION_CODES.get(rollout.decision.outcome)):
        raise typer.Exit(code)


def _policy(path: Path | None) -> JudgePolicy:
    """The policy of a file, or the default one."""
    if path is None:
        return JudgePolicy()
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The policy {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The policy {path} holds no settings: write 'alpha: 0.05', for example.")
    if "deploy" in values:
        return DeployConfig.load(values["deploy"]).judge
    return JudgePolicy.load(values["judge"] if set(values) == {"judge"} else values)


def _model(events: Path | None, policy: JudgePolicy) -> tuple[Any, tuple[str, ...]]:
    from serin.deploy.judge_files import read_requests
    from serin.deploy.judge_metrics import metrics_of
    from serin.deploy.simulate import RecordedTraffic, SyntheticTraffic

    if events is None:
        return SyntheticTraffic(), ("errors", "ttft", "support")
    recorded = [one for one in read_requests(events, of_candidate=False) if one.fields("track") in (None, "champion")]
    model = RecordedTraffic(recorded, metrics_of(policy))
    return model, model.measured


def _harm(text: str) -> Any:
    from serin.deploy.simulate import Harm

    name, equals, size = text.partition("=")
    try:
        harm = Harm(name, float(size))
    except ValueError as error:
        raise ConfigError(f"--harm {text!r} is not METRIC=SIZE, such as ttft=1.4 or errors=0.06.") from error
    if not equals or not name or not 0 < harm.size < 1e6:
        raise ConfigError(f"--harm {text!r} is not METRIC=SIZE, such as ttft=1.4 or errors=0.06.")
    return harm


def _print_decision(found: dict[str, Any]) -> None:
    evidence = found["evidence"]
    console.print(f"[bold]{found['decision']}[/]", highlight=False)
    for reason in found["reasons"]:
        console.print(f"  {reason}", markup=False)
    table = Table("metric", "champion", "candidate", "compared", "from", "to", "e-value", "alone at", box=None)
    for name, values in evidence["metrics"].items():
        cells = (values[key] for key in ("champion", "candidate", "estimate", "lower", "upper", "e_value"))
        alone = values["e_threshold_alone"]
        table.add_row(name, *map(_number, cells), _number(alone))
    console.print(table)
    console.print(f"e-value {_number(evidence['e_value'])}; rolls back at {_number(evidence['e_threshold'])}.")


def _print_report(found: dict[str, Any]) -> None:
    same = found["identical"]
    console.print(
        f"{found['runs']} rollouts of {found['num_requests']} requests, {found['traffic']} traffic. "
        f"Identical releases: {same['false_rollback_fraction']:.1%} rolled back "
        f"(at most {same['false_rollback_upper_95']:.1%}), "
        f"{same['promoted_fraction']:.1%} promoted, after {_number(same['median_requests_to_promote'])} requests."
    )
    table = Table("harm", "detected", "canary requests", "all requests", "promoted first", box=None)
    for name, values in found["harms"].items():
        medians = (_number(values[key]) for key in ("median_canary_requests", "median_requests"))
        table.add_row(name, f"{values['detected_fraction']:.1%}", *medians, f"{values['promoted_fraction']:.1%}")
    console.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
