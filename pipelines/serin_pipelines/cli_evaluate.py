"""serin evaluate: the stage alone, and the comparison of item values from any harness."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.table import Table

from serin.core.artifacts import Artifact, ArtifactStore
from serin.core.errors import ConfigError, InputError, SerinError
from serin.core.journal import Journal
from serin.core.release import load_release
from serin_pipelines.cli_stages import GATE_FAILED, DatasetUri, ReleaseId, brief
from serin_pipelines.options import (
    AsJson,
    ConfigFile,
    Endpoint,
    Overrides,
    Store,
    Tracking,
    WithDefault,
    console,
    prepared_tracking,
    settings,
    show,
    stage_from_options,
    store_or_default,
)

if TYPE_CHECKING:
    from serin.evaluate.compare import Items
    from serin.evaluate.config import GatePolicy
    from serin.evaluate.review import Verdicts

SHOWN = {"passed": "[green]holds[/]", "failed": "[red]FAILS[/]"}

app = typer.Typer(
    cls=WithDefault,
    help="Measure a release and judge it at the gate (options alone mean 'run'); compare item values of two systems.",
    no_args_is_help=True,
)


@app.command("run")
def evaluate(
    release: ReleaseId,
    dataset: DatasetUri,
    baseline: Annotated[str, typer.Option("--baseline", help="Release id of the base model to compare with.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    store: Store = "",
    tracking: Tracking = "",
    endpoint: Endpoint = "",
    as_json: AsJson = False,
) -> None:
    """Evaluate a release against the baseline and the champion, and put it before the gate.

    The exit code is 20 when the gate says no.

    Example: serin evaluate run --release ID --baseline ID --dataset URI --json
    """
    from serin.evaluate.run import evaluate as run_evaluate

    run = settings(config, overrides, endpoint)
    with stage_from_options("evaluate", store, tracking, run.endpoint) as context:
        storage = context.store.storage
        champion = context.journal.champion()
        result = run_evaluate(
            run.evaluate,
            load_release(storage, release),
            load_release(storage, baseline),
            load_release(storage, champion) if champion else None,
            context.open(dataset),
            context,
        )
    show({"evaluation": brief(result.artifact), "decision": result.decision.model_dump(mode="json")}, as_json)
    if result.decision.outcome != "pass":
        raise typer.Exit(GATE_FAILED)


@app.command("compare")
def compare(
    candidate: Annotated[
        str, typer.Option("--candidate", help="JSON lines or Parquet of item values, or an evaluated release's id.")
    ],
    champion: Annotated[str, typer.Option("--champion", help="The same of what serves now.")],
    policy: Annotated[
        Path | None, typer.Option("--policy", help="YAML or JSON gate policy (default: no metric worse by --margin).")
    ] = None,
    margin: Annotated[float, typer.Option("--margin", help="Without a policy: tolerated loss of every metric.")] = 0.02,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap.")] = 0,
    store: Store = "",
    endpoint: Endpoint = "assistant",
    as_json: AsJson = False,
) -> None:
    """Compare a candidate with the champion item by item and judge it at the gate; nothing is recorded.

    Lines hold 'id', metrics as numbers, and where they apply 'group', 'digest', 'contaminated' and slice labels as
    text.  The exit code is 20 when the gate says no.

    Example: serin evaluate compare --candidate new.jsonl --champion old.jsonl --policy gate.yaml --json
    """
    from serin.evaluate import compare as comparing
    from serin.evaluate.config import EvaluateConfig
    from serin.evaluate.gate import decide

    one, other = (_items(name, store, endpoint) for name in (candidate, champion))
    rules = _policy(policy) if policy else comparing.not_worse_policy(one, other, margin)
    results = comparing.compare_items(one, other, rules, EvaluateConfig(seed=seed))
    decision = decide(results, rules)
    if as_json:
        values = {"decision": decision.outcome, **decision.model_dump(mode="json", exclude={"outcome"})}
        show({**values, "results": results.model_dump(mode="json")}, as_json)
    else:
        table = Table(box=None, show_header=False)
        for fault in decision.evidence["faults"]:
            table.add_row("[red]fault[/]", fault)
        for rule in decision.evidence["rules"]:
            table.add_row(
                {"passed": "[green]holds[/]", "failed": "[red]FAILS[/]"}.get(rule["outcome"], "-"), rule["reason"]
            )
        console.print(table)
        console.print(f"The gate says: {decision.outcome}.")
    if decision.outcome != "pass":
        raise typer.Exit(GATE_FAILED)


@app.command("review")
def review(
    release: ReleaseId,
    output: Annotated[Path, typer.Option("--output", help="HTML file to write.")],
    number: Annotated[int, typer.Option("--number", min=1, help="Pairs of answers at most.")] = 50,
    against: Annotated[str, typer.Option("--against", help="champion or baseline (default: what there is).")] = "",
    seed: Annotated[int, typer.Option("--seed", help="Chooses the pairs and deals the sides.")] = 0,
    queue: Annotated[bool, typer.Option("--queue", help="Put the pairs into a review queue of MLflow's too.")] = False,
    reviewers: Annotated[
        list[str] | None, typer.Option("--reviewer", help="Who is asked in MLflow; can be repeated.")
    ] = None,
    store: Store = "",
    tracking: Tracking = "",
    endpoint: Endpoint = "assistant",
    as_json: AsJson = False,
) -> None:
    """Write a page on which people judge answers of an evaluated release blindly against the other's.

    With --queue they can judge in MLflow instead, where the queue is under the endpoint's experiment.

    Example: serin evaluate review --release 3f2a9c0d --output review.html
    """
    from serin.evaluate import review as reviewing

    artifacts = ArtifactStore(store_or_default(store))
    evaluation = _evaluation(release, artifacts, endpoint)
    made = reviewing.review_of(evaluation, number, seed=seed, against=against)
    reviewing.save_review(artifacts.storage, evaluation, made, number, seed)
    try:
        reviewing.write_page(output, made)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written ({error.strerror}): name another file.") from error
    shown = {"page": str(output), "review": made.id, "pairs": len(made.pairs), "against": made.against}
    if queue:
        from serin.evaluate.review_mlflow import queue_review

        shown["queue"] = queue_review(made, prepared_tracking(tracking), endpoint, reviewers or [])
    show(shown, as_json)


@app.command("verdicts")
def verdicts(
    file: Annotated[Path | None, typer.Argument(help="What the review page saved.")] = None,
    queued: Annotated[str, typer.Option("--queued", help="Id of a review whose verdicts were given in MLflow.")] = "",
    store: Store = "",
    tracking: Tracking = "",
    endpoint: Endpoint = "assistant",
    as_json: AsJson = False,
) -> None:
    """Read reviewers' verdicts back into the journal; the next evaluation of the release counts them.

    Example: serin evaluate verdicts verdicts-3f2a9c0d.json
    """
    from serin.evaluate import review as reviewing
    from serin.evaluate.review_mlflow import queued_verdicts

    if (file is None) == (not queued):
        raise ConfigError("Say where the verdicts are: the file that the page saved, or --queued REVIEW.")
    artifacts = ArtifactStore(store_or_default(store))
    if file is not None:
        given = [reviewing.read_verdicts(file)]
    else:
        given = queued_verdicts(queued, prepared_tracking(tracking), endpoint)
    counted = [_count(one, artifacts, endpoint) for one in given]
    show(counted[0] if file is not None else {"reviewers": counted}, as_json)


def _count(given: "Verdicts", artifacts: ArtifactStore, endpoint: str) -> dict[str, Any]:
    """One reviewer's verdicts into the journal, once."""
    from serin.evaluate import review as reviewing

    made, evaluation = reviewing.load_review(artifacts, given.review)
    evidence = reviewing.evidence_of(given, made)
    journal, release_id = Journal(artifacts.storage, endpoint), evaluation.manifest.inputs["candidate_release"]
    known = [one for one in journal.find(kind=reviewing.KIND, release_id=release_id) if one.evidence == evidence]
    if not known:
        journal.append(
            reviewing.KIND,
            release_id=release_id,
            decision="judged",
            reasons=(f"{given.reviewer} judged {len(given.verdicts)} pairs against the {made.against}.",),
            evidence=evidence,
            approved_by=given.reviewer,
        )
    counts = {name: evidence[name] for name in ("won", "lost", "tied")}
    return {"release": release_id, "reviewer": given.reviewer, **counts, "new": not known}


def _items(name: str, store: str, endpoint: str) -> "Items":
    """A file's values, or those of a release's last evaluation."""
    from serin.evaluate import compare as comparing

    if Path(name).exists() or Path(name).suffix:
        return comparing.read_items(Path(name))
    artifacts = ArtifactStore(store_or_default(store))
    try:
        release = load_release(artifacts.storage, name)
    except SerinError as error:
        raise InputError(f"{name} is neither a file nor a release of this store: name one of them.") from error
    return comparing.items_of(_evaluation(release.id, artifacts, endpoint), release.short_id)


def _evaluation(release_id: str, artifacts: ArtifactStore, endpoint: str) -> Artifact:
    """A release's last evaluation."""
    release = load_release(artifacts.storage, release_id)
    gates = Journal(artifacts.storage, endpoint).find(kind="gate", release_id=release.id)
    if not gates or not gates[-1].evidence.get("evaluation"):
        raise InputError(f"Release {release.short_id} was never evaluated: run 'serin evaluate' first.")
    return artifacts.open(gates[-1].evidence["evaluation"]["uri"])


def _policy(path: Path) -> "GatePolicy":
    from serin.evaluate.config import GatePolicy

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): name a YAML or JSON file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is neither YAML nor JSON: write the gate's 'rules'.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no mapping: write the gate's 'rules'.")
    return GatePolicy.load(values)
