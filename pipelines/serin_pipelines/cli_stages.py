"""The commands that run one stage alone; each is the same logic that its pipeline component calls."""

from pathlib import Path
from typing import Annotated, Any

import typer

from serin.core.artifacts import Artifact
from serin.core.errors import InputError
from serin.core.release import Release, load_release
from serin.core.storage import is_remote, local_path, storage_for
from serin_pipelines.options import (
    AsJson,
    ConfigFile,
    Endpoint,
    Overrides,
    Store,
    Tracking,
    settings,
    show,
    stage_from_options,
    store_or_default,
)

data = typer.Typer(no_args_is_help=True, help="Prepare data: clean, deduplicate, split; write the sample data.")
release_app = typer.Typer(no_args_is_help=True, help="Make, list and show releases; go back to the one before.")

DatasetUri = Annotated[str, typer.Option("--dataset", help="URI of a dataset artefact ('serin data prep' prints it).")]
DocumentsUri = Annotated[str, typer.Option("--documents", help="URI of a documents artefact.")]
ReleaseId = Annotated[str, typer.Option("--release", help="Release id, or its first 8 digits at least.")]


@data.command("samples")
def data_samples(
    target: Annotated[Path, typer.Argument(help="Folder to write to; made if absent.")],
    seed: Annotated[int, typer.Option(help="Seed of the generator.")] = 7,
    as_json: AsJson = False,
) -> None:
    """Write the sample data: documents and conversations of a fictional retailer.

    Example: serin data samples .serin/samples
    """
    from serin.samples.generate import write_samples

    summary = write_samples(target, seed=seed)
    show({"target": str(target), **_values(summary)}, as_json)


@data.command("prep")
def data_prep(
    source: Annotated[str, typer.Option("--source", help="Folder or s3:// prefix of documents and conversations.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    store: Store = "",
    tracking: Tracking = "",
    endpoint: Endpoint = "",
    as_json: AsJson = False,
) -> None:
    """Clean, deduplicate and split a folder into a dataset, and the documents for the index.

    Example: serin data prep --source .serin/samples --json
    """
    from serin.data_prep.prepare import prepare

    run = settings(config, overrides, endpoint)
    source = source if is_remote(source) else str(local_path(source))
    with stage_from_options("data_prep", store, tracking, run.endpoint) as context:
        prepared = prepare(run.data_prep, source, context)
    show({"dataset": brief(prepared.dataset), "documents": brief(prepared.documents)}, as_json)


def finetune(
    dataset: DatasetUri,
    documents: DocumentsUri,
    base_model: Annotated[
        str, typer.Option("--base-model", help="Hugging Face id, folder, s3:// or serin://tiny.")
    ] = "",
    config: ConfigFile = None,
    overrides: Overrides = None,
    store: Store = "",
    tracking: Tracking = "",
    endpoint: Endpoint = "",
    as_json: AsJson = False,
) -> None:
    """Fine-tune a base model on a dataset: an adapter and a merged model in safetensors.

    Example: serin finetune --dataset URI --documents URI --set finetune.epochs=2
    """
    from serin.finetune.train import finetune as run_finetune

    run = settings(config, overrides, endpoint)
    with stage_from_options("finetune", store, tracking, run.endpoint) as context:
        tuned = run_finetune(
            run.finetune,
            base_model or run.base_model,
            run.prompt,
            context.open(dataset),
            context.open(documents),
            context,
        )
    show({"base": brief(tuned.base), "model": brief(tuned.model)}, as_json)


def index(
    documents: DocumentsUri,
    config: ConfigFile = None,
    overrides: Overrides = None,
    store: Store = "",
    tracking: Tracking = "",
    endpoint: Endpoint = "",
    as_json: AsJson = False,
) -> None:
    """Cut documents into chunks, embed them, and publish a search index.

    Example: serin index --documents URI --json
    """
    from serin.index.build import build_index

    run = settings(config, overrides, endpoint)
    with stage_from_options("index", store, tracking, run.endpoint) as context:
        built = build_index(run.index, context.open(documents), context)
    show({"index": brief(built)}, as_json)


def deploy(
    release: ReleaseId,
    baseline: Annotated[str, typer.Option("--baseline", help="Release id that serves if there is no champion yet.")],
    dataset: DatasetUri,
    config: ConfigFile = None,
    overrides: Overrides = None,
    store: Store = "",
    tracking: Tracking = "",
    endpoint: Endpoint = "",
    as_json: AsJson = False,
) -> None:
    """Roll a gated release out as a canary on replayed held-out questions; promote it or turn it away.

    The exit code is 21 when it was rolled back and 22 when it is held.

    Example: serin deploy --release ID --baseline ID --dataset URI --set deploy.max_sessions=400
    """
    from serin.deploy.rollout import deploy as run_deploy

    run = settings(config, overrides, endpoint)
    with stage_from_options("deploy", store, tracking, run.endpoint) as context:
        storage = context.store.storage
        candidate, base = load_release(storage, release), load_release(storage, baseline)
        rollout = run_deploy(run.deploy, candidate, base, context.open(dataset), context)
    show(rollout.summary(), as_json)
    if code := DECISION_CODES.get(rollout.decision.outcome):
        raise typer.Exit(code)


def monitor(
    release: ReleaseId,
    dataset: DatasetUri,
    config: ConfigFile = None,
    overrides: Overrides = None,
    store: Store = "",
    tracking: Tracking = "",
    endpoint: Endpoint = "",
    as_json: AsJson = False,
) -> None:
    """Compare a release's traffic with what it was made for, and say what to do: none, alert, reindex or retrain.

    Example: serin monitor --release ID --dataset URI --json
    """
    from serin.monitor.run import monitor as run_monitor

    run = settings(config, overrides, endpoint)
    with stage_from_options("monitor", store, tracking, run.endpoint) as context:
        loaded = load_release(context.store.storage, release)
        decision = run_monitor(run.monitor, loaded, context.open(dataset), context)
    show(decision.model_dump(mode="json"), as_json)


@release_app.command("create")
def release_create(
    model: Annotated[str, typer.Option("--model", help="URI of a model (or base) artefact.")],
    index: Annotated[str, typer.Option("--index", help="URI of an index artefact.")],
    dataset: DatasetUri,
    config: ConfigFile = None,
    overrides: Overrides = None,
    store: Store = "",
    tracking: Tracking = "",
    endpoint: Endpoint = "",
    as_json: AsJson = False,
) -> None:
    """Bind model, index, prompt, guardrails and serving settings into one immutable release.

    Example: serin release create --model URI --index URI --dataset URI --json
    """
    from serin.release.create import create_release

    run = settings(config, overrides, endpoint)
    with stage_from_options("release", store, tracking, run.endpoint) as context:
        model_part, index_part, data_part = (context.open(uri) for uri in (model, index, dataset))
        made = create_release(run.release, model_part, index_part, data_part, run.prompt, context)
    show({"release": made.id, **made.model_dump(mode="json")}, as_json)


@release_app.command("show")
def release_show(
    release: Annotated[str, typer.Argument(help="Release id or prefix.")], store: Store = "", as_json: AsJson = False
) -> None:
    """Show what is in a release.

    Example: serin release show 3f2a9c0d
    """
    loaded = load_release(storage_for(store_or_default(store)), release)
    show({"release": loaded.id, **loaded.model_dump(mode="json")}, as_json)


@release_app.command("rollback")
def release_rollback(
    approved_by: Annotated[str, typer.Option("--approved-by", help="Who decides this; goes into the journal.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; goes into the journal.")],
    store: Store = "",
    tracking: Tracking = "",
    endpoint: Endpoint = "assistant",
    as_json: AsJson = False,
) -> None:
    """Make the release before the champion the champion again.

    Example: serin release rollback --approved-by ada --reason "wrong refund answers"
    """
    from serin.deploy.rollout import rollback

    with stage_from_options("deploy", store, tracking, endpoint) as context:
        champion = rollback(approved_by=approved_by, reason=reason, context=context)
    show({"champion": champion}, as_json)


GATE_FAILED = 20
"""Exit code: the gate said no."""
NOT_REPRODUCED = 23
"""Exit code: a release that was made again has other digests."""
DECISION_CODES = {"rollback": 21, "hold": 22}
"""Exit codes of a canary that was not promoted."""


def champion_of(context_store: str, endpoint: str) -> Release:
    """The release that serves an endpoint.

    Raises:
        InputError: there is none yet.
    """
    from serin.core.journal import Journal

    storage = storage_for(context_store)
    champion = Journal(storage, endpoint).champion()
    if champion is None:
        raise InputError(f"Endpoint {endpoint!r} has no champion yet: 'serin run' makes one.")
    return load_release(storage, champion)


def brief(artifact: Artifact) -> dict[str, Any]:
    return {"uri": artifact.uri, "digest": artifact.digest, "metadata": artifact.metadata}


def _values(summary: Any) -> dict[str, Any]:
    from dataclasses import asdict, is_dataclass

    return asdict(summary) if is_dataclass(summary) and not isinstance(summary, type) else dict(summary)
