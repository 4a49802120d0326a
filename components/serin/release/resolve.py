"""Find the release that a pipeline works on, verify it, and bring it into the store of the place it is meant for."""

from dataclasses import dataclass

from serin.core.artifacts import Artifact, ArtifactStore
from serin.core.context import StageContext
from serin.core.errors import InputError
from serin.core.journal import Journal
from serin.core.release import Part, Release, load_release, open_part, save_release
from serin.core.signing import copy_signatures
from serin.release.create import describe, publish

PARTS = ("model", "index", "data")


@dataclass(frozen=True)
class Resolved:
    """A release with what it is judged by."""

    release: Release
    baseline: Release
    """The release of the untuned base model that was made with it, or of what it was refreshed from; without one, the
    champion."""
    dataset: Artifact
    """The data that the model was tuned on, with its held-out part."""
    imported: bool
    """Whether it came from another store."""


def resolve(release_id: str, source_store_uri: str, approved_by: str, context: StageContext) -> Resolved:
    """The named release, or the endpoint's champion, every part verified and in this store.

    A release keeps its id wherever it is stored, since the id depends on digests only.  Who asked for it goes into
    the journal with the digests that were verified.

    Args:
        release_id: id or prefix; empty: the endpoint's champion.
        source_store_uri: the store that it was made in; empty: this one.
        approved_by: who wants it here; empty writes nothing to the journal.
        context: the stage's; its store is where the release is needed.

    Raises:
        InputError: there is no such release, or no champion.
        StorageError: a part is gone.
        IntegrityError: a part is damaged or is another one.
    """
    source = ArtifactStore(source_store_uri) if source_store_uri else context.store
    imported = source.uri != context.store.uri
    wanted = release_id or context.journal.champion()
    if not wanted:
        raise InputError(
            f"Endpoint {context.endpoint!r} has no champion: name a release, or run the training pipeline."
        )
    found = load_release(source.storage, wanted)
    origin = Journal(source.storage, context.endpoint)
    base = _baseline(found, origin, source)
    context.progress(f"verifying release {found.short_id}", 0.1)
    release = _here(found, source, context)
    if base is not None:
        baseline = _here(base, source, context)
    elif champion := context.journal.champion():
        baseline = load_release(context.store.storage, champion)
    else:
        raise InputError(
            f"Release {found.short_id} has no baseline in its store and endpoint {context.endpoint!r} has no champion, "
            "so there is nothing to judge it by: promote a release of the training pipeline first."
        )
    if imported:
        # signed where it was made or not at all: a signature of this place would vouch for what it has not seen made
        publish(release, context, decision="imported", reason=f"Verified and copied from {source.uri}.", sign=False)
        context.tracker.alias(context.endpoint, "candidate", release.id)
        if base is not None:
            reason = "The base model that was made with it."
            publish(baseline, context, decision="baseline", reason=reason, sign=False)
    if approved_by:
        _approve(release, source, approved_by, context)
    return Resolved(release, baseline, open_part(release.data, context.store), imported)


def summary(resolved: Resolved) -> str:
    """What was found, as Markdown."""
    release = resolved.release
    rows = [f"| {part} | `{getattr(release, part).digest[:12]}` | verified |" for part in PARTS]
    how = "copied from another store" if resolved.imported else "of this store"
    head = f"# Release `{release.short_id}`\n\nIt is {how}; its baseline is `{resolved.baseline.short_id}`.\n\n"
    return head + "\n".join(["| part | digest | |", "|---|---|---|", *rows]) + "\n"


def _baseline(release: Release, journal: Journal, store: ArtifactStore) -> Release | None:
    """The base model's release of the run that made this one, or the one that it was refreshed from."""
    entries = journal.find(kind="release")
    release_id = release.id
    while release_id:
        made = [entry for entry in entries if entry.release_id == release_id]
        runs = {entry.lineage_id for entry in made}
        for entry in reversed(entries):
            if entry.decision == "baseline" and entry.lineage_id in runs and entry.release_id != release_id:
                return load_release(store.storage, entry.release_id)
        release_id = next((one.evidence["refreshed_from"] for one in made if "refreshed_from" in one.evidence), "")
    return None


def _here(release: Release, source: ArtifactStore, context: StageContext) -> Release:
    """The release with its parts verified, and in this store."""
    opened = {part: open_part(getattr(release, part), source) for part in PARTS}
    if source.uri == context.store.uri:
        return release
    for number, part in enumerate(PARTS, start=1):
        context.progress(f"copying {part} of {release.short_id}", number / (len(PARTS) + 1))
    copies = {part: Part.of(context.store.adopt(artifact)).model_dump() for part, artifact in opened.items()}
    here = Release.model_validate({**release.model_dump(), **copies})
    assert here.id == release.id
    save_release(context.store.storage, here)
    copy_signatures(release.id, source.storage, context.store.storage)
    return here


def _approve(release: Release, source: ArtifactStore, approved_by: str, context: StageContext) -> None:
    known = context.journal.find(kind="approval", release_id=release.id)
    if any(entry.lineage_id == context.lineage_id for entry in known):
        return
    context.journal.append(
        "approval",
        release_id=release.id,
        decision="asked for",
        reasons=(f"Asked for by {approved_by}; it serves only after the gate and the canary.",),
        evidence={"source": source.uri, **describe(release)},
        approved_by=approved_by,
        lineage_id=context.lineage_id,
        mlflow_run_id=context.tracker.run_id,
    )
