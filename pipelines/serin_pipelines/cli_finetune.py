"""``serin finetune``: train; and before it ``serin finetune plan`` and ``serin finetune pairs``.

A group that also works without a subcommand: ``serin finetune --dataset ... --documents ...`` trains.
"""

from typing import Annotated, Any

import typer
from rich.table import Table

from serin.core.artifacts import ArtifactStore
from serin_pipelines import cli_stages
from serin_pipelines.options import (
    AsJson,
    BaseModelUri,
    ConfigFile,
    Endpoint,
    Overrides,
    Store,
    Tracking,
    console,
    settings,
    show,
    stage_from_options,
    store_or_default,
)

app = typer.Typer(name="finetune", invoke_without_command=True)

DatasetUri = Annotated[str, typer.Option("--dataset", help="URI of a dataset artefact ('serin data prep' prints it).")]
DocumentsUri = Annotated[str, typer.Option("--documents", help="URI of a documents artefact.")]


@app.callback()
def finetune(
    context: typer.Context,
    dataset: DatasetUri = "",
    documents: DocumentsUri = "",
    base_model: BaseModelUri = "",
    config: ConfigFile = None,
    overrides: Overrides = None,
    store: Store = "",
    tracking: Tracking = "",
    endpoint: Endpoint = "",
    as_json: AsJson = False,
) -> None:
    """Fine-tune a base model on a dataset: an adapter and a merged model in safetensors; or plan it first.

    Example: serin finetune --dataset URI --documents URI --set finetune.epochs=2
    """
    if context.invoked_subcommand is not None:
        return
    for name, value in (("--dataset", dataset), ("--documents", documents)):
        if not value:
            raise typer.BadParameter("give the URI of the artefact, as 'serin data prep' prints it.", param_hint=name)
    cli_stages.finetune(dataset, documents, base_model, config, overrides, store, tracking, endpoint, as_json)


@app.command("plan")
def plan_command(
    dataset: DatasetUri = "",
    documents: DocumentsUri = "",
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="Tokens of one epoch, while there is no dataset.")
    ] = None,
    base_model: BaseModelUri = "",
    device: Annotated[str, typer.Option("--device", help="A name in the price table finetune.prices.")] = "",
    config: ConfigFile = None,
    overrides: Overrides = None,
    store: Store = "",
    as_json: AsJson = False,
) -> None:
    """Estimate memory, steps, time and cost of a training, and refuse one that cannot fit; loads no weights.

    Example: serin finetune plan --tokens 2000000 --base-model ./base --config run.yaml --device a100-40
    """
    from serin.finetune.plan import plan

    run = settings(config, overrides)
    opened = ArtifactStore(store_or_default(store))
    made = plan(
        run.finetune,
        base_model or run.base_model,
        num_tokens=tokens,
        dataset=opened.open(dataset) if dataset else None,
        documents=opened.open(documents) if documents else None,
        prompt=run.prompt,
        device=device,
    )
    if as_json:
        typer.echo(made.model_dump_json())
    else:
        console.print(_table(made.dump()))
    made.require_fit()


@app.command("pairs")
def pairs_command(
    dataset: DatasetUri,
    since: Annotated[str, typer.Option("--since", help="Only events from this time on: UTC, ISO 8601.")] = "",
    index: Annotated[
        list[str] | None,
        typer.Option("--index", help="URI of an index that answered: pairs keep their passages. Can be repeated."),
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    store: Store = "",
    tracking: Tracking = "",
    endpoint: Endpoint = "",
    as_json: AsJson = False,
) -> None:
    """Add pairs of a liked and a disliked answer, from an endpoint's feedback, to a dataset for the objective dpo.

    Example: serin finetune pairs --dataset URI --endpoint assistant --since 2026-01-01
    """
    from serin.core.events import read_events
    from serin.finetune.preferences import dataset_with_feedback, passages_of, preferences_from_events

    run = settings(config, overrides, endpoint)
    with stage_from_options("finetune", store, tracking, run.endpoint) as context:
        events = read_events(context.store.storage, run.endpoint, since=since or None)
        passages = passages_of(context.open(uri) for uri in index) if index else None
        feedback = preferences_from_events(events, passages)
        made = dataset_with_feedback(context.open(dataset), feedback, context)
    show({"dataset": {"uri": made.uri, "digest": made.digest}, **feedback.summary()}, as_json)


def _table(plan: dict[str, Any]) -> Table:
    table = Table("", "", box=None, show_header=False)
    for name, value in plan.items():
        if value is None or value in ("", []):
            continue
        if isinstance(value, dict):
            text = ", ".join(f"{part} {size:.2f}" for part, size in value.items())
        elif isinstance(value, list):
            joint = " x " if name == "micro_batch" else "\n"
            text = joint.join(str(part) for part in value)
        else:
            text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if _is_number(value) else str(value)
        table.add_row(name.replace("_", " "), text)
    return table


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
