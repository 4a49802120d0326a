"""Storage as URIs: a handful of methods, two implementations (local files and S3), one behaviour.

``file:///abs/path``, a plain path and ``s3://bucket/prefix`` are understood.  Credentials and the endpoint of S3
come from boto3's own environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` and so on), never from a URI.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlparse

from serin.core.errors import AlreadyExistsError, ConfigError, StorageError


class Storage(Protocol):
    """A flat space of keys ('a/b/c') below one URI."""

    uri: str

    def read(self, key: str) -> bytes:
        """The bytes under a key; StorageError when there are none."""

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Write a key in one atomic step; with ``if_absent``, AlreadyExistsError when it is taken."""

    def exists(self, key: str) -> bool:
        """Whether a key is there."""

    def keys(self, prefix: str = "") -> list[str]:
        """All keys that start with a prefix, sorted."""

    def delete(self, prefix: str) -> None:
        """Remove a key, or everything below it as a folder."""

    def fetch(self, key: str, target: Path) -> None:
        """Copy one key to a local file."""

    def upload(self, source: Path, key: str) -> None:
        """Copy one local file to a key."""


def storage_for(uri: str) -> Storage:
    """The storage behind a URI.

    Raises:
        ConfigError: the scheme is neither ``file`` nor ``s3``.
    """
    parsed = urlparse(str(uri))
    if parsed.scheme in ("", "file"):
        return LocalStorage(local_path(str(uri)))
    if parsed.scheme == "s3":
        return S3Storage(str(uri))
    raise ConfigError(f"Storage {uri!r} is not supported: use a folder, file:// or s3://.")


def local_path(uri: str) -> Path:
    """The local path of a plain path or ``file://`` URI."""
    parsed = urlparse(uri)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    return Path(uri).expanduser().absolute()


def is_remote(uri: str) -> bool:
    """Whether a URI lies outside the local file system."""
    return urlparse(uri).scheme not in ("", "file")


def join(uri: str, *parts: str) -> str:
    """A URI with more path segments."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


@contextmanager
def disk_errors(where: Path | str) -> Iterator[None]:
    """Turn operating-system errors about a place into one sentence (no space, no permission, read-only)."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"No disk space left at {where}: free some, or set SERIN_HOME to a larger disk."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            message = f"{where} cannot be written ({error.strerror}): give this user write access to it."
        else:
            raise
        raise StorageError(message) from error


class LocalStorage:
    """Keys as files below a folder; writes go aside and are renamed or linked into place."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = root.as_uri()

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError) as error:
            raise StorageError(f"{join(self.uri, key)} does not exist.") from error

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        target = self._path(key)
        with disk_errors(target), self._aside(target) as aside:
            with aside.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            self._place(aside, target, if_absent)

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def keys(self, prefix: str = "") -> list[str]:
        start = self.root / prefix.rpartition("/")[0]
        if not start.is_dir():
            return []
        keys = (path.relative_to(self.root).as_posix() for path in start.rglob("*") if path.is_file())
        return sorted(key for key in keys if key.startswith(prefix) and not _is_aside(key))

    def delete(self, prefix: str) -> None:
        path = self._path(prefix)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def fetch(self, key: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(target):
            try:
                shutil.copyfile(self._path(key), target)
            except FileNotFoundError as error:
                raise StorageError(f"{join(self.uri, key)} does not exist.") from error

    def upload(self, source: Path, key: str) -> None:
        target = self._path(key)
        with disk_errors(target), self._aside(target) as aside:
            shutil.copyfile(source, aside)
            self._place(aside, target, if_absent=False)

    def _path(self, key: str) -> Path:
        path = self.root / key
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise StorageError(f"Key {key!r} leads out of {self.uri}: use a path below it.")
        return path

    @contextmanager
    def _aside(self, target: Path) -> Iterator[Path]:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.parent / f".{target.name}.{uuid.uuid4().hex}.partial"
        try:
            yield aside
        finally:
            aside.unlink(missing_ok=True)

    def _place(self, aside: Path, target: Path, if_absent: bool) -> None:
        if not if_absent:
            aside.replace(target)
            return
        try:
            os.link(aside, target)  # fails when the target exists: the only atomic create-if-absent for content
        except FileExistsError as error:
            raise AlreadyExistsError(f"{target.as_uri()} exists already.") from error


class S3Storage:
    """Keys as objects below a prefix of a bucket."""

    def __init__(self, uri: str) -> None:
        parsed = urlparse(uri)
        self.bucket, self.prefix = parsed.netloc, parsed.path.strip("/")
        if not self.bucket:
            raise ConfigError(f"Storage {uri!r} names no bucket: write s3://BUCKET/PREFIX.")
        self.uri = uri.rstrip("/")
        self._client = _s3_client()

    def read(self, key: str) -> bytes:
        with self._errors(key):
            return self._client.get_object(Bucket=self.bucket, Key=self._name(key))["Body"].read()

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        with self._errors(key):
            self._client.put_object(Bucket=self.bucket, Key=self._name(key), Body=data, **condition)

    def exists(self, key: str) -> bool:
        return self._name(key) in self._names(self._name(key))

    def keys(self, prefix: str = "") -> list[str]:
        start = self._name(prefix) if prefix else (f"{self.prefix}/" if self.prefix else "")
        cut = len(self.prefix) + 1 if self.prefix else 0
        return sorted(name[cut:] for name in self._names(start))

    def delete(self, prefix: str) -> None:
        with self._errors(prefix):
            for name in self._names(self._name(prefix)):
                if name == self._name(prefix) or name.startswith(self._name(prefix) + "/"):
                    self._client.delete_object(Bucket=self.bucket, Key=name)

    def fetch(self, key: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(target), self._errors(key):
            self._client.download_file(self.bucket, self._name(key), str(target))

    def upload(self, source: Path, key: str) -> None:
        with self._errors(key):
            self._client.upload_file(str(source), self.bucket, self._name(key))

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _names(self, start: str) -> list[str]:
        names: list[str] = []
        with self._errors(start):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start):
                names += [entry["Key"] for entry in page.get("Contents", [])]
        return names

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        where = f"s3://{self.bucket}/{self._name(key)}"
        try:
            yield
        except (ClientError, BotoCoreError, Boto3Error) as error:
            answer = next((one for one in (error, error.__context__) if isinstance(one, ClientError)), None)
            if answer is None:  # boto3 hides S3's own answer to an upload in an error of its own
                raise StorageError(f"S3 cannot be reached for {where}: {error}") from error
            code = answer.response.get("Error", {}).get("Code", "")
            if code in ("NoSuchKey", "404", "NoSuchBucket"):
                raise StorageError(f"{where} does not exist ({code}).") from error
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                raise AlreadyExistsError(f"{where} exists already.") from error
            raise StorageError(f"S3 refused {where} ({code}): check the bucket's policy and credentials.") from error


def _s3_client() -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 5}))


def _is_aside(key: str) -> bool:
    name = key.rsplit("/", 1)[-1]
    return name.startswith(".") and name.endswith(".partial")
