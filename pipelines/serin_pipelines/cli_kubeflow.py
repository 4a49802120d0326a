"""Commands that talk to Kubeflow Pipelines; ``cli`` names them.

Exit codes, beside those of every command: 0 the run succeeded, 8 the time limit is reached and the run goes on, 23 the
run failed, 24 it was canceled; of ``promote`` 0 promoted or champion already, 20 the gate said no, 21 the canary was
rolled back, 22 it is held.
"""

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serin.core.errors import ConfigError
from serin_pipelines.environments import Environment, load_environment
from serin_pipelines.kubeflow.cli_options import (
    EnvName,
    Host,
    ImageRefs,
    Params,
    PollS,
    TimeoutS,
    compiled,
    image_references,
    package_for,
    progress_console,
)
from serin_pipelines.kubeflow.cli_schedules import schedule_app
from serin_pipelines.options import AsJson, ConfigFile, Overrides, console, settings, show

if TYPE_CHECKING:
    from serin_pipelines.kubeflow.client import Kubeflow
    from serin_pipelines.kubeflow.follow import RunView, Watch
    from serin_pipelines.kubeflow.packages import Package

RUN_FAILED, RUN_CANCELED = 23, 24
RUN_CODES = {"FAILED": RUN_FAILED, "SKIPPED": RUN_FAILED, "CANCELED": RUN_CANCELED}

ApprovedBy = Annotated[
    str, typer.Option("--approved-by", help="Who decides this; goes into the journal (default in CI: GITHUB_ACTOR).")
]

__all__ = ["promote", "rollback", "schedule_app", "submit"]


def submit(
    pipeline: Annotated[str, typer.Argument(help="Name of a pipeline, or a compiled IR file (.yaml).")] = "",
    env: EnvName = "staging",
    config: ConfigFile = None,
    overrides: Overrides = None,
    param: Params = None,
    experiment: Annotated[str, typer.Option("--experiment", help="Experiment (default: the environment's).")] = "",
    run_name: Annotated[str, typer.Option("--run-name", help="Name of the run, for people.")] = "",
    version_name: Annotated[
        str, typer.Option("--version-name", help="Name of the pipeline version (default: code version and digest).")
    ] = "",
    image: ImageRefs = None,
    host: Host = "",
    plugin: Annotated[
        list[str] | None,
        typer.Option("--plugin", help="Setting of a server plugin, such as mlflow.experiment_name=NAME."),
    ] = None,
    attach: Annotated[str, typer.Option("--attach", help="Follow this run again, instead of starting one.")] = "",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Start the run and do not follow it.")] = False,
    timeout_s: TimeoutS = 86400.0,
    poll_s: PollS = 5.0,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline on Kubeflow: compile, upload as a version, start, follow to the end.

    Tokens come from KFP_TOKEN, KFP_TOKEN_FILE, the pod's service account or GitHub's OIDC issuer. The exit code is 0
    when the run succeeded, 23 when it failed, 24 when it was canceled, 8 when the time limit came first.

    Example: serin submit training --env staging --param source_uri=s3://bucket/source --set finetune.epochs=2
    """
    from serin_pipelines.kubeflow.client import Kubeflow
    from serin_pipelines.kubeflow.follow import Watch
    from serin_pipelines.kubeflow.progress import Progress
    from serin_pipelines.kubeflow.runs import tasks_of

    environment = load_environment(env, image_references(image))
    progress = Progress(progress_console(as_json))
    watch = Watch(poll_s=poll_s, timeout_s=timeout_s)
    again = f"serin submit --env {env} --attach"
    with Kubeflow.connect(environment, host) as kubeflow:
        if attach:
            run = kubeflow.call(f"read run {attach}", kubeflow.kfp.runs.run_service_get_run, attach)
            _follow(kubeflow, attach, tasks_of(kubeflow, run), watch, progress, again, as_json)
            return
        if not pipeline:
            raise ConfigError("Name a pipeline or an IR file, or give --attach RUN_ID.")
        with package_for(pipeline, environment) as package:
            values = _config_values(package, config, overrides)
            run, version = _start(
                kubeflow, package, environment, package.arguments(param or [], values), progress,
                experiment=experiment, run_name=run_name, version_name=version_name, plugin=plugin or [],
            )  # fmt: skip
        if no_wait:
            result = {"run_id": run.run_id, "version": version, "url": kubeflow.run_url(run.run_id), "state": run.state}
            show(result, as_json)
            return
        _follow(kubeflow, run.run_id, package.tasks, watch, progress, again, as_json)


def promote(
    release: Annotated[str, typer.Argument(help="Release id, or its first 8 digits at least.")],
    to: Annotated[str, typer.Option("--to", help="Environment to promote into.")],
    source_env: Annotated[str, typer.Option("--from", help="Environment that the release comes from.")] = "",
    source_store: Annotated[
        str, typer.Option("--source-store", help="Store that has the release (default: the target's own).")
    ] = "",
    approved_by: ApprovedBy = "",
    summary: Annotated[
        Path | None, typer.Option("--summary", help="Markdown file (default: GITHUB_STEP_SUMMARY, where it is set).")
    ] = None,
    image: ImageRefs = None,
    host: Host = "",
    package_file: Annotated[
        Path | None, typer.Option("--package", help="Compiled promotion pipeline, instead of compiling it now.")
    ] = None,
    timeout_s: TimeoutS = 86400.0,
    poll_s: PollS = 5.0,
    as_json: AsJson = False,
) -> None:
    """Promote a release into an environment: verify, evaluate and canary it there; made for CI.

    Run it again as often as you like: it attaches to a promotion that is under way, and a champion is not promoted
    twice. The exit code is 0 promoted or champion already, 20 the gate said no, 21 rolled back, 22 held, 23 the run
    failed, 24 it was canceled.

    Example: serin promote 3f2a9c0d --to prod --from staging --approved-by ada --json
    """
    from serin_pipelines.kubeflow.client import Kubeflow
    from serin_pipelines.kubeflow.follow import Watch
    from serin_pipelines.kubeflow.packages import Package
    from serin_pipelines.kubeflow.progress import Progress
    from serin_pipelines.kubeflow.promotion import Request, require_store
    from serin_pipelines.kubeflow.promotion import promote as run_promotion
    from serin_pipelines.kubeflow.summaries import markdown, write_summary

    environment = load_environment(to, image_references(image))
    require_store(environment)
    source = _source_store(environment, source_env, source_store)
    request = Request(release=release, source_store_uri=source, approved_by=_approver(approved_by))
    progress = Progress(progress_console(as_json))
    with tempfile.TemporaryDirectory() as folder, Kubeflow.connect(environment, host) as kubeflow:

        def package() -> Package:
            return compiled(str(package_file or "promotion"), environment, Path(folder))

        watch = Watch(poll_s=poll_s, timeout_s=timeout_s)
        verdict = run_promotion(kubeflow, package, environment, request, watch, progress)
    write_summary(verdict, summary)
    if as_json:
        typer.echo(verdict.model_dump_json())
    else:
        console.print(markdown(verdict), markup=False, soft_wrap=True)
    if verdict.exit_code:
        raise typer.Exit(verdict.exit_code)


def rollback(
    env: Annotated[str, typer.Option("--env", help="Environment: staging, prod, or a YAML file of your own.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; goes into the journal.")],
    approved_by: ApprovedBy = "",
    from_release: Annotated[
        str, typer.Option("--from", help="Only while this release is the champion, so that it can be run again.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Go back to the release before the champion: journal, then the gateway's traffic, then MLflow's aliases.

    The exit code is 6 when the journal says so, but the gateway could not be told.

    Example: serin rollback --env prod --reason "wrong refund answers" --approved-by ada --from 3f2a9c0d
    """
    from serin_pipelines.kubeflow.rollbacks import roll_back

    environment = load_environment(env)
    result = roll_back(environment, reason=reason, approved_by=_approver(approved_by), from_release=from_release)
    show(result.model_dump(mode="json"), as_json)


def _start(
    kubeflow: "Kubeflow",
    package: "Package",
    environment: Environment,
    arguments: dict[str, Any],
    progress: Any,
    *,
    experiment: str,
    run_name: str,
    version_name: str,
    plugin: list[str],
) -> tuple[Any, str]:
    """Upload and start; returns the run and the version's name."""
    from serin_pipelines.kubeflow import runs

    plugins = {"mlflow": {"experiment_name": str(arguments.get("endpoint") or environment.endpoint)}}
    for name, values in runs.plugin_settings(plugin).items():
        plugins[name] = values
    version = runs.publish(kubeflow, package, version_name)
    progress.say(f"{package.name} version {version.name} {'is there already' if version.reused else 'uploaded'}")
    order = runs.Order(
        version=version,
        experiment_id=runs.experiment(kubeflow, experiment or environment.experiment),
        name=run_name or f"{package.name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        arguments=arguments,
        service_account=environment.service_account,
        plugins=plugins,
    )
    run = runs.start(kubeflow, order, progress.say)
    progress.say(f"run {run.run_id}: {kubeflow.run_url(run.run_id)}")
    return run, version.name


def _follow(
    kubeflow: "Kubeflow", run_id: str, tasks: tuple[str, ...], watch: "Watch", progress: Any, again: str, as_json: bool
) -> None:
    from serin_pipelines.kubeflow.follow import follow

    again = f"{again} {run_id}"
    try:
        with progress.following():
            view = follow(kubeflow, run_id, watch, show=progress.show, say=progress.say, tasks=tasks, again=again)
    except KeyboardInterrupt:
        progress.say(f"The run goes on: '{again}' follows it again.")
        raise
    if as_json:
        show(_result(view), as_json)
    else:
        progress.say(view.sentence())
    if code := RUN_CODES.get(view.state, 0):
        raise typer.Exit(code)


def _result(view: "RunView") -> dict[str, Any]:
    failed = view.failed_task if view.state == "FAILED" else None
    return {
        "run_id": view.run_id,
        "state": view.state,
        "url": view.url,
        "failed_task": failed.name if failed else "",
        "error": (failed.error if failed else "") or view.error,
        "tasks": {task.name: task.state for task in view.tasks},
    }


def _config_values(package: "Package", config: Path | None, overrides: list[str] | None) -> dict[str, Any]:
    """The arguments that a config file and --set give, and nothing that they do not name.

    Raises:
        ConfigError: they name a section that the pipeline does not take.
    """
    if config is None and not overrides:
        return {}
    run = settings(config, overrides)
    values = {
        name: value for name, value in run.arguments().items() if name.removesuffix("_config") in run.model_fields_set
    }
    if strange := [name for name in values if name not in package.parameters]:
        raise ConfigError(f"Pipeline {package.name!r} takes no {strange[0]!r}: leave that section out of the config.")
    return values


def _source_store(environment: Environment, source_env: str, source_store: str) -> str:
    if source_env and source_store:
        raise ConfigError("Give --from or --source-store, not both.")
    if not source_env:
        return source_store or environment.store_uri
    uri = load_environment(source_env).store_uri
    if not uri:
        raise ConfigError(f"Environment {source_env!r} has no store_uri: give --source-store.")
    return uri


def _approver(given: str) -> str:
    """Who decides: named, or the person whose action started the CI job."""
    who = given or (os.environ.get("GITHUB_ACTOR", "") if os.environ.get("CI") else "")
    if not who.strip():
        raise ConfigError("Nobody is named who approves this: give --approved-by, which goes into the journal.")
    return who.strip()
