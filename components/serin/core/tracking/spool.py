"""Records for MLflow that wait on this machine's disk, so that nobody waits for MLflow and a kill loses none.

Each tracker has a file of its own below ``$SERIN_HOME/tracking/<digest of the tracking URI>/``: one JSON object per
line, the first of which names the run.  A second file beside it holds how far it was sent.  The writer holds a lock on
its file as long as it lives, so whoever finds one unlocked may send what is left in it.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from serin.core.artifacts import home

logger = logging.getLogger(__name__)

MAX_BYTES = 64 * 2**20
"""Most bytes of records that wait in one file; metrics beyond them are dropped, with a warning."""
MAX_TOTAL_BYTES = 256 * 2**20
"""The same for all files of one tracking URI."""
MAX_ARTIFACT_BYTES = 64 * 2**20
"""Largest file that is copied into the spool."""
TRUNCATE_BYTES = 4 * 2**20
"""A file that was sent whole starts anew when it is longer."""

Record = dict[str, Any]


@dataclass(frozen=True)
class RunKey:
    """Which run records belong to."""

    experiment: str
    lineage_id: str
    stage: str
    """The stage, or ``stage/part`` for a run nested below it."""
    given: str = ""
    """Id of a run that exists already and is to be used."""


class SpoolFile:
    """The records of one tracker, on disk.

    Args:
        path: the file.
        key: the run that a new file is for; None opens one that is there.

    Raises:
        BlockingIOError: another process holds it.
        ValueError: its header cannot be read.
    """

    def __init__(self, path: Path, key: RunKey | None = None) -> None:
        self.path, self._sent_path, self._files = path, path.with_suffix(".sent"), path.with_suffix(".files")
        self._lock = threading.Lock()
        opened = path.with_suffix(".new") if key else path  # nobody looks for it before it has its lock and its header
        self._descriptor = os.open(opened, os.O_RDWR | os.O_APPEND | (os.O_CREAT | os.O_EXCL if key else 0), 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if key:
                os.write(self._descriptor, _line(asdict(key)))
                opened.rename(path)
            elif not path.exists():
                raise BlockingIOError("it was sent and removed meanwhile")
            with path.open("rb") as stream:
                first = stream.readline()
            self.key = key or _key_of(first, path)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._start, self.size = len(first), os.fstat(self._descriptor).st_size
        self.sent = self._read_sent()
        self._dropped = 0
        self._room = MAX_BYTES

    def limit(self, room: int) -> None:
        """Let at most ``room`` bytes of metrics wait here."""
        self._room = min(self._room, max(0, room))

    def append(self, record: Record) -> bool:
        """Add a record; False when it was dropped, because the spool or the disk is full."""
        line = _line(record)
        with self._lock:
            if "metrics" in record and self.size - self.sent + len(line) > self._room:
                return self._drop("it has no room left")
            try:
                self.size += os.write(self._descriptor, line)
            except OSError as error:
                return self._drop(error.strerror or "it cannot be written")
        return True

    def keep_file(self, path: Path) -> str | None:
        """Copy a file, or a folder, into the spool; returns its name there, None when it is too large or unreadable."""
        found = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
        if sum(item.stat().st_size for item in found) > MAX_ARTIFACT_BYTES:
            logger.warning("%s is not copied to MLflow: it is larger than %d MiB.", path, MAX_ARTIFACT_BYTES >> 20)
            return None
        target = self._files / uuid.uuid4().hex[:12] / path.name
        try:
            target.parent.mkdir(parents=True)
            if path.is_dir():
                shutil.copytree(path, target)
            else:
                shutil.copyfile(path, target)
        except OSError as error:
            logger.warning("%s is not copied to MLflow: %s.", path, error)
            return None
        return target.relative_to(self._files).as_posix()

    def kept(self, name: str) -> Path:
        """Where a file of ``keep_file`` lies."""
        return self._files / name

    def waiting(self, most: int) -> tuple[list[Record], int]:
        """The next records that were not sent, and the offset behind them."""
        with self.path.open("rb") as stream:
            stream.seek(self.sent)
            records: list[Record] = []
            offset = self.sent
            while len(records) < most and (line := stream.readline()).endswith(b"\n"):
                offset += len(line)
                with suppress(ValueError):  # half a line of a disk that was full
                    records.append(json.loads(line))
        return records, offset

    def acknowledge(self, offset: int) -> None:
        """Note that everything before an offset has arrived."""
        with self._lock:
            self.sent = offset
            fresh = offset == self.size and self.size > TRUNCATE_BYTES
            if fresh:
                self.sent = self._start
            self._write_sent()  # first: a kill between the two sends again what arrived, and loses nothing
            if fresh:
                os.ftruncate(self._descriptor, self._start)
                self.size = self._start

    @property
    def is_sent(self) -> bool:
        """Whether nothing waits."""
        return self.sent >= self.size

    def num_waiting(self) -> int:
        """Records that were not sent yet."""
        return len(self.waiting(1 << 30)[0])

    def close(self) -> None:
        """Let go of the file; it is removed when nothing waits in it."""
        if self.is_sent:
            self.path.unlink(missing_ok=True)
            self._sent_path.unlink(missing_ok=True)
            shutil.rmtree(self._files, ignore_errors=True)
        os.close(self._descriptor)

    def set_aside(self, record: Record, reason: str) -> None:
        """Keep a record that MLflow will never take, with its reason."""
        with self.path.with_suffix(".refused").open("ab") as stream:
            stream.write(_line({"reason": reason, "record": record}))

    def _drop(self, reason: str) -> bool:
        if not self._dropped:
            logger.warning("Metrics are dropped until MLflow answers: the spool at %s: %s.", self.path.parent, reason)
        self._dropped += 1
        return False

    def _read_sent(self) -> int:
        try:
            sent = int(self._sent_path.read_text())
        except (OSError, ValueError):
            return self._start
        return sent if self._start <= sent <= self.size else self._start

    def _write_sent(self) -> None:
        aside = self._sent_path.with_suffix(".sent.partial")
        with suppress(OSError):  # without it, what arrived is sent again, which changes nothing
            aside.write_text(str(self.sent))
            aside.replace(self._sent_path)


def new_file(uri: str, key: RunKey) -> SpoolFile:
    """A file of one's own for a run's records."""
    folder = folder_of(uri)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    used = sum(path.stat().st_size for path in folder.glob("*.jsonl"))
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{key.lineage_id}-{key.stage}")[:80]
    file = SpoolFile(folder / f"{time.time_ns():020d}-{name}-{uuid.uuid4().hex[:6]}.jsonl", key)
    file.limit(MAX_TOTAL_BYTES - used)
    return file


def leftovers(uri: str) -> Generator[SpoolFile, None, None]:
    """Files that nobody holds, oldest first; each is closed when the next one is asked for."""
    for path in sorted(folder_of(uri).glob("*.jsonl")):
        try:
            file = SpoolFile(path)
        except (OSError, ValueError):  # somebody else's, gone meanwhile, or killed before its first line was whole
            continue
        try:
            yield file
        finally:
            file.close()


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """Hold off the other threads and processes of this machine that do the same for a tracking URI."""
    folder = folder_of(uri)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def folder_of(uri: str) -> Path:
    """Where records for a tracking URI wait; the same for every user name in it."""
    return home() / "tracking" / hashlib.sha256(shown(uri).encode()).hexdigest()[:16]


def shown(uri: str) -> str:
    """A URI without its user name and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def _key_of(header: bytes, path: Path) -> RunKey:
    try:
        return RunKey(**json.loads(header))
    except TypeError as error:
        raise ValueError(f"{path} names no run") from error


def _line(record: Record) -> bytes:
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
