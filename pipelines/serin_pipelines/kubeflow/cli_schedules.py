"""``serin schedule``: recurring runs; every time that is asked for or shown is UTC."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from serin.core.errors import ConfigError
from serin_pipelines.environments import Environment, Schedule, load_environment
from serin_pipelines.kubeflow.cli_options import (
    EnvName,
    Host,
    ImageRefs,
    Params,
    PollS,
    image_references,
    package_for,
    progress_console,
)
from serin_pipelines.options import AsJson, console, show

if TYPE_CHECKING:
    from serin_pipelines.kubeflow.client import Kubeflow
    from serin_pipelines.kubeflow.schedules import Change, Wanted

NEXT_TIMES = 3
TIME_FORMAT = "%Y-%m-%d %H:%M:%S UTC"

schedule_app = typer.Typer(no_args_is_help=True, help="Keep recurring runs; all times are UTC.")


@schedule_app.command("create")
def schedule_create(
    name: Annotated[str, typer.Argument(help="Name of the schedule.")],
    env: EnvName = "staging",
    pipeline: Annotated[str, typer.Option("--pipeline", help="Pipeline or IR file (default: the environment's).")] = "",
    cron: Annotated[str, typer.Option("--cron", help="Six fields, seconds first, in UTC: '0 0 2 * * *'.")] = "",
    param: Params = None,
    image: ImageRefs = None,
    host: Host = "",
    as_json: AsJson = False,
) -> None:
    """Make a recurring run; cron has six fields, seconds first, and its times are UTC.

    Example: serin schedule create nightly-index --env prod --pipeline index_refresh --cron "0 0 2 * * *"
    """
    from serin_pipelines.kubeflow import schedules

    environment = load_environment(env, image_references(image))
    chosen = _schedule(environment, name, pipeline, cron)
    with _scheduling(environment, host) as (kubeflow, experiment_id):
        wanted = _wanted(kubeflow, environment, name, chosen, param or [])
        change = schedules.create(kubeflow, experiment_id, wanted)
    _show_changes([change], {name: wanted.cron}, as_json)


@schedule_app.command("update")
def schedule_update(
    name: Annotated[str, typer.Argument(help="Name of the schedule.")],
    env: EnvName = "staging",
    pipeline: Annotated[str, typer.Option("--pipeline", help="Pipeline or IR file (default: the environment's).")] = "",
    cron: Annotated[str, typer.Option("--cron", help="Six fields, seconds first, in UTC: '0 0 2 * * *'.")] = "",
    param: Params = None,
    image: ImageRefs = None,
    host: Host = "",
    timeout_s: Annotated[float, typer.Option("--timeout-s", help="Wait this long for its runs to end.")] = 3600.0,
    poll_s: PollS = 5.0,
    as_json: AsJson = False,
) -> None:
    """Change a recurring run: disable it, wait for its runs to end, make the new one, delete the old; times are UTC.

    Example: serin schedule update nightly-index --env prod --cron "0 30 2 * * *"
    """
    from serin_pipelines.kubeflow import schedules

    environment = load_environment(env, image_references(image))
    chosen = _schedule(environment, name, pipeline, cron)
    say = progress_console(as_json).print
    with _scheduling(environment, host) as (kubeflow, experiment_id):
        wanted = _wanted(kubeflow, environment, name, chosen, param or [])
        limits = schedules.Limits(poll_s=poll_s, idle_s=timeout_s)
        change = schedules.update(kubeflow, experiment_id, wanted, limits, say)
    _show_changes([change], {name: wanted.cron}, as_json)


@schedule_app.command("apply")
def schedule_apply(
    env: EnvName = "staging",
    prune: Annotated[bool, typer.Option("--prune", help="Remove ours that the environment does not name.")] = False,
    image: ImageRefs = None,
    host: Host = "",
    timeout_s: Annotated[float, typer.Option("--timeout-s", help="Wait this long for runs of each to end.")] = 3600.0,
    poll_s: PollS = 5.0,
    as_json: AsJson = False,
) -> None:
    """Make the recurring runs what the environment says; those that are stay untouched; times are UTC.

    Example: serin schedule apply --env prod
    """
    from serin_pipelines.kubeflow import schedules
    from serin_pipelines.kubeflow.cron import next_times

    environment = load_environment(env, image_references(image))
    for one in environment.schedules.values():
        next_times(one.cron, 1)
    say = progress_console(as_json).print
    with _scheduling(environment, host) as (kubeflow, experiment_id):
        wanted = [_wanted(kubeflow, environment, name, one, []) for name, one in environment.schedules.items()]
        limits = schedules.Limits(poll_s=poll_s, idle_s=timeout_s)
        changes = schedules.apply(kubeflow, experiment_id, wanted, limits, say, prune=prune)
    _show_changes(changes, {one.name: one.cron for one in wanted}, as_json)


@schedule_app.command("remove")
def schedule_remove(
    name: Annotated[str, typer.Argument(help="Name of the schedule.")],
    env: EnvName = "staging",
    host: Host = "",
    as_json: AsJson = False,
) -> None:
    """Remove a recurring run; runs that it has started go on.

    Example: serin schedule remove nightly-index --env staging
    """
    from serin_pipelines.kubeflow import schedules

    with _scheduling(load_environment(env), host, make=False) as (kubeflow, experiment_id):
        if not experiment_id:
            raise ConfigError(f"There is no schedule {name!r}: the environment's experiment is not there yet.")
        change = schedules.remove(kubeflow, experiment_id, name)
    _show_changes([change], {}, as_json)


@schedule_app.command("list")
def schedule_list(env: EnvName = "staging", host: Host = "", as_json: AsJson = False) -> None:
    """List the recurring runs of an environment and when each fires next, in UTC.

    Example: serin schedule list --env prod
    """
    from serin_pipelines.kubeflow import schedules

    with _scheduling(load_environment(env), host, make=False) as (kubeflow, experiment_id):
        found = [_listed(one) for one in schedules.listed(kubeflow, experiment_id)] if experiment_id else []
    if as_json:
        show({"schedules": found, "time_zone": "UTC"}, as_json)
        return
    table = Table("schedule", "state", "cron (UTC)", "next (UTC)", "version", box=None)
    for one in found:
        table.add_row(one["name"], one["state"], one["cron"], (one["next"] or [""])[0], one["version_id"])
    console.print(table)


@contextmanager
def _scheduling(environment: Environment, host: str, *, make: bool = True) -> "Iterator[tuple[Kubeflow, str]]":
    """A connection and the environment's experiment; without ``make`` its id is empty where it is not there."""
    from serin_pipelines.kubeflow.client import Kubeflow
    from serin_pipelines.kubeflow.runs import experiment, find_experiment

    with Kubeflow.connect(environment, host) as kubeflow:
        if make:
            yield kubeflow, experiment(kubeflow, environment.experiment)
        else:
            found = find_experiment(kubeflow, environment.experiment)
            yield kubeflow, str(found.experiment_id) if found else ""


def _schedule(environment: Environment, name: str, pipeline: str, cron: str) -> Schedule:
    """The environment's schedule of that name, with what the options say instead."""
    known = environment.schedules.get(name)
    if known is None and not (pipeline and cron):
        raise ConfigError(
            f"Environment {environment.name!r} has no schedule {name!r}: give --pipeline and --cron, or add it there."
        )
    base = known or Schedule(pipeline=pipeline, cron=cron)
    return base.model_copy(update={"pipeline": pipeline or base.pipeline, "cron": cron or base.cron})


def _wanted(kubeflow: "Kubeflow", environment: Environment, name: str, chosen: Schedule, texts: list[str]) -> "Wanted":
    from serin_pipelines.kubeflow.cron import next_times
    from serin_pipelines.kubeflow.runs import publish
    from serin_pipelines.kubeflow.schedules import Wanted

    next_times(chosen.cron, 1)
    with package_for(chosen.pipeline, environment) as package:
        given = [f"{parameter}={value}" for parameter, value in chosen.arguments.items()]
        arguments = package.arguments([*given, *texts])
        version = publish(kubeflow, package)
    plugins = {"mlflow": {"experiment_name": str(arguments.get("endpoint") or environment.endpoint)}}
    return Wanted(name, version, chosen.cron, arguments, environment.service_account, plugins)


def _listed(one: Any) -> dict[str, Any]:
    from serin_pipelines.kubeflow import schedules

    cron = schedules.cron_of(one)
    reference = one.pipeline_version_reference
    return {
        "name": one.display_name,
        "state": "enabled" if schedules.enabled(one) else "disabled",
        "cron": cron,
        "next": _next(cron) if cron and schedules.enabled(one) else [],
        "version_id": (reference.pipeline_version_id if reference else "") or "",
        "ours": schedules.MARK in str(one.description or ""),
        "id": one.recurring_run_id,
    }


def _next(cron: str) -> list[str]:
    from serin_pipelines.kubeflow.cron import next_times

    try:
        return [f"{moment:{TIME_FORMAT}}" for moment in next_times(cron, NEXT_TIMES)]
    except ConfigError:
        return []  # someone else's, in a form that the server takes and we do not read


def _show_changes(changes: "list[Change]", crons: dict[str, str], as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "name": change.name,
                "action": change.action,
                "reasons": list(change.reasons),
                "cron": crons.get(change.name, ""),
                "next": _next(crons[change.name]) if change.name in crons else [],
            }
            for change in changes
        ]
        show({"changes": rows, "time_zone": "UTC"}, as_json)
        return
    for change in changes:
        why = f" ({'; '.join(change.reasons)})" if change.reasons else ""
        console.print(f"{change.name}: {change.action}{why}", markup=False, soft_wrap=True)
        if change.name in crons:
            console.print(f"  cron {crons[change.name]!r} in UTC, next: {', '.join(_next(crons[change.name]))}")
