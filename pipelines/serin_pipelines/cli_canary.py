"""``serin canary``: judge recorded requests of two releases; ask by simulation what a policy does to traffic."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table

from serin.core.errors import ConfigError
from serin.deploy.config import DeployConfig, JudgePolicy
from serin_pipelines.options import AsJson, console, show

app = typer.Typer(help="Judge recorded canaries; simulate what a policy does.", no_args_is_help=True)

DECISION_CODES = {"rollback": 21, "hold": 22}
Policy = Annotated[
    Path | None,
    typer.Option("--policy", help="YAML or JSON: a judge policy, or a configuration that holds one (deploy.judge)."),
]


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
