"""Make releases: the candidate of a pipeline run, and the baseline that it is measured against."""

from pathlib import Path
from typing import Any

from serin.core.artifacts import Artifact
from serin.core.context import PipelineArtifact, StageContext
from serin.core.digests import code_version
from serin.core.errors import InputError
from serin.core.prompts import Prompt
from serin.core.release import Part, Release, load_release, open_part, save_release
from serin.core.signing import Signer, sign_release
from serin.core.storage import join
from serin.core.verification import links_behind
from serin.release.config import ReleaseConfig

KINDS = {"model": ("model", "base"), "index": ("index",), "data": ("dataset",)}
"""Artefact kinds that each part may be."""
MAKERS = {"model": "finetune", "index": "index", "data": "data_prep"}
"""Stage that makes each part."""


def create_release(
    config: ReleaseConfig, model: Artifact, index: Artifact, dataset: Artifact, prompt: Prompt, context: StageContext
) -> Release:
    """Make the candidate: saved, registered in MLflow under the alias ``candidate``, written to the journal.

    The same inputs give the same release, and nothing is written twice.

    Raises:
        ConfigError: the guardrail policy cannot be used.
        InputError: an artefact is of the wrong kind.
    """
    release = _made(config, model, index, dataset, prompt)
    publish(release, context, decision="created", reason="Made from the artefacts named in the evidence.")
    context.tracker.alias(context.endpoint, "candidate", release.id)
    context.tracker.tags({"serin.release_id": release.id})
    return release


def create_baseline(
    config: ReleaseConfig, base: Artifact, index: Artifact, dataset: Artifact, prompt: Prompt, context: StageContext
) -> Release:
    """Make the release of the untuned base model: what the candidate must beat, and an endpoint's first champion.

    Everything but the model is the candidate's, so that a comparison of the two shows what tuning did.
    """
    release = _made(config, base, index, dataset, prompt)
    publish(release, context, decision="baseline", reason="The base model with the candidate's index and settings.")
    return release


def refresh(index: Artifact, context: StageContext) -> tuple[Release, Release, Artifact]:
    """Make a candidate of the endpoint's champion with another index.

    Model, prompt, guardrails and serving settings stay the champion's; the code is the one that runs now.

    Returns:
        The candidate (the champion itself when the index is the same), the champion, and the champion's dataset.

    Raises:
        InputError: the endpoint has no champion, or the artefact is no index.
    """
    serving = context.journal.champion()
    if serving is None:
        raise InputError(f"Endpoint {context.endpoint!r} has no champion to refresh: run the training pipeline first.")
    _require_kind("index", index)
    champion = load_release(context.store.storage, serving)
    dataset = open_part(champion.data, context.store)
    if index.digest == champion.index.digest:
        return champion, champion, dataset
    changed = {"index": Part.of(index).model_dump(), "code_version": code_version()}
    release = Release.model_validate({**champion.model_dump(), **changed})
    publish(release, context, decision="created", reason="The champion with another index.", refreshed_from=champion.id)
    context.tracker.alias(context.endpoint, "candidate", release.id)
    context.tracker.tags({"serin.release_id": release.id})
    return release, champion, dataset


def describe(release: Release) -> dict[str, Any]:
    """A release in plain values, for the journal, the CLI and people."""
    parts = {name: getattr(release, name).model_dump(mode="json") for name in ("model", "index", "data")}
    return {
        "release_id": release.id,
        **parts,
        "prompt_version": release.prompt.version,
        "guardrails_digest": release.guardrails_digest,
        "serving": release.serving,
        "code_version": release.code_version,
    }


def differences(first: Release, second: Release) -> list[str]:
    """Names of the parts in which two releases differ."""
    one, other = describe(first), describe(second)
    names = [name for name in ("model", "index", "data") if one[name]["digest"] != other[name]["digest"]]
    rest = ("prompt_version", "guardrails_digest", "serving", "code_version")
    return names + [name for name in rest if one[name] != other[name]]


def export(release: Release, context: StageContext, output: PipelineArtifact) -> None:
    """Let a KFP output point at a release; readers load it by ``metadata["release_id"]``."""
    output.metadata.update(
        release_id=release.id,
        uri=_uri(release, context),
        digest=release.id,
        kind="release",
        lineage_id=context.lineage_id,
    )
    path = Path(output.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(release.model_dump_json(indent=1), encoding="utf-8")


def summary(candidate: Release, baseline: Release) -> str:
    """Both releases as a Markdown table."""
    one, other = describe(candidate), describe(baseline)
    rows = [
        f"| {name} | `{one[name]['digest'][:12]}` | `{other[name]['digest'][:12]}` |"
        for name in ("model", "index", "data")
    ]
    rows += [
        f"| {name} | `{str(one[name])[:12]}` | `{str(other[name])[:12]}` |"
        for name in ("prompt_version", "guardrails_digest", "code_version")
    ]
    head = f"| | candidate `{candidate.short_id}` | baseline `{baseline.short_id}` |\n|---|---|---|"
    return "# Releases\n\n" + "\n".join([head, *rows]) + "\n"


def _made(config: ReleaseConfig, model: Artifact, index: Artifact, dataset: Artifact, prompt: Prompt) -> Release:
    for part, artifact in (("model", model), ("index", index), ("data", dataset)):
        _require_kind(part, artifact)
    return Release(
        model=Part.of(model),
        index=Part.of(index),
        data=Part.of(dataset),
        prompt=prompt,
        guardrails=config.policy().dump(),
        serving=config.serving.dump(),
        code_version=code_version(),
    )


def _require_kind(part: str, artifact: Artifact) -> None:
    if artifact.manifest.kind not in KINDS[part]:
        raise InputError(
            f"{artifact.uri} is of the kind {artifact.manifest.kind!r}, not {KINDS[part][0]!r}: give the release "
            f"stage what the {MAKERS[part]} stage made."
        )


def publish(
    release: Release, context: StageContext, *, decision: str, reason: str, sign: bool = True, **evidence: Any
) -> None:
    """Save a release, sign it where there is a key, register it in MLflow and journal how it came here.

    A second time changes nothing.
    """
    save_release(context.store.storage, release)
    if sign and (signer := Signer.from_environment()):
        sign_release(release, context.store.storage, signer)
    context.tracker.register(context.endpoint, release.id, _uri(release, context))
    if any(entry.decision == decision for entry in context.journal.find(kind="release", release_id=release.id)):
        context.report("reused", kind="release", digest=release.id, lineage_id=context.lineage_id)
        return
    context.journal.append(
        "release",
        release_id=release.id,
        decision=decision,
        reasons=(reason,),
        evidence={**describe(release), "behind": links_behind(release), **evidence},
        lineage_id=context.lineage_id,
        mlflow_run_id=context.tracker.run_id,
    )


def _uri(release: Release, context: StageContext) -> str:
    return join(context.store.uri, "releases", release.id)
