"""Signatures of releases: ed25519 over an in-toto statement in a DSSE envelope.

The statement names the release's id and, for each part, the content's digest and the digests over the files' digests
and over the whole manifest, so that a file and its manifest changed together are seen as well.  Formats: in-toto
Statement v1 (https://github.com/in-toto/attestation) and DSSE v1 (https://github.com/secure-systems-lab/dsse);
ed25519 is RFC 8032.
A private key comes from the environment only and is written nowhere.
"""

import base64
import binascii
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from serin.core.artifacts import MANIFEST, Manifest
from serin.core.digests import canonical_json, digest_of
from serin.core.errors import AlreadyExistsError, ConfigError, IntegrityError
from serin.core.release import Part, Release
from serin.core.storage import Storage, storage_for

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_VARIABLE = "SERIN_SIGNING_KEY"
KEY_FILE_VARIABLE = "SERIN_SIGNING_KEY_FILE"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:serin:release:v1"
PARTS = ("model", "index", "data")
KEY_BYTES = 32


class Signature(BaseModel):
    """One signature of an envelope."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keyid: str
    """First 16 hex digits of the SHA-256 of the raw public key."""
    sig: str
    """Base64."""


class Envelope(BaseModel):
    """A DSSE envelope."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    payload: str
    """Base64 of the statement's JSON."""
    payloadType: str
    signatures: tuple[Signature, ...]

    def statement(self) -> dict[str, Any]:
        """The statement inside.

        Raises:
            IntegrityError: the payload is no JSON object.
        """
        try:
            value = json.loads(base64.b64decode(self.payload, validate=True))
        except ValueError as error:
            raise IntegrityError(f"A signature's payload cannot be read: {error}") from error
        if not isinstance(value, dict):
            raise IntegrityError("A signature's payload is no JSON object.")
        return value


@dataclass(frozen=True)
class Signer:
    """Signs with one private key."""

    key: "Ed25519PrivateKey"

    @classmethod
    def from_environment(cls) -> "Signer | None":
        """The key in ``SERIN_SIGNING_KEY`` (or in the file that ``SERIN_SIGNING_KEY_FILE`` names); None without one.

        A key is PEM (PKCS #8, not encrypted) or the base64 of its 32 raw bytes.

        Raises:
            ConfigError: it is neither, or the file cannot be read.
        """
        text, where = os.environ.get(KEY_VARIABLE, ""), KEY_VARIABLE
        if not text and (file := os.environ.get(KEY_FILE_VARIABLE)):
            where = KEY_FILE_VARIABLE
            try:
                text = Path(file).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{where} names a file that cannot be read ({type(error).__name__}).") from error
        return cls(_private_key(text, where)) if text.strip() else None

    @property
    def public_key(self) -> str:
        """Base64 of the 32 raw bytes of the public key: what verifiers are given."""
        return base64.b64encode(self.key.public_key().public_bytes_raw()).decode()

    @property
    def key_id(self) -> str:
        """First 16 hex digits of the SHA-256 of the raw public key."""
        return key_id_of(self.public_key)

    def seal(self, statement: Mapping[str, Any]) -> Envelope:
        """The statement in an envelope with this key's signature."""
        payload = canonical_json(dict(statement)).encode()
        signature = self.key.sign(_encoded(payload))
        return Envelope(
            payload=base64.b64encode(payload).decode(),
            payloadType=PAYLOAD_TYPE,
            signatures=(Signature(keyid=self.key_id, sig=base64.b64encode(signature).decode()),),
        )


def new_key() -> tuple[str, str]:
    """A new key pair: the private key as PEM, the public one as base64."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return pem, Signer(key).public_key


def key_id_of(public_key: str) -> str:
    """Id of a public key in base64.

    Raises:
        ConfigError: it is not the base64 of 32 bytes.
    """
    import hashlib

    return hashlib.sha256(_raw(public_key)).hexdigest()[:16]


def sign_release(release: Release, storage: Storage, signer: Signer) -> Envelope:
    """Sign a release and keep the envelope beside it; a second time by the same key changes nothing.

    Raises:
        StorageError: a part's manifest cannot be read, or the store cannot be written.
        IntegrityError: a part's manifest is not one, or an envelope that is there cannot be read.
    """
    key = f"{_folder(release.id)}{signer.key_id}.json"
    envelope = signer.seal(statement_of(release))
    try:
        storage.write(key, envelope.model_dump_json().encode(), if_absent=True)
    except AlreadyExistsError:
        return _read(storage, key)
    return envelope


def statement_of(release: Release) -> dict[str, Any]:
    """What a signature says of a release.

    Raises:
        StorageError: a part's manifest cannot be read.
        IntegrityError: it is no manifest.
    """
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": "release", "digest": {"sha256": release.id}}, *map(_subject(release), PARTS)],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"signed_at": datetime.now(UTC).isoformat(timespec="seconds")},
    }


def envelopes_of(storage: Storage, release_id: str) -> list[Envelope]:
    """All signatures of a release.

    Raises:
        IntegrityError: one cannot be read.
    """
    keys = [key for key in storage.keys(_folder(release_id)) if key.endswith(".json")]
    return [_read(storage, key) for key in keys]


def copy_signatures(release_id: str, source: Storage, target: Storage) -> int:
    """Bring a release's signatures into another store, as they are; returns how many there are.

    Raises:
        StorageError: a store cannot be read or written.
    """
    keys = [key for key in source.keys(_folder(release_id)) if key.endswith(".json")]
    for key in keys:
        with suppress(AlreadyExistsError):
            target.write(key, source.read(key), if_absent=True)
    return len(keys)


def signed_by(release: Release, envelopes: list[Envelope], trusted: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Who of the trusted signed a release as it is now.

    Args:
        release: with its parts in place.
        envelopes: its signatures.
        trusted: name to public key (base64 of 32 bytes).

    Returns:
        Names of the trusted whose signature holds, and sentences about signatures that do not.

    Raises:
        ConfigError: a trusted key is none.
    """
    names = {key_id_of(key): (name, key) for name, key in trusted.items()}
    holds: list[str] = []
    problems: list[str] = []
    wanted = statement_of(release)["subject"]
    for envelope in envelopes:
        for signature in envelope.signatures:
            if signature.keyid not in names:
                problems.append(f"Key {signature.keyid} is not trusted here.")
                continue
            name, key = names[signature.keyid]
            if problem := _problem(envelope, signature, key, wanted):
                problems.append(f"The signature of {name!r} does not hold: {problem}")
            else:
                holds.append(name)
    return holds, problems


def manifest_digest(manifest: Manifest) -> str:
    """Digest over all that a manifest says, however it is written down."""
    return digest_of(manifest.model_dump(mode="json", exclude_defaults=True))


def files_digest(manifest: Manifest) -> str:
    """Digest over the names and digests of an artefact's files."""
    return digest_of({name: entry.sha256 for name, entry in manifest.files.items()})


def _problem(envelope: Envelope, signature: Signature, public_key: str, wanted: list[dict[str, Any]]) -> str:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        body = base64.b64decode(envelope.payload, validate=True)
        Ed25519PublicKey.from_public_bytes(_raw(public_key)).verify(base64.b64decode(signature.sig), _encoded(body))
    except (InvalidSignature, ValueError):
        return "the statement was changed after it was signed."
    statement = envelope.statement()
    if envelope.payloadType != PAYLOAD_TYPE or statement.get("predicateType") != PREDICATE_TYPE:
        return "it is a signature of something else."
    said = {one.get("name"): one for one in statement.get("subject", [])}
    different = [one["name"] for one in wanted if said.get(one["name"]) != one]
    return f"it was made for another {different[0]}." if different else ""


def _subject(release: Release) -> Any:
    def subject(name: str) -> dict[str, Any]:
        part: Part = getattr(release, name)
        try:
            manifest = Manifest.model_validate_json(storage_for(part.uri).read(MANIFEST))
        except ValidationError as error:
            raise IntegrityError(f"The {name} at {part.uri} has a manifest that cannot be read: restore it.") from error
        digests = {"sha256": part.digest, "files": files_digest(manifest), "manifest": manifest_digest(manifest)}
        return {"name": name, "digest": digests}

    return subject


def _encoded(body: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)


def _private_key(text: str, where: str) -> "Ed25519PrivateKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        if "-----BEGIN" in text:
            key = load_pem_private_key(text.encode(), password=None)
            if isinstance(key, Ed25519PrivateKey):
                return key
        else:
            return Ed25519PrivateKey.from_private_bytes(_raw(text.strip()))
    except (ValueError, TypeError, ConfigError):
        pass  # the text is a secret: no part of it goes into a message
    raise ConfigError(f"{where} holds no ed25519 key: 'serin release key' makes one.")


def _raw(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != KEY_BYTES:
        raise ConfigError(f"A key must be the base64 of {KEY_BYTES} bytes: 'serin release key' prints one.")
    return raw


def _read(storage: Storage, key: str) -> Envelope:
    try:
        return Envelope.model_validate_json(storage.read(key))
    except ValidationError as error:
        raise IntegrityError(f"The signature {key} cannot be read: remove it, and sign the release again.") from error


def _folder(release_id: str) -> str:
    return f"releases/{release_id}/signatures/"
