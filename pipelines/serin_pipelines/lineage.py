"""Lineage: what is behind an answer, a release or a run, and what came of a model, an index or a document.

A trace id leads to its endpoint event, that to its release, that to the manifests of its parts and of what they were
made from, and to the journal's decisions about it.  The other way round, a document leads to the datasets and indexes
that hold it, and those to the releases that were trained on it or answer from it.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from serin.core.artifacts import ArtifactStore, Manifest
from serin.core.digests import digest_of_text
from serin.core.errors import InputError
from serin.core.events import EndpointEvent
from serin.core.journal import Entry, served
from serin.core.release import Release, load_release
from serin.core.verification import manifests_behind
from serin_pipelines.catalogue import PARTS, Catalogue, Progress, events_of, read_entry

HEX = re.compile(r"[0-9a-f]{8,64}")
ANSWER = re.compile(r"(?:chatcmpl|cmpl)-([0-9a-f]{32})[0-9a-f]*")
MODEL_VERSION = re.compile(r"models:/(?P<name>[^/]+)/(?P<version>\d+)")
TRACE_CHARS = 32
ROLES = {"model": "trained on it", "index": "answers from it", "data": "evaluated with it"}
SHOWN = 20


class _Found:
    """What an id stands for."""

    def __init__(
        self, kind: str, releases: dict[str, set[str]], event: EndpointEvent | None = None, uris: Iterable[str] = ()
    ) -> None:
        self.kind, self.releases, self.event, self.uris = kind, releases, event, sorted(uris)


def lineage(
    identifier: str, store_uri: str, tracking_uri: str, progress: Progress = lambda what, count: None
) -> dict[str, Any]:
    """What an id leads to.

    Args:
        identifier: a trace id, an answer's id, a release id (or 8 digits of it at least), the digest of a model, index
            or dataset (likewise), ``models:/NAME/VERSION``, an MLflow run id, the id of a pipeline run, or the id of a
            document or conversation.
        store_uri: whose records.
        tracking_uri: MLflow's, for its run ids and model versions.
        progress: told how many records are read when the catalogue is behind.

    Returns:
        JSON values: ``query``; ``kind`` (trace, release, model, index, data, run, document); ``event``; ``releases``
        (id, ``how``, ``serving``; oldest first); and, of the newest of them, ``release``, ``parts`` (model, index,
        data, prompt, guardrails, serving, code), ``artifacts`` (all manifests behind the parts), ``missing`` (those
        that are gone), ``complete``, ``runs`` (MLflow run ids by stage artefact) and ``decisions`` (journal entries).

    Raises:
        InputError: nothing in this store has that id.
        IntegrityError: a record that is to be shown was changed.
    """
    identifier = identifier.strip()
    if not identifier:
        raise InputError("An empty id leads nowhere: give a trace id, a release id, a run id or a document's id.")
    store = ArtifactStore(store_uri)
    with closing(Catalogue.open(store, progress)) as catalogue:
        found = _resolve(identifier, catalogue, tracking_uri)
        ordered = catalogue.in_time_order(found.releases)
        serving = _serving(catalogue)
        about = _about_release(load_release(store.storage, ordered[-1]), catalogue, store)
        return {
            "query": identifier,
            "kind": found.kind,
            "event": found.event.model_dump(mode="json") if found.event else None,
            "held_by": found.uris,
            "releases": [
                {
                    "release": one,
                    "how": [ROLES.get(role, role) for role in (*PARTS, *sorted(found.releases[one] - set(PARTS)))
                            if role in found.releases[one]],
                    "serving": sorted(endpoint for endpoint, champion in serving.items() if champion == one),
                }
                for one in ordered
            ],
            **about,
        }  # fmt: skip


def endpoints(store: ArtifactStore) -> list[str]:
    """Names of the endpoints that the store knows."""
    return sorted({key.split("/")[1] for key in store.storage.keys("endpoints/")})


def as_tree(found: dict[str, Any]) -> Tree:
    """The lineage as a tree for a terminal."""
    tree = Tree(Text(f"{found['kind']} {found['query']}", style="bold"))
    if event := found["event"]:
        _add_answer(tree, event)
    if found["held_by"]:
        held = tree.add("held by")
        for uri in found["held_by"][:SHOWN]:
            held.add(Text(uri))
    if len(found["releases"]) > 1 or found["releases"][0]["how"]:
        _add_releases(tree, found["releases"])
    release = tree.add(Text(f"release {found['release']}", style="bold"))
    for name, part in found["parts"].items():
        release.add(Text(f"{name}: {part['digest'][:12]}  {part.get('uri', '')}"))
    artifacts = tree.add("made from")
    for uri, manifest in found["artifacts"].items():
        branch = artifacts.add(Text(f"{manifest['kind']} {manifest['digest'][:12]}  {uri}"))
        branch.add(Text(f"inputs: {_pairs(manifest['inputs'])}"))
        branch.add(Text(f"code {manifest['code_version']}, {manifest['created_at']}"))
        branch.add(Text(f"pipeline run {manifest['lineage_id']}, MLflow run {manifest['mlflow_run_id'] or 'none'}"))
    for uri in found["missing"]:
        artifacts.add(Text(f"MISSING  {uri}", style="bold red"))
    decisions = tree.add("decisions")
    for entry in found["decisions"]:
        approved = f", approved by {entry['approved_by']}" if entry["approved_by"] else ""
        branch = decisions.add(Text(f"{entry['time'][:19]} {entry['kind']}: {entry['decision']}{approved}"))
        for reason in entry["reasons"]:
            branch.add(Text(reason))
    return tree


def _add_releases(tree: Tree, releases: list[dict[str, Any]]) -> None:
    branch = tree.add(f"{len(releases)} releases, newest first")
    for one in list(reversed(releases))[:SHOWN]:
        serving = f", serves {', '.join(one['serving'])}" if one["serving"] else ""
        branch.add(Text(f"{one['release'][:12]}  {', '.join(one['how'])}{serving}"))
    if len(releases) > SHOWN:
        branch.add(f"and {len(releases) - SHOWN} more (--json lists them)")


def _add_answer(tree: Tree, event: dict[str, Any]) -> None:
    answer = tree.add(Text(f"answer at {event['time']} on track {event['track']}, session {event['session_id']}"))
    answer.add(Text(f"question: {' '.join(event['question'].split())}"))
    answer.add(Text(f"answer: {' '.join(event['answer'].split())}"))
    answer.add(Text(f"passages: {', '.join(event['retrieval_ids']) or 'none'}; support {event['support_score']}"))


def _resolve(identifier: str, catalogue: Catalogue, tracking_uri: str) -> _Found:
    answer = ANSWER.fullmatch(identifier.lower())
    hexadecimal = answer[1] if answer else identifier.lower()
    if HEX.fullmatch(hexadecimal):
        if found := _of_trace(hexadecimal, catalogue):
            return found
        if found := None if answer else _of_digest(hexadecimal, catalogue):
            return found
    if version := MODEL_VERSION.fullmatch(identifier):
        return _of_model_version(version["name"], version["version"], catalogue, tracking_uri)
    if not answer and (found := _of_run(identifier, catalogue, tracking_uri) or _of_item(identifier, catalogue)):
        return found
    raise InputError(
        f"{identifier!r} is no trace, answer, release, model, index, run or document that a release of "
        f"{catalogue.store.uri} goes back to: 'serin release list' shows the releases."
    )


def _of_trace(identifier: str, catalogue: Catalogue) -> _Found | None:
    if len(identifier) != TRACE_CHARS:
        return None
    for batch, release in catalogue.rows("SELECT batch, release FROM event WHERE trace = ?", identifier):
        events = events_of(catalogue.store.storage, batch, identifier)
        if events:
            return _Found("trace", {release: set()}, events[-1])
    return None


def _of_digest(prefix: str, catalogue: Catalogue) -> _Found | None:
    """A release by a prefix of its id, or the releases of a model, index or dataset by one of its digest."""
    bounds = (prefix, f"{prefix}g")  # g comes after every hex digit
    releases = catalogue.rows("SELECT DISTINCT release FROM part WHERE release >= ? AND release < ?", *bounds)
    if len(releases) > 1:
        raise InputError(f"{prefix!r} fits several releases: 'serin release list' shows them.")
    if releases:
        return _Found("release", {releases[0][0]: set()})
    rows = catalogue.rows("SELECT uri, kind, digest FROM manifest WHERE digest >= ? AND digest < ?", *bounds)
    if not rows:
        return None
    if len({digest for _, _, digest in rows}) > 1:
        raise InputError(f"{prefix!r} fits several artefacts: give more digits.")
    of_releases = catalogue.releases_behind(uri for uri, _, _ in rows)
    return _Found(rows[0][1], of_releases, uris=[row[0] for row in rows]) if of_releases else None


def _of_model_version(name: str, version: str, catalogue: Catalogue, tracking_uri: str) -> _Found:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from serin.core.tracking import RELEASE_TAG

    try:
        tags = MlflowClient(tracking_uri=tracking_uri).get_model_version(name, version).tags
    except MlflowException as error:
        raise InputError(f"MLflow has no version {version} of {name!r}: look at its registered models.") from error
    found = _of_digest(str(tags.get(RELEASE_TAG, "")), catalogue) if tags.get(RELEASE_TAG) else None
    if found is None:
        raise InputError(f"Version {version} of {name!r} stands for no release of {catalogue.store.uri}.")
    return found


def _of_run(run_id: str, catalogue: Catalogue, tracking_uri: str) -> _Found | None:
    """The releases that a run had a part in: an MLflow run, the parent of such runs, or a pipeline run.

    A run may have decided about a release, or made one of the artefacts behind it (and then been killed, so that a
    later run made the release).
    """
    releases = _made_by(run_id, catalogue)
    if not releases and HEX.fullmatch(run_id) and (lineage_id := _lineage_of_run(run_id, tracking_uri)):
        releases = _made_by(lineage_id, catalogue)
    return _Found("run", releases) if releases else None


def _made_by(run_id: str, catalogue: Catalogue) -> dict[str, set[str]]:
    rows = catalogue.rows("SELECT release FROM entry WHERE run = ? UNION SELECT release FROM entry WHERE lineage = ?",
                          run_id, run_id)  # fmt: skip
    uris = catalogue.rows("SELECT uri FROM manifest WHERE run = ? UNION SELECT uri FROM manifest WHERE lineage = ?",
                          run_id, run_id)  # fmt: skip
    releases: dict[str, set[str]] = {row[0]: set() for row in rows if row[0]}
    return releases | {release: set() for release in catalogue.releases_behind(uri for (uri,) in uris)}


def _of_item(identifier: str, catalogue: Catalogue) -> _Found | None:
    uris = [row[0] for row in catalogue.rows("SELECT uri FROM item WHERE id = ?", identifier)]
    releases = catalogue.releases_behind(uris)
    if uris and not releases:
        raise InputError(f"{identifier!r} is in {len(uris)} artefacts, and no release was made from any of them.")
    return _Found("document", releases, uris=uris) if releases else None


def _lineage_of_run(run_id: str, tracking_uri: str) -> str | None:
    if not tracking_uri or (tracking_uri.startswith("sqlite:///") and not Path(tracking_uri[10:]).is_file()):
        return None  # nothing was tracked, and asking would make an empty database
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from serin.core.tracking import LINEAGE_TAG

    try:
        tags = MlflowClient(tracking_uri=tracking_uri).get_run(run_id).data.tags
    except MlflowException:
        return None
    return tags.get(LINEAGE_TAG)


def _about_release(release: Release, catalogue: Catalogue, store: ArtifactStore) -> dict[str, Any]:
    known = dict(manifests_behind([release.model.uri, release.index.uri, release.data.uri]))
    manifests = {uri: manifest for uri, manifest in known.items() if manifest is not None}
    missing = sorted(uri for uri, manifest in known.items() if manifest is None)
    return {
        "release": release.id,
        "parts": _parts(release),
        "artifacts": {uri: _brief(manifest) for uri, manifest in manifests.items()},
        "missing": missing,
        "complete": not missing,
        "runs": {m.kind: m.mlflow_run_id for m in manifests.values() if m.mlflow_run_id},
        "decisions": [entry.model_dump(mode="json") for entry in _decisions(release.id, catalogue, store)],
    }


def _decisions(release_id: str, catalogue: Catalogue, store: ArtifactStore) -> Iterator[Entry]:
    """The journal's entries about a release, read again so that what is shown is what stands there now."""
    rows = catalogue.rows("SELECT endpoint, number FROM entry WHERE release = ? ORDER BY time, number", release_id)
    for endpoint, number in rows:
        yield read_entry(store.storage, endpoint, number)


def _serving(catalogue: Catalogue) -> dict[str, str]:
    """Endpoint to the release that serves it, as the last promotion or rollback says."""
    serving = {}
    for (endpoint,) in catalogue.rows("SELECT DISTINCT endpoint FROM entry"):
        rows = catalogue.rows("SELECT kind, release FROM entry WHERE endpoint = ? ORDER BY number", endpoint)
        if releases := served((kind, release) for kind, release in rows):
            serving[endpoint] = releases[-1]
    return serving


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
