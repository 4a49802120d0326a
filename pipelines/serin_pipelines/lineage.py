"""Lineage: everything behind an answer, a release or a run, from the records themselves.

A trace id leads to its endpoint event, that to its release, that to the manifests of its parts and of what they were
made from, and to the journal's decisions about it.
"""

import re
from collections.abc import Iterator
from typing import Any

from rich.text import Text
from rich.tree import Tree

from serin.core.artifacts import ArtifactStore, Manifest
from serin.core.digests import digest_of_text
from serin.core.errors import InputError, SerinError
from serin.core.events import EndpointEvent, read_events
from serin.core.journal import Entry, Journal
from serin.core.release import Release, list_releases, load_release
from serin.core.storage import storage_for

HEX = re.compile(r"[0-9a-f]{8,64}")


def lineage(identifier: str, store_uri: str, tracking_uri: str) -> dict[str, Any]:
    """What is behind a trace id, a release id (or 8 digits of it at least) or an MLflow run id.

    Returns:
        JSON values: ``query``, ``kind`` (trace, release or run), ``event``, ``release``, ``parts`` (model, index,
        data, prompt, guardrails, code), ``artifacts`` (all manifests behind the parts), ``runs`` (MLflow run ids by
        stage artefact), ``decisions`` (journal entries: release, gate, rollout, promotion, rollback, monitor).

    Raises:
        InputError: nothing in this store has that id.
    """
    identifier = identifier.strip().lower()
    if not HEX.fullmatch(identifier):
        raise InputError(f"{identifier!r} is no id: give a trace id, a release id or an MLflow run id (hex digits).")
    store = ArtifactStore(store_uri)
    kind, event, release_id = _resolve(identifier, store, tracking_uri)
    release = load_release(store.storage, release_id)
    manifests = dict(_ancestors([release.model.uri, release.index.uri, release.data.uri]))
    decisions = [entry for endpoint in endpoints(store) for entry in _decisions(store, endpoint, release.id)]
    return {
        "query": identifier,
        "kind": kind,
        "event": event.model_dump(mode="json") if event else None,
        "release": release.id,
        "parts": _parts(release),
        "artifacts": {uri: _brief(manifest) for uri, manifest in manifests.items()},
        "runs": {m.kind: m.mlflow_run_id for m in manifests.values() if m.mlflow_run_id},
        "decisions": [entry.model_dump(mode="json") for entry in decisions],
    }


def endpoints(store: ArtifactStore) -> list[str]:
    """Names of the endpoints that the store knows."""
    return sorted({key.split("/")[1] for key in store.storage.keys("endpoints/")})


def as_tree(found: dict[str, Any]) -> Tree:
    """The lineage as a tree for a terminal."""
    tree = Tree(Text(f"{found['kind']} {found['query']}", style="bold"))
    if event := found["event"]:
        _add_answer(tree, event)
    release = tree.add(Text(f"release {found['release']}", style="bold"))
    for name, part in found["parts"].items():
        release.add(Text(f"{name}: {part['digest'][:12]}  {part.get('uri', '')}"))
    artifacts = tree.add("made from")
    for uri, manifest in found["artifacts"].items():
        branch = artifacts.add(Text(f"{manifest['kind']} {manifest['digest'][:12]}  {uri}"))
        branch.add(Text(f"inputs: {_pairs(manifest['inputs'])}"))
        branch.add(Text(f"code {manifest['code_version']}, {manifest['created_at']}"))
        branch.add(Text(f"pipeline run {manifest['lineage_id']}, MLflow run {manifest['mlflow_run_id'] or 'none'}"))
    decisions = tree.add("decisions")
    for entry in found["decisions"]:
        approved = f", approved by {entry['approved_by']}" if entry["approved_by"] else ""
        branch = decisions.add(Text(f"{entry['time'][:19]} {entry['kind']}: {entry['decision']}{approved}"))
        for reason in entry["reasons"]:
            branch.add(Text(reason))
    return tree


def _add_answer(tree: Tree, event: dict[str, Any]) -> None:
    answer = tree.add(Text(f"answer at {event['time']} on track {event['track']}, session {event['session_id']}"))
    answer.add(Text(f"question: {' '.join(event['question'].split())}"))
    answer.add(Text(f"answer: {' '.join(event['answer'].split())}"))
    answer.add(Text(f"passages: {', '.join(event['retrieval_ids']) or 'none'}; support {event['support_score']}"))


def _resolve(identifier: str, store: ArtifactStore, tracking_uri: str) -> tuple[str, EndpointEvent | None, str]:
    if len(identifier) == 32:
        for endpoint in endpoints(store):
            if events := read_events(store.storage, endpoint, trace_id=identifier):
                return "trace", events[-1], events[-1].release_id
        if release_id := _release_of_run(identifier, store, tracking_uri):
            return "run", None, release_id
        raise InputError(f"No trace and no MLflow run {identifier} leads to a release of {store.uri}.")
    found = [known for known in list_releases(store.storage) if known.startswith(identifier)]
    if len(found) != 1:
        how = "fits several releases" if found else "is no trace, release or MLflow run of this store"
        raise InputError(f"{identifier!r} {how}: 'serin release list' shows the releases.")
    return "release", None, found[0]


def _release_of_run(run_id: str, store: ArtifactStore, tracking_uri: str) -> str | None:
    """The newest release that an MLflow run had a part in.

    A run may have decided about a release, made one of the artefacts behind it (and then been killed, so that a later
    run made the release), or be the parent of such runs.
    """
    entries = [entry for endpoint in endpoints(store) for entry in Journal(store.storage, endpoint).entries()]
    entries.sort(key=lambda entry: entry.time, reverse=True)
    for entry in entries:
        if entry.mlflow_run_id == run_id:
            return entry.release_id
    newest_first = dict.fromkeys(entry.release_id for entry in entries)
    for release_id in newest_first:
        release = load_release(store.storage, release_id)
        if any(m.mlflow_run_id == run_id for _, m in _ancestors([release.model.uri, release.index.uri])):
            return release_id
    lineage_id = _lineage_of_run(run_id, tracking_uri)
    return next((entry.release_id for entry in entries if lineage_id and entry.lineage_id == lineage_id), None)


def _lineage_of_run(run_id: str, tracking_uri: str) -> str | None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from serin.core.tracking import LINEAGE_TAG

    try:
        tags = MlflowClient(tracking_uri=tracking_uri).get_run(run_id).data.tags
    except MlflowException:
        return None
    return tags.get(LINEAGE_TAG)


def _ancestors(uris: list[str]) -> Iterator[tuple[str, Manifest]]:
    waiting, seen = list(uris), set()
    while waiting:
        uri = waiting.pop(0)
        if uri in seen:
            continue
        seen.add(uri)
        try:
            manifest = Manifest.model_validate_json(storage_for(uri).read("manifest.json"))
        except (SerinError, ValueError):
            continue  # a part that was cleaned away: its digest still stands in the release
        yield uri, manifest
        waiting += manifest.sources.values()


def _decisions(store: ArtifactStore, endpoint: str, release_id: str) -> list[Entry]:
    return Journal(store.storage, endpoint).find(release_id=release_id)


def _parts(release: Release) -> dict[str, dict[str, str]]:
    return {
        "model": {"digest": release.model.digest, "uri": release.model.uri},
        "index": {"digest": release.index.digest, "uri": release.index.uri},
        "data": {"digest": release.data.digest, "uri": release.data.uri},
        "prompt": {"digest": release.prompt.version, "text": release.prompt.system},
        "guardrails": {"digest": release.guardrails_digest},
        "serving": {"digest": digest_of_text(str(sorted(release.serving.items())))},
        "code": {"digest": release.code_version},
    }


def _brief(manifest: Manifest) -> dict[str, Any]:
    return manifest.model_dump(mode="json", exclude={"files", "schema_version"})


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {digest[:12]}" for name, digest in values.items()) or "none"
