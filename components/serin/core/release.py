"""The release: model, index, prompt, guardrails and serving config as one immutable, content-addressed unit."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from serin.core.artifacts import Artifact, ArtifactStore
from serin.core.digests import digest_of
from serin.core.errors import AlreadyExistsError, InputError, IntegrityError
from serin.core.prompts import Prompt
from serin.core.storage import Storage

ID_CHARS = 64


class Part(BaseModel):
    """An artefact inside a release."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    digest: str
    uri: str

    @classmethod
    def of(cls, artifact: Artifact) -> "Part":
        """The part that an artefact makes."""
        return cls(kind=artifact.manifest.kind, digest=artifact.digest, uri=artifact.uri)


class Release(BaseModel):
    """What an endpoint serves; nothing is deployed that is not one, and nothing in one changes.

    ``id`` depends on digests only, not on where the parts are stored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Part
    index: Part
    data: Part
    """The dataset that the model was tuned on."""
    prompt: Prompt
    guardrails: dict[str, Any]
    """The guardrail policy, whole."""
    serving: dict[str, Any]
    """Decoding and retrieval settings of the endpoint."""
    code_version: str

    @cached_property
    def id(self) -> str:
        """SHA-256 over the digests of all parts (64 hex digits)."""
        return digest_of(
            {
                "model": self.model.digest,
                "index": self.index.digest,
                "data": self.data.digest,
                "prompt": self.prompt.version,
                "guardrails": self.guardrails_digest,
                "serving": self.serving,
                "code": self.code_version,
            }
        )

    @property
    def guardrails_digest(self) -> str:
        """Digest of the guardrail policy."""
        return digest_of(self.guardrails)

    @property
    def short_id(self) -> str:
        """The first 12 hex digits, for people."""
        return self.id[:12]


def save_release(storage: Storage, release: Release) -> None:
    """Write a release once; the same release again changes nothing."""
    try:
        storage.write(_key(release.id), release.model_dump_json(indent=1).encode(), if_absent=True)
    except AlreadyExistsError:
        load_release(storage, release.id)


def load_release(storage: Storage, release_id: str) -> Release:
    """Read a release by its id or an unambiguous prefix of it (8 digits at least).

    Raises:
        InputError: there is none, or the prefix fits several.
        IntegrityError: its content does not give its id.
    """
    full = _resolve(storage, release_id)
    try:
        release = Release.model_validate(json.loads(storage.read(_key(full))))
    except (ValueError, ValidationError) as error:
        raise IntegrityError(f"Release {full[:12]} cannot be read: {error}") from error
    if release.id != full:
        raise IntegrityError(f"Release {full[:12]} was changed: its content gives the id {release.short_id}.")
    return release


def list_releases(storage: Storage) -> list[str]:
    """Ids of all releases in the store, sorted."""
    return [key.split("/")[1] for key in storage.keys("releases/") if key.endswith("/release.json")]


def open_part(part: Part, store: ArtifactStore) -> Artifact:
    """Open a part of a release, its files verified and its digest compared.

    Raises:
        StorageError: it is not where the release says.
        IntegrityError: what is there is something else, or damaged.
    """
    artifact = store.open(part.uri)
    if artifact.digest != part.digest:
        raise IntegrityError(
            f"The {part.kind} at {part.uri} has the digest {artifact.digest[:12]}, and the release was made with "
            f"{part.digest[:12]}: restore it, or make a new release."
        )
    return artifact


def model_folder(release: Release, store: ArtifactStore) -> Path:
    """The Hugging Face folder of a release's model: ``merged/`` of a tuned model, the root of a base model."""
    path = open_part(release.model, store).path
    return path / "merged" if release.model.kind == "model" else path


def _resolve(storage: Storage, release_id: str) -> str:
    if len(release_id) == ID_CHARS and storage.exists(_key(release_id)):
        return release_id  # a whole id needs no look at all the others
    found = [known for known in list_releases(storage) if len(release_id) >= 8 and known.startswith(release_id)]
    if len(found) != 1:
        how = "fits several releases" if found else "is no release of this store"
        raise InputError(f"{release_id!r} {how}: 'serin release list' shows them.")
    return found[0]


def _key(release_id: str) -> str:
    return f"releases/{release_id}/release.json"
