"""What waits to be written elsewhere: records in segments on the disk, bounded, and a thread that ships them.

A record counts as spooled once ``append`` returns: it is on the disk (fsync), and a process that is killed leaves it
to the next one that opens the same folder.  A segment keeps its name until it is shipped, so that a receiver which
stores by name gets each record once, even when a process dies between shipping and forgetting.

On disk: ``ROOT/<process>/<name>.<kind>``, a sequence of frames (length, CRC-32, record), closed when it is whole and
``.open`` before that; a torn last frame is what was being written when the process died, and is left out.
"""

import fcntl
import logging
import os
import shutil
import struct
import threading
import uuid
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from serin.core.errors import SerinError
from serin.core.events import batch_name

logger = logging.getLogger(__name__)

MAX_BYTES = 256 << 20
"""Default bound of a spool on disk."""
MAX_MEMORY_BYTES = 48 << 20
"""And of one without a folder."""
LONGEST_WAIT_S = 30.0
"""Between two tries of a receiver that is down."""
CLOSE_TIMEOUT_S = 10.0
_HEAD = struct.Struct(">II")
_LOCK = "lock"


@dataclass(eq=False)
class Segment:
    """Records that are shipped together."""

    name: str
    """'<UTC date>/<time>-<random>', as ``events.batch_name`` makes them."""
    kind: str
    count: int = 0
    size: int = 0
    """Bytes."""
    path: Path | None = None
    records: list[bytes] = field(default_factory=list)
    """What is in memory alone: all of it without a folder, and what the disk did not take."""
    stream: IO[bytes] | None = None


class RefusedError(Exception):
    """The receiver will never take these records: they are given up."""


class Spool:
    """Segments of records, oldest first; safe to share between threads.

    Args:
        root: folder for this and earlier processes' segments; None keeps them in memory.
        max_bytes: beyond it the oldest segments are given up.
        lost: told how many records of a kind were given up.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        max_bytes: int | None = None,
        lost: Callable[[str, int], None] = lambda kind, count: None,
    ) -> None:
        self._max_bytes = max_bytes or (MAX_BYTES if root else MAX_MEMORY_BYTES)
        self._lost = lost
        self._closed: list[Segment] = []
        self._open: dict[str, Segment] = {}
        self._guard = threading.RLock()
        self._disk_failed = self._full = False
        self._folder: Path | None = None
        self._lock: IO[bytes] | None = None
        if root:
            self._folder, self._lock = _own_folder(root)
            self._closed = _adopted(root, self._folder)
            self._drop_oldest()

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return sum(segment.size for segment in [*self._closed, *self._open.values()])

    def shipped(self, segment: Segment) -> None:
        """Forget a segment that its receiver took."""
        self._full = False
        self.remove(segment)

    def append(self, kind: str, records: Sequence[bytes]) -> None:
        """Add records to the open segment of their kind; on return they outlast this process, given a folder."""
        if not records:
            return
        with self._guard:
            segment = self._open.get(kind) or self._opened(kind)
            frames = b"".join(_HEAD.pack(len(record), zlib.crc32(record)) + record for record in records)
            if not self._written(segment, frames):
                segment.records += records
            segment.count += len(records)
            segment.size += len(frames)
            self._drop_oldest()

    def roll(self) -> None:
        """Close the open segments: they may be shipped."""
        with self._guard:
            for segment in self._open.values():
                if segment.stream is not None:
                    segment.stream.close()
                    segment.stream = None
                if segment.path is not None:
                    segment.path = segment.path.replace(segment.path.with_suffix(""))
                self._closed.append(segment)
            self._open.clear()

    def pending(self) -> list[Segment]:
        """The closed segments, oldest first."""
        with self._guard:
            return list(self._closed)

    def read(self, segment: Segment) -> list[bytes]:
        """A segment's records."""
        return [*(_frames(segment.path.read_bytes()) if segment.path else []), *segment.records]

    def remove(self, segment: Segment) -> None:
        """Forget a segment that is given up."""
        with self._guard:
            if segment in self._closed:
                self._closed.remove(segment)
                if segment.path is not None:
                    segment.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave what is left to the next process; a folder with nothing in it goes."""
        self.roll()
        if self._folder is not None and self._lock is not None:
            if not self._closed:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._lock.close()
            self._lock = None

    def _opened(self, kind: str) -> Segment:
        segment = self._open[kind] = Segment(batch_name(), kind)
        if self._folder is not None:
            path = self._folder / f"{segment.name.replace('/', '_')}.{kind}.open"
            try:
                segment.stream = path.open("xb", buffering=0)  # nothing half written is left to come later
                segment.path = path
            except OSError as error:
                self._complain(error)
        return segment

    def _written(self, segment: Segment, frames: bytes) -> bool:
        """Whether the disk took the frames; if not, they stay in memory, and the segment as it was."""
        if segment.stream is None:
            return False
        end = segment.stream.tell()
        try:
            left = memoryview(frames)
            while left:
                left = left[segment.stream.write(left) :]
            os.fsync(segment.stream.fileno())
        except OSError as error:
            self._complain(error)
            stream, segment.stream = segment.stream, None  # what follows would stand behind a torn frame
            _cut(stream, end)
            return False
        self._disk_failed = False
        return True

    def _complain(self, error: OSError) -> None:
        if not self._disk_failed:
            logger.error("The spool in %s cannot be written (%s): what waits is kept in memory.", self._folder, error)
        self._disk_failed = True

    def _drop_oldest(self) -> None:
        while self._closed and self.size > self._max_bytes:
            oldest = self._closed[0]
            self.remove(oldest)
            self._lost(oldest.kind, oldest.count)
            if not self._full:
                logger.error("The spool is full: the oldest %s are lost until their receiver is back.", oldest.kind)
            self._full = True


class Shipper:
    """Ships a spool's segments in order, tries again when the receiver is down, and waits longer each time.

    Args:
        spool: what to ship.
        send: gives a segment and its records to the receiver; raises ``RefusedError`` to give them up, or any other
            error to be called again.
        name: of the thread.
        retry_s: the first wait after a failure.
        lost: told how many records of a kind were given up.
    """

    def __init__(
        self,
        spool: Spool,
        send: Callable[[Segment, list[bytes]], None],
        *,
        name: str,
        retry_s: float = 1.0,
        lost: Callable[[str, int], None] = lambda kind, count: None,
    ) -> None:
        self._spool, self._send, self._name, self._retry_s, self._lost = spool, send, name, retry_s, lost
        self._shipping = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """There is something to ship."""
        self._wake.set()

    def ship(self) -> int:
        """Ship every closed segment now; returns how many records the receiver took.

        Raises:
            Exception: what ``send`` raised; the rest stays spooled.
        """
        shipped = 0
        with self._shipping:
            for segment in self._spool.pending():
                try:
                    self._send(segment, self._spool.read(segment))
                except FileNotFoundError:  # dropped meanwhile, and counted as lost
                    continue
                except RefusedError as error:
                    logger.error("%d %s were refused and are lost: %s", segment.count, segment.kind, error)
                    self._lost(segment.kind, segment.count)
                    self._spool.remove(segment)
                else:
                    shipped += segment.count
                    self._spool.shipped(segment)
        return shipped

    def close(self) -> None:
        """Try to ship the rest, for a few seconds, and end the thread."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT_S)
            if self._thread.is_alive():
                logger.warning("The receiver of %s does not answer: the rest stays spooled.", self._name)
        else:
            self._try(quiet=False)

    def _run(self) -> None:
        wait_s, failing = self._retry_s, False
        while not self._stop.is_set():
            if failing:
                self._stop.wait(wait_s)
            else:
                self._wake.wait()
            self._wake.clear()
            failed = not self._try(quiet=failing)
            wait_s = min(wait_s * 2, LONGEST_WAIT_S) if failed and failing else self._retry_s
            failing = failed

    def _try(self, *, quiet: bool) -> bool:
        try:
            self.ship()
        except (SerinError, OSError) as error:
            logger.log(
                logging.DEBUG if quiet else logging.ERROR,
                "The %s could not be sent and are kept: %s",
                self._name,
                error,
            )
        except Exception:  # whatever a client library raises: it must never take the endpoint down
            logger.log(
                logging.DEBUG if quiet else logging.ERROR,
                "The %s could not be sent and are kept.",
                self._name,
                exc_info=True,
            )
        else:
            return True
        return False


def _own_folder(root: Path) -> tuple[Path, IO[bytes]]:
    """A folder of this process, with the lock that says that it lives."""
    while True:
        folder = root / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        lock = (folder / _LOCK).open("wb")
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _LOCK).exists():  # nobody took the empty folder for one that was left
            return folder, lock
        lock.close()


def _adopted(root: Path, own: Path) -> list[Segment]:
    """Move what processes that are gone have left to this one's folder; the segments, oldest first."""
    for folder in sorted(root.iterdir()):
        if folder == own or not (folder / _LOCK).exists():
            continue
        with (folder / _LOCK).open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            for path in folder.iterdir():
                if path.name != _LOCK:
                    path.replace(own / path.name.removesuffix(".open"))
            shutil.rmtree(folder, ignore_errors=True)
    found = []
    for path in sorted(path for path in own.iterdir() if path.name != _LOCK):
        name, _, kind = path.name.rpartition(".")
        count = len(_frames(path.read_bytes()))
        found.append(Segment(name.replace("_", "/", 1), kind, count, path.stat().st_size, path))
    if found:
        logger.info("%d records that an earlier process left are sent now.", sum(one.count for one in found))
    return found


def _frames(data: bytes) -> list[bytes]:
    """The whole frames of a segment, up to the first that is torn."""
    records, at = [], 0
    while at + _HEAD.size <= len(data):
        length, check = _HEAD.unpack_from(data, at)
        record = data[at + _HEAD.size : at + _HEAD.size + length]
        if len(record) < length or zlib.crc32(record) != check:
            break
        records.append(record)
        at += _HEAD.size + length
    return records


def _cut(stream: IO[bytes], end: int) -> None:
    """Take back what was half written; where even that fails, the reader stops at the torn frame."""
    with stream, suppress(OSError):
        os.ftruncate(stream.fileno(), end)
