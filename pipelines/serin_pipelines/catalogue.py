"""A catalogue of a store's records for questions of lineage: derived, incremental, and safe to delete.

Releases, manifests, journal entries and batches of events never change once written, so each is read once and what
questions need of it is kept in a SQLite file below SERIN_HOME.  The records stay the truth: what an answer shows is
read from them again, and the catalogue only says where to look.
"""

import io
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from serin.core.artifacts import MANIFEST, ArtifactStore, Manifest, home
from serin.core.digests import digest_of_text
from serin.core.errors import InputError, IntegrityError, SerinError, StorageError
from serin.core.events import EndpointEvent
from serin.core.journal import GENESIS, Entry
from serin.core.release import Release
from serin.core.storage import Storage, is_remote, local_path, storage_for

logger = logging.getLogger(__name__)

VERSION = 1
PARTS = ("model", "index", "data")
ITEM_FILES = {"documents": ("documents.jsonl",), "dataset": ("train.jsonl",)}
"""Artefact kind to the files whose records people ask for by id."""
WAIT_S = 60.0
COMMIT_EVERY = 500
SCHEMA = """
CREATE TABLE release (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE part (release TEXT, role TEXT, digest TEXT, uri TEXT, PRIMARY KEY (release, role)) WITHOUT ROWID;
CREATE INDEX part_uri ON part (uri);
CREATE TABLE manifest (uri TEXT PRIMARY KEY, kind TEXT, digest TEXT, lineage TEXT, run TEXT,
                       whole INTEGER) WITHOUT ROWID;
CREATE INDEX manifest_digest ON manifest (digest);
CREATE INDEX manifest_run ON manifest (run);
CREATE INDEX manifest_lineage ON manifest (lineage);
CREATE TABLE edge (target TEXT, source TEXT, PRIMARY KEY (source, target)) WITHOUT ROWID;
CREATE TABLE item (id TEXT, uri TEXT, PRIMARY KEY (id, uri)) WITHOUT ROWID;
CREATE TABLE entry (endpoint TEXT, number INTEGER, time TEXT, kind TEXT, release TEXT, lineage TEXT, run TEXT,
                    hash TEXT, PRIMARY KEY (endpoint, number)) WITHOUT ROWID;
CREATE INDEX entry_release ON entry (release);
CREATE INDEX entry_run ON entry (run);
CREATE INDEX entry_lineage ON entry (lineage);
CREATE TABLE batch (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE event (trace TEXT PRIMARY KEY, endpoint TEXT, batch TEXT, release TEXT) WITHOUT ROWID;
"""

Progress = Callable[[str, int], None]


class Catalogue:
    """What a store's records say, looked up by id; ``open`` brings it up to date first."""

    def __init__(self, store: ArtifactStore, connection: sqlite3.Connection) -> None:
        self.store, self._db = store, connection

    @classmethod
    def open(cls, store: ArtifactStore, progress: Progress = lambda what, count: None) -> "Catalogue":
        """The catalogue of a store, with everything that was written since it was last opened.

        Args:
            store: whose records.
            progress: told what is read and how many were, every few hundred.

        Raises:
            StorageError: the store cannot be read.
            IntegrityError: a journal does not hold.
        """
        path = home() / "cache" / "lineage" / f"{digest_of_text(store.uri)[:24]}.db"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return cls._opened(path, store, progress)
        except sqlite3.DatabaseError:
            logger.warning("The lineage catalogue %s was damaged and is made again.", path)
            path.unlink(missing_ok=True)
            return cls._opened(path, store, progress)

    @classmethod
    def _opened(cls, path: Path, store: ArtifactStore, progress: Progress) -> "Catalogue":
        connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            if connection.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                _make(connection)
            found = cls(store, connection)
            found._read_new(progress)
        except BaseException:
            connection.close()
            raise
        return found

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of a query."""
        with closing(self._db.execute(query, values)) as cursor:
            return cursor.fetchall()

    def releases_behind(self, uris: Iterable[str]) -> dict[str, set[str]]:
        """Releases of which a part is one of these artefacts or was made from one: release to roles."""
        found: dict[str, set[str]] = {}
        for uri in set(uris):
            for release, role in self.rows(_DESCENDANTS, uri):
                found.setdefault(release, set()).add(role)
        return found

    def in_time_order(self, releases: Iterable[str]) -> list[str]:
        """Releases, the first journalled first; those that no journal names come before all others."""
        first = {one: self.rows("SELECT min(time) FROM entry WHERE release = ?", one)[0][0] or "" for one in releases}
        return sorted(first, key=lambda release: (first[release], release))

    def _read_new(self, progress: Progress) -> None:
        storage = self.store.storage
        self._db.execute("BEGIN IMMEDIATE")  # two that read at once would do the work twice
        try:
            self._read_releases(storage, progress)
            for endpoint in _children(storage, "endpoints/"):
                self._read_journal(storage, endpoint, progress)
                self._read_events(storage, endpoint, progress)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("COMMIT")  # what was read is true; only the rest is missing
            raise

    def _read_releases(self, storage: Storage, progress: Progress) -> None:
        known = {row[0] for row in self.rows("SELECT id FROM release")}
        new = [name for name in _children(storage, "releases/") if name not in known]
        for number, release_id in enumerate(new, start=1):
            try:
                release = Release.model_validate_json(storage.read(f"releases/{release_id}/release.json"))
            except (ValueError, StorageError):
                continue  # half-made, or damaged: whoever asks for it by its id is told
            parts = [getattr(release, role) for role in PARTS]
            self._db.executemany(
                "INSERT OR REPLACE INTO part VALUES (?, ?, ?, ?)",
                [(release_id, role, part.digest, part.uri) for role, part in zip(PARTS, parts, strict=True)],
            )
            known_parts = [self._read_manifests(part.uri) for part in parts]  # each, also after one that is missing
            if all(known_parts):
                self._db.execute("INSERT INTO release VALUES (?)", (release_id,))
            if number % COMMIT_EVERY == 0:
                progress("releases", number)
                self._db.execute("COMMIT")
                self._db.execute("BEGIN IMMEDIATE")

    def _read_manifests(self, uri: str) -> bool:
        """Whether everything behind an artefact is known; what is missing is looked for again next time."""
        if self.rows("SELECT 1 FROM manifest WHERE uri = ? AND whole", uri):
            return True
        try:
            storage = storage_for(uri)
            manifest = Manifest.model_validate_json(storage.read(MANIFEST))
        except (SerinError, ValueError):
            return False
        known = [self._read_manifests(source) for source in manifest.sources.values()]
        self._db.executemany(
            "INSERT OR IGNORE INTO edge VALUES (?, ?)", [(uri, source) for source in manifest.sources.values()]
        )
        self._db.executemany("INSERT OR IGNORE INTO item VALUES (?, ?)", [(i, uri) for i in _items(storage, manifest)])
        self._db.execute(
            "INSERT OR REPLACE INTO manifest VALUES (?, ?, ?, ?, ?, ?)",
            (uri, manifest.kind, manifest.digest, manifest.lineage_id, manifest.mlflow_run_id, all(known)),
        )
        return all(known)

    def _read_journal(self, storage: Storage, endpoint: str, progress: Progress) -> None:
        last = self.rows("SELECT number, hash FROM entry WHERE endpoint = ? ORDER BY number DESC LIMIT 1", endpoint)
        number, previous = last[0] if last else (0, GENESIS)
        while True:
            number += 1
            key = f"endpoints/{endpoint}/journal/{number:08d}.json"
            if not storage.exists(key):
                return
            entry = read_entry(storage, endpoint, number)
            if entry.previous_hash != previous:
                raise IntegrityError(
                    f"Journal of {endpoint!r} does not hold at entry {number}: it was edited, removed or reordered; "
                    "restore it from a backup before deploying."
                )
            self._db.execute(
                "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    endpoint,
                    number,
                    entry.time,
                    entry.kind,
                    entry.release_id,
                    entry.lineage_id,
                    entry.mlflow_run_id,
                    entry.hash,
                ),
            )
            previous = entry.hash
            if number % COMMIT_EVERY == 0:
                progress(f"journal entries of {endpoint}", number)

    def _read_events(self, storage: Storage, endpoint: str, progress: Progress) -> None:
        known = {row[0] for row in self.rows("SELECT key FROM batch")}
        new = [key for key in _batches(storage, f"endpoints/{endpoint}/events/") if key not in known]
        for number, key in enumerate(new, start=1):
            rows = [(trace, endpoint, key, release) for trace, release in _traces(storage, key)]
            self._db.executemany("INSERT OR REPLACE INTO event VALUES (?, ?, ?, ?)", rows)
            self._db.execute("INSERT INTO batch VALUES (?)", (key,))
            if number % COMMIT_EVERY == 0:
                progress(f"batches of events of {endpoint}", number)


_DESCENDANTS = """
WITH RECURSIVE made(uri) AS (
    VALUES (?) UNION SELECT edge.target FROM edge JOIN made ON edge.source = made.uri
) SELECT DISTINCT part.release, part.role FROM made CROSS JOIN part ON part.uri = made.uri
"""


def events_of(storage: Storage, batch: str, trace_id: str) -> list[EndpointEvent]:
    """The events of one request in a batch, in time order.

    Raises:
        InputError: the batch is not readable Parquet.
        StorageError: it is gone.
    """
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        table = pq.ParquetFile(io.BytesIO(storage.read(batch))).read()  # read_table would import pandas
        found = [place for place, one in enumerate(table["trace_id"].to_pylist()) if one == trace_id]
        rows = [row for place in found for row in table.slice(place, 1).to_pylist()]
    except ArrowException as error:
        raise InputError(f"{batch} is not readable Parquet: {error}") from error
    return sorted((EndpointEvent.model_validate(row) for row in rows), key=lambda event: event.time)


def read_entry(storage: Storage, endpoint: str, number: int) -> Entry:
    """An entry of a journal, its hash recomputed.

    Raises:
        IntegrityError: it was edited.
        StorageError: it is gone.
    """
    try:
        entry = Entry.model_validate_json(storage.read(f"endpoints/{endpoint}/journal/{number:08d}.json"))
    except ValueError as error:
        raise IntegrityError(f"Entry {number} of the journal of {endpoint!r} cannot be read: restore it.") from error
    if entry.number != number or entry.hash != entry.expected_hash():
        raise IntegrityError(f"Entry {number} of the journal of {endpoint!r} was edited: restore it from a backup.")
    return entry


def _make(connection: sqlite3.Connection) -> None:
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    connection.execute("BEGIN IMMEDIATE")
    for (name,) in tables:
        connection.execute(f'DROP TABLE "{name}"')
    for statement in SCHEMA.split(";"):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def _children(storage: Storage, prefix: str) -> list[str]:
    """Names of the folders right below a prefix."""
    if is_remote(storage.uri):
        depth = prefix.count("/")
        return sorted({key.split("/")[depth] for key in storage.keys(prefix) if key.count("/") > depth})
    folder = local_path(storage.uri) / prefix
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _batches(storage: Storage, prefix: str) -> Iterator[str]:
    """Keys of the batches of events; other records beside them are left out."""
    for key in storage.keys(prefix):
        if key.endswith(".parquet"):
            yield key


def _traces(storage: Storage, key: str) -> list[tuple[str, str]]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        table = pq.ParquetFile(io.BytesIO(storage.read(key))).read(columns=["trace_id", "release_id"])
    except (ArrowException, OSError, KeyError) as error:
        logger.warning("%s is not a readable batch of events and is left out: %s", key, error)
        return []
    columns = [table.column(name).to_pylist() for name in ("trace_id", "release_id")]
    return list(zip(*columns, strict=True))


def _items(storage: Storage, manifest: Manifest) -> list[str]:
    """Ids of the records in an artefact that people ask for."""
    found: list[str] = []
    for name in ITEM_FILES.get(manifest.kind, ()):
        if name in manifest.files:
            lines = storage.read(name).splitlines()
            found += [str(json.loads(line).get("id", "")) for line in lines if line.strip()]
    return found
