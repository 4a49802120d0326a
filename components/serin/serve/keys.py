"""API keys: a file that holds their SHA-256 digests, labels and limits, never the keys.

A key is ``serin_ID_SECRET`` with 256 random bits in SECRET: at that entropy a plain digest cannot be turned back by
guessing, and a slow hash would only cost every request its time.  The id is no secret; it finds the entry, so that a
thousand keys cost what one does, and only the digest is compared, in constant time.
"""

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from serin.core.config import Section
from serin.core.errors import ConfigError
from serin.core.storage import disk_errors
from serin.serve.budgets import UNLIMITED, KeyLimits

logger = logging.getLogger(__name__)

PREFIX = "serin"
SECRET_BYTES = 32
RECHECK_S = 2.0
"""How long a change of the file may go unnoticed, seconds."""
_NO_DIGEST = "0" * 64
_SHAPE = re.compile(rf"{PREFIX}_([0-9a-f]{{12}})_[A-Za-z0-9_-]{{43}}")


class ApiKey(Section):
    """What is known of a key."""

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    """Stands in the key itself, and in events and logs."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Digest of the whole key, hex."""
    name: str = ""
    """Whose it is."""
    labels: tuple[str, ...] = ()
    """Access labels of documents that its holder may read; public ones anyone may."""
    limits: KeyLimits = UNLIMITED
    """What it may use."""
    created: str = ""
    """UTC, ISO 8601."""
    expires: str = ""
    """UTC, ISO 8601; empty: never."""

    @field_validator("expires", "created")
    @classmethod
    def _is_a_time(cls, value: str) -> str:
        if value and datetime.fromisoformat(value).tzinfo is None:
            raise ValueError("must say its time zone, such as 2026-12-31T00:00:00+00:00")
        return value

    def expired(self, now_s: float) -> bool:
        """Whether it has ended at a time, seconds since the epoch."""
        return bool(self.expires) and datetime.fromisoformat(self.expires).timestamp() <= now_s


class _File(Section):
    """The keys file."""

    version: int = Field(default=1, ge=1, le=1)
    keys: tuple[ApiKey, ...] = ()


class KeyRing:
    """The keys of a file; what is changed in the file holds within seconds, without a restart.

    Args:
        path: the file; it must exist.
        clock: seconds since the epoch.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._keys = _load(path)
        self._version, self._checked = _version_of(path), clock()

    def find(self, key: bytes) -> ApiKey | None:
        """The entry of a key that is valid now; None for any other."""
        self._reload()
        shape = _SHAPE.fullmatch(key.decode("ascii", "replace"))
        entry = self._keys.get(shape.group(1)) if shape else None
        same = hmac.compare_digest(hashlib.sha256(key).hexdigest(), entry.sha256 if entry else _NO_DIGEST)
        return entry if entry is not None and same and not entry.expired(self._clock()) else None

    def limits_of(self, key_id: str) -> KeyLimits | None:
        """The limits of a key by its id; None for an id that is not here."""
        entry = self._keys.get(key_id)
        return entry.limits if entry else None

    def _reload(self) -> None:
        now = self._clock()
        if now - self._checked < RECHECK_S:
            return
        self._checked = now
        version = _version_of(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = _load(self._path)
            logger.info("The API keys were read again: %d.", len(self._keys))
        except ConfigError as error:
            logger.error("The API keys stay as they were: %s", error)


def create_key(
    path: Path,
    *,
    name: str = "",
    labels: tuple[str, ...] = (),
    limits: KeyLimits = UNLIMITED,
    expires_days: float | None = None,
) -> tuple[str, ApiKey]:
    """Make a key and add its entry to a file, which is made if absent.

    Args:
        path: the keys file.
        name: whose key it is.
        labels: access labels of its holder.
        limits: what it may use.
        expires_days: days from now until it ends; None: never.

    Returns:
        The key, which is nowhere else, and its entry.

    Raises:
        ConfigError: the file holds something else.
        StorageError: it cannot be written.
    """
    entries = _load(path) if path.exists() else {}
    now = datetime.now(UTC)
    key_id = secrets.token_hex(6)
    key = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(SECRET_BYTES)}"
    expires = "" if expires_days is None else (now + timedelta(days=expires_days)).isoformat(timespec="seconds")
    entry = ApiKey.load(
        {
            "id": key_id,
            "sha256": hashlib.sha256(key.encode()).hexdigest(),
            "name": name,
            "labels": labels,
            "limits": limits.dump(),
            "created": now.isoformat(timespec="seconds"),
            "expires": expires,
        }
    )
    _save(path, {**entries, key_id: entry})
    return key, entry


def list_keys(path: Path) -> list[ApiKey]:
    """The entries of a file, in the order in which they were made.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    return list(_load(path).values())


def revoke_key(path: Path, key_id: str) -> ApiKey:
    """Take a key out of a file.

    Raises:
        ConfigError: there is no such key.
        StorageError: the file cannot be written.
    """
    entries = _load(path)
    if key_id not in entries:
        raise ConfigError(f"{path} has no key {key_id!r}: 'serin serve keys' lists them.")
    entry = entries.pop(key_id)
    _save(path, entries)
    return entry


def _load(path: Path) -> dict[str, ApiKey]:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The API keys in {path} cannot be read ({error}): make one with 'serin serve key'."
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object with 'keys': make it with 'serin serve key'.")
    return {entry.id: entry for entry in _File.load(values).keys}


def _save(path: Path, entries: Mapping[str, ApiKey]) -> None:
    text = json.dumps({"version": 1, "keys": [entry.dump() for entry in entries.values()]}, indent=2) + "\n"
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(
                os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
            ) as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def _version_of(path: Path) -> tuple[int, int, int]:
    """Changes whenever the file does; zeros while it is missing."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)
