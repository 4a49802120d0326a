"""Artefact directories: addressed by what they were made from, whole or absent.

An artefact lives at ``<store>/<kind>/<key>/``.  ``key`` is the digest of everything that determines it (the digests
of its inputs, the stage's config, the stage's code version), so asking for the same thing twice finds the first
answer.  Files are written aside and the directory is renamed into place with its ``manifest.json`` (on S3 the
manifest is put last, conditionally), so that a killed writer leaves nothing that a reader could take for whole.
The manifest's ``digest`` names the content: equal content, equal digest, whoever made it and when.
"""

import fcntl
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from serin.core.digests import digest_of, digest_of_file
from serin.core.errors import AlreadyExistsError, IntegrityError, StorageError
from serin.core.storage import Storage, disk_errors, is_remote, join, local_path, storage_for

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
KEY_LENGTH = 24
SCHEMA = 1


def home() -> Path:
    """Where Serin keeps its own files on this machine: ``$SERIN_HOME``, else ``.serin`` in the working folder."""
    return Path(os.environ.get("SERIN_HOME", ".serin")).absolute()


class FileEntry(BaseModel):
    """One file of an artefact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size: int
    """Bytes."""


class Manifest(BaseModel):
    """What an artefact is, what it was made from, and how to tell that it is whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA
    kind: str
    key: str
    digest: str
    """SHA-256 of the content: the same content always has the same digest."""
    files: dict[str, FileEntry]
    inputs: dict[str, str]
    """Name of each input to its digest."""
    sources: dict[str, str] = {}
    """Name of each input to its URI, where it has one: what lineage follows."""
    config: Any = None
    code_version: str = ""
    lineage_id: str = ""
    mlflow_run_id: str = ""
    created_at: str = ""
    metadata: dict[str, Any] = {}


@dataclass(frozen=True)
class Artifact:
    """A published artefact and where to find it."""

    uri: str
    manifest: Manifest
    path: Path
    """Its files on this machine (a verified copy when the store is remote)."""

    @property
    def digest(self) -> str:
        """The content's digest."""
        return self.manifest.digest

    @property
    def metadata(self) -> dict[str, Any]:
        """What the stage that made it had to say (counts, metrics)."""
        return self.manifest.metadata


@dataclass(frozen=True)
class Built:
    """What a build function returns."""

    metadata: dict[str, Any] = field(default_factory=dict)
    content: Any = None
    """JSON value that identifies the content when the files themselves are not repeatable (a Lance table holds
    random names); None: the files' digests do."""


@dataclass(frozen=True)
class Origin:
    """Who makes an artefact, for its manifest; no part of its identity."""

    lineage_id: str = ""
    mlflow_run_id: str = ""


class ArtifactStore:
    """Artefacts below one URI.

    Args:
        uri: ``file://`` folder or ``s3://`` prefix.
        cache: where verified copies of remote artefacts and work in progress go.
    """

    def __init__(self, uri: str, cache: Path | None = None) -> None:
        self.uri = uri if is_remote(uri) else local_path(uri).as_uri()
        self.storage: Storage = storage_for(uri)
        self._cache = cache or home() / "cache"

    def key_of(self, kind: str, *, inputs: Mapping[str, str], config: Any, code: str) -> str:
        """The key of the artefact that would be made from these."""
        return digest_of({"schema": SCHEMA, "kind": kind, "inputs": dict(inputs), "config": config, "code": code})[
            :KEY_LENGTH
        ]

    def find(self, kind: str, key: str) -> Artifact | None:
        """The artefact under a key, its files verified; None when it is absent.

        One that is damaged is moved aside and reported as absent, so that it is made again.
        """
        if not self.storage.exists(f"{kind}/{key}/{MANIFEST}"):
            return None
        try:
            return self.open(join(self.uri, kind, key))
        except IntegrityError as error:
            logger.warning("%s It is made again.", error)
            self._set_aside(kind, key)
            return None

    def open(self, uri: str) -> Artifact:
        """Open an artefact by URI and verify every file's digest.

        Raises:
            StorageError: nothing is there.
            IntegrityError: a file is missing, damaged, or the manifest is not one.
        """
        storage = storage_for(uri)
        manifest = _parse_manifest(uri, storage.read(MANIFEST))
        path = local_path(uri) if not is_remote(uri) else self._fetched(storage, manifest)
        verify(path, manifest)
        return Artifact(uri=uri, manifest=manifest, path=path)

    def produce(
        self,
        kind: str,
        build: Callable[[Path, Path], Built],
        *,
        inputs: Mapping[str, str],
        config: Any,
        code: str,
        sources: Mapping[str, str] | None = None,
        origin: Origin | None = None,
    ) -> tuple[Artifact, bool]:
        """Find the artefact of these inputs, or make and publish it.

        Args:
            kind: folder below the store ('dataset', 'model', ...).
            build: called as ``build(output, scratch)``: writes the files below ``output`` (empty at the start);
                ``scratch`` survives a kill, for checkpoints that a second try continues from.
            inputs: name of each input to its digest.
            config: JSON value of all settings that matter.
            code: code version of the stage.
            sources: name of each input to its URI, for lineage.
            origin: who makes it.

        Returns:
            The artefact, and whether it was there already.

        Raises:
            StorageError: no space, or the store cannot be written; nothing half-made is left in the store.
        """
        key = self.key_of(kind, inputs=inputs, config=config, code=code)
        with self._workspace(kind, key) as work:
            if found := self.find(kind, key):
                shutil.rmtree(work, ignore_errors=True)  # also what a writer left that was killed after publishing
                return found, True
            output, scratch = work / "output", work / "scratch"
            if output.exists():
                shutil.rmtree(output)
            output.mkdir(parents=True)
            scratch.mkdir(exist_ok=True)
            try:
                with disk_errors(work):
                    built = build(output, scratch)
            except BaseException:
                shutil.rmtree(output, ignore_errors=True)
                raise
            origin = origin or Origin()
            files = _entries(output)
            content = built.content if built.content is not None else {n: e.sha256 for n, e in files.items()}
            manifest = Manifest(
                kind=kind,
                key=key,
                digest=digest_of({"kind": kind, "content": content}),
                files=files,
                inputs=dict(inputs),
                sources=dict(sources or {}),
                config=config,
                code_version=code,
                lineage_id=origin.lineage_id,
                mlflow_run_id=origin.mlflow_run_id,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                metadata=built.metadata,
            )
            artifact = self._publish(kind, key, output, manifest)
            shutil.rmtree(work, ignore_errors=True)
            return artifact, False

    def adopt(self, artifact: Artifact) -> Artifact:
        """Publish a copy of another store's artefact here, under its own kind and key.

        Returns:
            The copy, or the one that is here already.

        Raises:
            IntegrityError: another artefact has its key here.
            StorageError: no space, or the store cannot be written.
        """
        kind, key = artifact.manifest.kind, artifact.manifest.key
        with self._workspace(kind, key) as work:
            found = self.find(kind, key)
            if found is None:
                output = work / "output"
                shutil.rmtree(output, ignore_errors=True)
                with disk_errors(work):
                    for name in artifact.manifest.files:
                        (output / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(artifact.path / name, output / name)
                found = self._publish(kind, key, output, artifact.manifest)
            shutil.rmtree(work, ignore_errors=True)
        if found.digest != artifact.digest:
            raise IntegrityError(
                f"{found.uri} holds the digest {found.digest[:12]} and {artifact.uri} has {artifact.digest[:12]}: two "
                "builds of one key differ; move the older one away, then try again."
            )
        return found

    def _publish(self, kind: str, key: str, output: Path, manifest: Manifest) -> Artifact:
        uri = join(self.uri, kind, key)
        data = manifest.model_dump_json(indent=1).encode()
        if not is_remote(self.uri):
            final = local_path(uri)
            with disk_errors(final):
                (output / MANIFEST).write_bytes(data)
                _sync(output)
                final.parent.mkdir(parents=True, exist_ok=True)
                output.rename(final)
            return Artifact(uri=uri, manifest=manifest, path=final)
        for name in manifest.files:
            self.storage.upload(output / name, f"{kind}/{key}/{name}")
        try:
            self.storage.write(f"{kind}/{key}/{MANIFEST}", data, if_absent=True)
        except AlreadyExistsError:
            logger.info("%s was published by another process meanwhile; its copy is used.", uri)
        return self.open(uri)

    def _fetched(self, storage: Storage, manifest: Manifest) -> Path:
        target = self._cache / manifest.kind / f"{manifest.key}-{manifest.digest[:16]}"
        if target.is_dir() and _matches(target, manifest):
            return target
        aside = target.parent / f".{target.name}.{uuid.uuid4().hex}.partial"
        try:
            for name in manifest.files:
                storage.fetch(name, aside / name)
            shutil.rmtree(target, ignore_errors=True)
            aside.mkdir(parents=True, exist_ok=True)
            aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return target

    def _set_aside(self, kind: str, key: str) -> None:
        if is_remote(self.uri):
            self.storage.delete(f"{kind}/{key}")
            return
        damaged = local_path(join(self.uri, kind, key))
        damaged.rename(damaged.with_name(f".{key}.damaged-{uuid.uuid4().hex[:8]}"))

    @contextmanager
    def _workspace(self, kind: str, key: str) -> Iterator[Path]:
        """The folder of a key, made and removed only by the holder of its lock: one that waits leaves nothing."""
        root = self._cache if is_remote(self.uri) else local_path(self.uri)
        work = root / ".work" / f"{kind}-{key}"
        with disk_errors(work):
            work.parent.mkdir(parents=True, exist_ok=True)
            lock = (work.parent / f"{work.name}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # freed by the kernel when its holder is killed
            work.mkdir(parents=True, exist_ok=True)
            yield work
        finally:
            lock.close()


def verify(path: Path, manifest: Manifest) -> None:
    """Recompute the digest of every file of an artefact.

    Raises:
        IntegrityError: naming the first file that is missing or differs.
    """
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise IntegrityError(f"{manifest.kind} {manifest.key} lacks its file {name}.")
        if file.stat().st_size != entry.size or digest_of_file(file) != entry.sha256:
            raise IntegrityError(f"{manifest.kind} {manifest.key}: {name} is not what its manifest says.")


def _matches(path: Path, manifest: Manifest) -> bool:
    try:
        verify(path, manifest)
    except IntegrityError:
        return False
    return True


def _parse_manifest(uri: str, data: bytes) -> Manifest:
    try:
        return Manifest.model_validate(json.loads(data))
    except (ValueError, ValidationError) as error:
        raise IntegrityError(f"{join(uri, MANIFEST)} is not a manifest of this version: {error}") from error


def _entries(folder: Path) -> dict[str, FileEntry]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise StorageError(f"Nothing was written below {folder}.")
    return {
        path.relative_to(folder).as_posix(): FileEntry(sha256=digest_of_file(path), size=path.stat().st_size)
        for path in files
    }


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
