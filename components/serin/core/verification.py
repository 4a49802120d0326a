"""Whether a release may be deployed: every part recomputed, its lineage whole, its signature and gate in place."""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from serin.core.artifacts import MANIFEST, ArtifactStore, Manifest
from serin.core.config import Section
from serin.core.digests import digest_of
from serin.core.errors import ConfigError, IntegrityError, SerinError, StorageError
from serin.core.journal import Journal
from serin.core.policy import GuardrailPolicy
from serin.core.release import Part, Release, open_part
from serin.core.signing import PARTS, envelopes_of, manifest_digest, signed_by
from serin.core.storage import storage_for

REQUIREMENTS_VARIABLE = "SERIN_RELEASE_REQUIREMENTS"
LINKS = {
    "model": ("base", "dataset"),
    "index": ("documents",),
    "dataset": ("source",),
    "documents": ("source",),
}
"""Artefact kind to the inputs without which it is not known what it was made from."""


class ReleaseRequirements(Section):
    """What an environment asks of a release before it is deployed there."""

    require_signature: bool = False
    """Refuse a release that none of ``trusted_keys`` signed as it is now."""
    trusted_keys: dict[str, str] = Field(default_factory=dict)
    """Name to public key (base64 of 32 bytes, ed25519); public, so it may stand in a config."""
    gate_policies: tuple[str, ...] = ()
    """Versions of the gate's policy that count here; empty: any."""
    guardrail_versions: tuple[str, ...] = ()
    """Versions of the guardrail policy that may serve here; empty: any."""


def environment_requirements() -> ReleaseRequirements:
    """What ``SERIN_RELEASE_REQUIREMENTS`` (JSON) asks; an environment sets it, and no run's config can take it back.

    Raises:
        ConfigError: it is no JSON object of this form.
    """
    text = os.environ.get(REQUIREMENTS_VARIABLE, "")
    try:
        values = json.loads(text) if text else {}
    except ValueError as error:
        raise ConfigError(f"{REQUIREMENTS_VARIABLE} is not JSON: set it as the environment's file says.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{REQUIREMENTS_VARIABLE} must be a JSON object: set it as the environment's file says.")
    return ReleaseRequirements.load(values)


class Check(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """parts (model, index, data), lineage, guardrails, signature, gate."""
    passed: bool
    message: str
    """One sentence: what was found, and what to do where it failed."""


def verify_release(
    release: Release,
    store: ArtifactStore,
    journal: Journal | None,
    requirements: ReleaseRequirements | None = None,
    *,
    needs_gate: bool = True,
) -> list[Check]:
    """Look at everything that a deployment rests on; nothing is changed.

    Args:
        release: as loaded, which means that its content gives its id.
        store: where its parts are.
        journal: of the endpoint that it is to serve; None: the gate is not looked at.
        requirements: of the environment.
        needs_gate: False for an endpoint's first champion, which nothing could be compared with.

    Returns:
        All checks, the failed ones too.
    """
    wanted = requirements or ReleaseRequirements()
    checks = [_checked(name, lambda name=name: _part(getattr(release, name), store)) for name in PARTS]  # type: ignore[misc]
    checks.append(_checked("lineage", lambda: _lineage(release, store, journal)))
    checks.append(_checked("guardrails", lambda: _guardrails(release, wanted)))
    checks.append(_checked("signature", lambda: _signature(release, store, wanted)))
    if journal is not None and needs_gate:
        checks.append(_checked("gate", lambda: _gate(release, store, journal, wanted)))
    return checks


def require_verified(checks: list[Check], release: Release) -> None:
    """Refuse a release of which a check failed.

    Raises:
        IntegrityError: naming every failed check.
    """
    if failed := [check for check in checks if not check.passed]:
        found = " ".join(f"{check.name}: {check.message}" for check in failed)
        raise IntegrityError(f"Release {release.short_id} may not be deployed: {found}")


def manifests_behind(uris: list[str]) -> Iterator[tuple[str, Manifest | None]]:
    """Every artefact behind some, themselves first; None where one cannot be read."""
    waiting, seen = list(uris), set()
    while waiting:
        uri = waiting.pop(0)
        if uri in seen:
            continue
        seen.add(uri)
        try:
            manifest = Manifest.model_validate_json(storage_for(uri).read(MANIFEST))
        except (SerinError, ValueError):
            yield uri, None
            continue
        yield uri, manifest
        waiting += manifest.sources.values()


class _FailedError(Exception):
    """A check that did not pass; the text says why."""


def _checked(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name=name, passed=True, message=look())
    except (_FailedError, SerinError) as error:
        return Check(name=name, passed=False, message=str(error))


def _part(part: Part, store: ArtifactStore) -> str:
    artifact = open_part(part, store)
    manifest = artifact.manifest
    files = digest_of({"kind": manifest.kind, "content": {name: it.sha256 for name, it in manifest.files.items()}})
    known = "recomputed" if files == part.digest else "its files match its manifest"
    return f"{len(manifest.files)} files verified, digest {part.digest[:12]} ({known})."


def links_behind(release: Release) -> list[dict[str, Any]]:
    """What every artefact behind a release was made from, as the journal keeps it.

    Returns:
        For each its URI, kind, digest, the digests of its inputs, and that of its whole manifest.
    """
    known = manifests_behind([release.model.uri, release.index.uri, release.data.uri])
    return [
        {
            "uri": uri,
            "kind": one.kind,
            "digest": one.digest,
            "inputs": one.inputs,
            "manifest": manifest_digest(one),
        }
        for uri, one in known
        if one is not None
    ]


def _lineage(release: Release, store: ArtifactStore, journal: Journal | None) -> str:
    """Every artefact behind a part is there, names its inputs, and is the one that was used and that was recorded."""
    known = dict(manifests_behind([release.model.uri, release.index.uri, release.data.uri]))
    for uri, manifest in known.items():
        if manifest is None:
            if uri.startswith(store.uri):
                raise StorageError(f"{uri} is behind this release and is gone: restore it, or make a new release.")
            continue
        _links(uri, manifest)
        for name, source in manifest.sources.items():
            found = known.get(source)
            if found is not None and found.digest != manifest.inputs.get(name, found.digest):
                raise IntegrityError(f"{uri} was made from another {name} than {source} holds now: restore that one.")
    whole = {uri: manifest for uri, manifest in known.items() if manifest is not None}
    model = whole.get(release.model.uri)
    if model and model.kind == "model" and model.inputs.get("dataset") != release.data.digest:
        raise IntegrityError("The model was trained on another dataset than the release names: make a new release.")
    recorded = _recorded(release, journal, whole) if journal is not None else ""
    return f"{len(whole)} artefacts back to their sources, each by the run that made it{recorded}."


def _links(uri: str, manifest: Manifest) -> None:
    """An artefact names the run that made it and what it was made from."""
    if not manifest.lineage_id:
        raise IntegrityError(f"The {manifest.kind} behind this release names no run: make it by the pipeline.")
    for name in LINKS.get(manifest.kind, ()):
        if name not in manifest.inputs or (name != "source" and name not in manifest.sources):
            raise IntegrityError(
                f"The {manifest.kind} at {uri} does not say from which {name} it was made: make it by the pipeline."
            )


def _recorded(release: Release, journal: Journal, known: dict[str, Manifest]) -> str:
    """The inputs are those that the journal recorded when the release was made; how many of them, in words."""
    entries = [one for one in journal.find(kind="release", release_id=release.id) if "behind" in one.evidence]
    for link in entries[-1].evidence["behind"] if entries else ():
        manifest = known.get(link["uri"])
        if manifest is None:
            raise IntegrityError(
                f"{link['uri']} was behind this release when it was made, and nothing leads to it now."
            )
        if manifest_digest(manifest) != link["manifest"]:
            raise IntegrityError(f"{link['uri']} says other things of itself than the journal: restore its manifest.")
    return f", as entry {entries[-1].number} of the journal says" if entries else ""


def _guardrails(release: Release, wanted: ReleaseRequirements) -> str:
    policy = GuardrailPolicy.load(release.guardrails)
    if wanted.guardrail_versions and policy.version not in wanted.guardrail_versions:
        allowed = ", ".join(wanted.guardrail_versions)
        raise _FailedError(f"Guardrail policy version {policy.version!r} may not serve here: use {allowed}.")
    return f"policy version {policy.version!r}, digest {release.guardrails_digest[:12]}."


def _signature(release: Release, store: ArtifactStore, wanted: ReleaseRequirements) -> str:
    envelopes = envelopes_of(store.storage, release.id)
    if not wanted.trusted_keys:
        if wanted.require_signature:
            raise _FailedError("A signature is required and no key is trusted: name one in 'trusted_keys'.")
        return f"{len(envelopes)} signatures, not judged: no key is trusted here." if envelopes else "none asked for."
    names, problems = signed_by(release, envelopes, wanted.trusted_keys)
    broken = [problem for problem in problems if "does not hold" in problem]
    if broken:
        raise _FailedError(broken[0])
    if names:
        return f"signed by {', '.join(sorted(set(names)))}."
    if wanted.require_signature:
        why = problems[0] if problems else "It has no signature."
        raise _FailedError(f"{why} Sign it with a trusted key ('serin release sign').")
    return "no signature by a trusted key, and none is required."


def _gate(release: Release, store: ArtifactStore, journal: Journal, wanted: ReleaseRequirements) -> str:
    gates = journal.find(kind="gate", release_id=release.id)
    if not gates:
        raise _FailedError("It was never evaluated: run 'serin evaluate' first.")
    gate = gates[-1]
    if gate.decision != "pass":
        raise _FailedError(f"Its last gate says {gate.decision!r}: mend what it found, and run 'serin evaluate'.")
    if wanted.gate_policies and gate.policy_version not in wanted.gate_policies:
        raise _FailedError(
            f"Its gate was judged by policy {gate.policy_version[:12]}, which does not count here: evaluate it again."
        )
    evaluation: dict[str, Any] = gate.evidence.get("evaluation", {})
    _evidence(evaluation, release, store)
    return f"passed under policy {gate.policy_version[:12]}, entry {gate.number} of the journal."


def _evidence(evaluation: dict[str, Any], release: Release, store: ArtifactStore) -> None:
    """The evaluation that the gate judged is there, unchanged, and is of this very release."""
    if not evaluation.get("uri"):
        raise _FailedError("Its gate names no evaluation: run 'serin evaluate' again.")
    artifact = store.open(str(evaluation["uri"]))
    if artifact.digest != evaluation.get("digest"):
        raise _FailedError(f"The evaluation at {artifact.uri} is not the one that its gate judged: evaluate it again.")
    if artifact.manifest.inputs.get("candidate_release", release.id) != release.id:
        raise _FailedError("The evaluation that its gate judged is of another release: evaluate this one.")
