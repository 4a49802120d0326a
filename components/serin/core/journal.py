"""The journal of an endpoint: what was decided, on which numbers, by which policy, approved by whom.

One entry is one object ``endpoints/<endpoint>/journal/<number>.json``, created only if absent, holding the hash of
the entry before it.  So an append is atomic on files and on S3, two writers cannot both take a number, and an
edited, removed or reordered entry breaks the chain.  The champion of an endpoint is what its journal says.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from serin.core.digests import digest_of
from serin.core.errors import AlreadyExistsError, FencedError, InputError, IntegrityError, StorageError
from serin.core.storage import Storage

APPEND_TRIES = 20
GENESIS = "0" * 64


class Entry(BaseModel):
    """One line of the journal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    time: str
    """UTC, ISO 8601."""
    kind: str
    """release, gate, rollout, command, promotion, rollback, monitor."""
    release_id: str
    decision: str
    reasons: tuple[str, ...] = ()
    evidence: dict[str, Any] = {}
    policy_version: str = ""
    approved_by: str = ""
    lineage_id: str = ""
    mlflow_run_id: str = ""
    previous_hash: str
    hash: str

    def expected_hash(self) -> str:
        """SHA-256 over every field but the hash itself."""
        return digest_of(self.model_dump(mode="json", exclude={"hash"}))


class Journal:
    """The journal of one endpoint in a store."""

    def __init__(self, storage: Storage, endpoint: str) -> None:
        self._storage = storage
        self.endpoint = endpoint
        self._prefix = f"endpoints/{endpoint}/journal/"

    def entries(self, known: Sequence[Entry] = ()) -> list[Entry]:
        """All entries, oldest first, the chain verified.

        Args:
            known: what an earlier call gave: only what came since is read and verified.

        Raises:
            IntegrityError: naming the first entry that does not fit.
        """
        keys, entries = self._keys(), list(known)
        if len(keys) < len(known):
            raise self._broken(len(keys) + 1)
        previous = known[-1].hash if known else GENESIS
        for position, key in enumerate(keys[len(known) :], start=len(known) + 1):
            entry = self._read(key)
            if entry.number != position or entry.previous_hash != previous or entry.hash != entry.expected_hash():
                raise self._broken(position)
            entries.append(entry)
            previous = entry.hash
        return entries

    def append(
        self,
        kind: str,
        *,
        release_id: str,
        decision: str,
        reasons: tuple[str, ...] = (),
        evidence: Mapping[str, Any] | None = None,
        policy_version: str = "",
        approved_by: str = "",
        lineage_id: str = "",
        mlflow_run_id: str = "",
        champion: str | None = None,
        fence: int | None = None,
    ) -> Entry:
        """Add an entry at the end.

        With ``champion``, only while that release serves: two that decide on the same champion cannot both be carried
        out.  With ``fence``, only while no entry carries a higher one: whoever lost a lease cannot write any more.

        Raises:
            FencedError: an entry carries a higher fence.
            InputError: another release serves than ``champion``.
            IntegrityError: the journal so far does not hold.
            StorageError: the store refuses, or other writers keep winning.
        """
        for _ in range(APPEND_TRIES):
            entries = self.entries()
            if champion is not None and _served(entries)[-1:] != [champion]:
                raise InputError(f"Release {champion[:12]} no longer serves {self.endpoint!r}: look at what does.")
            if fence is not None and (later := _highest_fence(entries)) > fence:
                raise FencedError(f"Lease {later} drives {self.endpoint!r} now: this controller (lease {fence}) stops.")
            draft = Entry(
                number=len(entries) + 1,
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                kind=kind,
                release_id=release_id,
                decision=decision,
                reasons=reasons,
                evidence=json.loads(json.dumps(dict(evidence or {}))),
                policy_version=policy_version,
                approved_by=approved_by,
                lineage_id=lineage_id,
                mlflow_run_id=mlflow_run_id,
                previous_hash=entries[-1].hash if entries else GENESIS,
                hash="",
            )
            entry = draft.model_copy(update={"hash": draft.expected_hash()})
            try:
                key = f"{self._prefix}{entry.number:08d}.json"
                self._storage.write(key, entry.model_dump_json().encode(), if_absent=True)
            except AlreadyExistsError:
                continue
            return entry
        raise StorageError(f"Journal of {self.endpoint!r} is being written by others: try again in a minute.")

    def length(self) -> int:
        """Number of entries, without reading them."""
        return len(self._keys())

    def champion(self) -> str | None:
        """Release id that serves the endpoint now, or None before the first promotion."""
        return self.champion_of(self.entries())

    @staticmethod
    def champion_of(entries: list[Entry]) -> str | None:
        """The same, of entries that were read already."""
        serving = _served(entries)
        return serving[-1] if serving else None

    def previous(self) -> str | None:
        """Release id that served before the champion: where a rollback goes."""
        serving = _served(self.entries())
        return serving[-2] if len(serving) > 1 else None

    def find(self, *, kind: str | None = None, release_id: str | None = None) -> list[Entry]:
        """Entries of a kind, of a release, or both; oldest first."""
        return [
            entry
            for entry in self.entries()
            if (kind is None or entry.kind == kind) and (release_id is None or entry.release_id == release_id)
        ]

    def _broken(self, position: int) -> IntegrityError:
        return IntegrityError(
            f"Journal of {self.endpoint!r} does not hold at entry {position}: it was edited, removed or "
            "reordered; restore it from a backup before deploying."
        )

    def _keys(self) -> list[str]:
        return [key for key in self._storage.keys(self._prefix) if key.endswith(".json")]

    def _read(self, key: str) -> Entry:
        try:
            return Entry.model_validate_json(self._storage.read(key))
        except ValueError as error:
            raise IntegrityError(f"Journal entry {key} cannot be read: {error}") from error


def served(history: Iterable[tuple[str, str]]) -> list[str]:
    """Releases in the order in which they came to serve; those that were rolled back are gone.

    Args:
        history: kind and release id of each entry, oldest first.
    """
    serving: list[str] = []
    for kind, release_id in history:
        if kind == "promotion" and (not serving or serving[-1] != release_id):
            serving.append(release_id)
        elif kind == "rollback" and len(serving) > 1:
            serving.pop()
    return serving


def _highest_fence(entries: list[Entry]) -> int:
    return max((int(entry.evidence.get("fence", 0)) for entry in entries), default=0)


def _served(entries: list[Entry]) -> list[str]:
    return served((entry.kind, entry.release_id) for entry in entries)
