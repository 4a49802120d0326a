"""The ``serin`` command.

Exit codes: 0 done; 1 to 8 an error with one sentence (serin.core.errors); 20 the gate said no; 21 the canary was
rolled back; 22 it is held; 23 a run on Kubeflow failed; 24 it was cancelled; 130 interrupted.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from serin.core.artifacts import ArtifactStore
from serin.core.errors import ConfigError, SerinError
from serin.core.telemetry import silence_dependencies
from serin_pipelines import (
    cli_canary,
    cli_evaluate,
    cli_finetune,
    cli_guard,
    cli_kubeflow,
    cli_lint,
    cli_release,
    cli_serve,
    cli_stages,
    cli_sweep,
)
from serin_pipelines.configs import RunConfig
from serin_pipelines.options import (
    AsJson,
    ConfigFile,
    Endpoint,
    Overrides,
    Parameters,
    Store,
    Tracking,
    console,
    parse_parameters,
    settings,
    show,
    store_or_default,
    tracking_or_default,
)

app = typer.Typer(
    name="serin",
    help="Pipelines from documents and conversations to a guarded LLM endpoint, and back to the release before it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
STAGES, KUBEFLOW, HERE, SERVING = "One stage alone", "On Kubeflow", "On this machine", "Endpoint and releases"

app.add_typer(cli_stages.data, name="data", rich_help_panel=STAGES)
cli_finetune.app.command("sweep")(cli_sweep.sweep)
app.add_typer(cli_finetune.app, name="finetune", rich_help_panel=STAGES)
app.add_typer(cli_evaluate.app, name="evaluate", rich_help_panel=STAGES)
for stage in (cli_stages.index, cli_stages.deploy, cli_stages.monitor):
    app.command(rich_help_panel=STAGES)(stage)
for name, about_releases in (
    ("list", cli_release.release_list),
    ("verify", cli_release.release_verify),
    ("diff", cli_release.release_diff),
    ("sign", cli_release.release_sign),
    ("key", cli_release.release_key),
):
    cli_stages.release_app.command(name)(about_releases)
app.add_typer(cli_canary.app, name="canary", rich_help_panel=SERVING)
app.add_typer(cli_stages.release_app, name="release", rich_help_panel=SERVING)
app.add_typer(cli_guard.app, name="guard", rich_help_panel=SERVING)
app.add_typer(cli_serve.app, name="serve", rich_help_panel=SERVING)
app.command(rich_help_panel=KUBEFLOW)(cli_lint.lint)
for command in (cli_kubeflow.submit, cli_kubeflow.promote, cli_kubeflow.rollback):
    app.command(rich_help_panel=KUBEFLOW)(command)
app.add_typer(cli_kubeflow.schedule_app, name="schedule", rich_help_panel=KUBEFLOW)

DEFAULT_PORT = 8080
DEFAULT_TIMEOUT_S = 3600.0


@app.command(rich_help_panel=HERE)
def run(
    pipeline: Annotated[str, typer.Argument(help="training, index_refresh, promotion, monitoring or retraining.")] = (
        "training"
    ),
    source: Annotated[
        str, typer.Option("--source", help="Folder or s3:// prefix of documents and conversations.")
    ] = "",
    base_model: Annotated[
        str, typer.Option("--base-model", help="Hugging Face id, folder, s3:// or serin://tiny.")
    ] = "",
    parameters: Parameters = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    store: Store = "",
    tracking: Tracking = "",
    endpoint: Endpoint = "",
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", help="End the run after this many seconds.")
    ] = DEFAULT_TIMEOUT_S,
    reproduce: Annotated[
        str, typer.Option("--reproduce", help="Make this release again from its records, and compare every digest.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Run a whole pipeline on this machine; started again, it continues from what is finished.

    With --reproduce, the stages behind a release run again on its recorded inputs, aside from the store; the exit code
    is 23 where a digest differs.

    Example: serin run --source .serin/samples
    """
    if reproduce:
        _reproduce(reproduce, settings(config, overrides, endpoint), source, store, as_json)
        return
    from serin_pipelines.compiling import arguments_for
    from serin_pipelines.display import Display
    from serin_pipelines.report import print_report
    from serin_pipelines.runner import run_pipeline

    chosen = settings(config, overrides, endpoint)
    if base_model:
        chosen = chosen.model_copy(update={"base_model": base_model})
    given = {"source_uri": source} if source else {}
    arguments = arguments_for(pipeline, chosen.arguments(), given | parse_parameters(parameters))
    display = Display(Console(highlight=False), quiet=as_json)
    record = run_pipeline(
        pipeline, arguments, store_uri=store, tracking_uri=tracking, timeout_s=timeout_s, display=display
    )
    if as_json:
        typer.echo(record.model_dump_json())
    else:
        print_report(record, console)
    if record.status == "rejected":
        raise typer.Exit(cli_stages.GATE_FAILED)
    if code := cli_stages.DECISION_CODES.get(record.decision):
        raise typer.Exit(code)


def _reproduce(release: str, chosen: RunConfig, source: str, store: str, as_json: bool) -> None:
    from serin_pipelines.reproduce import reproduce as make_again

    result = make_again(
        release,
        store_or_default(store),
        chosen,
        source=source,
        tell=lambda what: typer.echo(f"Making {what} again ...", err=True),
    )
    if as_json:
        typer.echo(json.dumps(result.dump()))
    else:
        table = Table("part", "recorded", "made again", "", box=None)
        for one in result.artifacts:
            verdict = "[green]equal[/]" if one.equal else "[red]differs[/]"
            table.add_row(
                one.kind, one.recorded[:12], one.found[:12], verdict + ("" if one.same_code else ", other code")
            )
        table.add_row("release", result.release[:12], result.found[:12], "equal" if result.equal else "[red]differs[/]")
        console.print(table)
    if not result.equal:
        raise typer.Exit(cli_stages.NOT_REPRODUCED)


@app.command("compile", rich_help_panel=KUBEFLOW)
def compile_command(
    pipeline: Annotated[str, typer.Argument(help="Which pipeline; all of them if none is named.")] = "",
    env: Annotated[str, typer.Option("--env", help="staging, prod, local, or a YAML file of your own.")] = "local",
    output: Annotated[Path, typer.Option("--output", help="Folder for the files; made if absent.")] = Path("compiled"),
    image: Annotated[
        list[str] | None,
        typer.Option("--image", help="TARGET=REFERENCE, such as cpu=.../serin@sha256:...; repeatable."),
    ] = None,
    kubernetes_manifests: Annotated[
        bool, typer.Option("--kubernetes-manifests", help="Write Pipeline and PipelineVersion resources instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compile pipelines to Kubeflow's intermediate representation, one YAML file each.

    Example: serin compile --env staging --output compiled/staging
    """
    from serin_pipelines.compiling import compile_pipeline, pipelines
    from serin_pipelines.environments import load_environment

    images = parse_parameters(image, option="--image")
    environment = load_environment(env, images)
    names = [pipeline] if pipeline else list(pipelines())
    files = {
        name: str(compile_pipeline(name, output, environment, kubernetes_manifests=kubernetes_manifests))
        for name in names
    }
    show(files, as_json)


@app.command(rich_help_panel=SERVING)
def lineage(
    identifier: Annotated[
        str,
        typer.Argument(
            help="Trace or answer id; release id, or digest of a model, index or dataset (8 digits at least); "
            "models:/NAME/VERSION; MLflow or pipeline run id; id of a document or conversation."
        ),
    ],
    html: Annotated[Path | None, typer.Option("--html", help="Write it as a page with a picture, too.")] = None,
    store: Store = "",
    tracking: Tracking = "",
    as_json: AsJson = False,
) -> None:
    """Show what is behind an answer, release or run; or which releases a document, model or index went into.

    Example: serin lineage 4bf92f3577b34da6a3ce929d0e0e4736
    """
    from serin_pipelines.lineage import as_tree
    from serin_pipelines.lineage import lineage as find_lineage

    def reading(what: str, count: int) -> None:
        typer.echo(f"Reading what is new: {count} {what} ...", err=True)

    found = find_lineage(identifier, store_or_default(store), tracking_or_default(tracking), reading)
    if html is not None:
        from serin_pipelines.lineage_page import lineage_page

        try:
            html.write_text(lineage_page(found, ArtifactStore(store_or_default(store))), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{html} cannot be written ({error.strerror}): name another file.") from error
    if as_json:
        typer.echo(json.dumps(found))
    else:
        console.print(as_tree(found))


@app.command(rich_help_panel=HERE)
def runs(
    last: Annotated[bool, typer.Option("--last", help="Only the newest run.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the local runs: status, release, decision, time.

    Example: serin runs --last --json
    """
    from serin_pipelines.records import last_run, load_runs

    if last:
        record = last_run()
        show(record.model_dump(mode="json"), as_json)
        return
    records = load_runs()
    if as_json:
        typer.echo(json.dumps([record.model_dump(mode="json") for record in records]))
        return
    table = Table("run", "status", "decision", "release", "seconds", box=None)
    for record in records:
        table.add_row(record.run_id, record.status, record.decision, record.release[:12], f"{record.wall_s:.0f}")
    console.print(table)


@app.command(rich_help_panel=HERE)
def doctor(
    store: Store = "",
    port: Annotated[int, typer.Option("--port", help="Port that the endpoint would use.")] = DEFAULT_PORT,
    cluster: Annotated[bool, typer.Option("--cluster", help="Check a cluster instead of this machine.")] = False,
    env: Annotated[str, typer.Option("--env", help="With --cluster: staging, prod or a YAML file.")] = "staging",
    as_json: AsJson = False,
) -> None:
    """Check this machine, or a cluster: what is missing, and how to get it.

    Example: serin doctor --cluster --env staging
    """
    if cluster:
        from serin_pipelines.cluster_doctor import examine_cluster
        from serin_pipelines.environments import load_environment

        checks = examine_cluster(load_environment(env))
    else:
        from serin_pipelines.doctor import examine

        checks = examine(store_or_default(store), port)
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "checks": [check.model_dump() for check in checks]}))
    else:
        table = Table("", "check", "found", "what to do", box=None)
        marks = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}
        for check in checks:
            table.add_row(marks[check.status], check.name, check.found, check.fix)
        console.print(table)
    if failed:
        raise typer.Exit(7)


def main() -> None:
    """Entry point: a ``SerinError`` becomes one sentence on standard error and its exit code."""
    silence_dependencies()
    try:
        app()
    except SerinError as error:
        print(f"serin: {error}", file=sys.stderr)  # noqa: T201 - this is the command's own output
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
