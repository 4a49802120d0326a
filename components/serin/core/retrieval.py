"""Search in an index artefact: dense and full-text rankings fused by reciprocal rank.

An index artefact holds ``index.json`` (what it is, and the embedder's fingerprint) and the Lance table ``chunks``.
The vectors are read into memory once and compared exactly (16 ms for 100,000 of them); full text is ranked by BM25
in the table.  A reader never writes, and several threads may search through one.

A chunk with access labels is found by a caller who has one of them, and by nobody else; both rankings are filtered
before they rank, so that what a caller may not read changes nothing of what he gets.
"""

import json
import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from serin.core.embedding import Embedder
from serin.core.errors import IntegrityError, StorageError
from serin.core.query import Query, QueryVectors

if TYPE_CHECKING:
    import numpy as np

INDEX_FILE = "index.json"
TABLE = "chunks"
SCHEMA = 1
RRF_K = 60
"""Cormack, Clarke and Buettcher (2009): how little the first ranks stand out."""
DEPTH = 50
"""Hits of each ranking that are fused."""
SAME_SCORE = 4
"""Decimals of a cosine that count when hits are ordered; below them machines differ."""

Mode = Literal["hybrid", "dense", "lexical"]
COLUMNS = ("chunk_id", "document_id", "title", "text", "valid_from", "valid_until")
ACCESS = "access"
"""List column of access labels; a table of an earlier version has none, and all its chunks are public."""
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@/-]{0,63}")
"""What an access label may be."""
PUBLIC: frozenset[str] = frozenset()


class IndexInfo(BaseModel):
    """``index.json``: what a reader must know before it opens the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA
    embedder: str
    """Name of the embedder."""
    fingerprint: str
    """The embedder's fingerprint: queries embedded by another one are refused."""
    dimensions: int
    num_documents: int
    num_chunks: int
    lexical_language: str
    """Language of the stemmer and stop words, as Lance names it; empty: neither."""


@dataclass(frozen=True)
class Hit:
    """A chunk that was found."""

    chunk_id: str
    document_id: str
    title: str
    """The document's title and the headings above the chunk."""
    text: str
    score: float
    """Cosine similarity to the query, -1 to 1, whichever ranking found it."""
    rank_score: float
    """What the hits are ordered by: reciprocal ranks (hybrid), cosine (dense) or BM25 (lexical)."""


class IndexReader:
    """Read-only search; make one with ``open``."""

    def __init__(self, path: Path, info: IndexInfo, embedder: Embedder, table: Any) -> None:
        self.path, self.info, self.embedder = path, info, embedder
        self._table = table
        self._queries = QueryVectors(embedder)
        restrictable = ACCESS in table.schema.names
        columns = [*COLUMNS, "vector", *([ACCESS] if restrictable else [])]
        rows = table.search().select(columns).to_arrow().sort_by("chunk_id")
        vectors = rows["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        self._vectors: np.ndarray = vectors.reshape(rows.num_rows, info.dimensions)  # (chunks, dimensions)
        self._rows: dict[str, list[str]] = {name: rows[name].to_pylist() for name in COLUMNS}
        access = rows[ACCESS].to_pylist() if restrictable else []
        self._access: dict[int, frozenset[str]] = {i: frozenset(labels) for i, labels in enumerate(access) if labels}
        self._position = {chunk_id: i for i, chunk_id in enumerate(self._rows["chunk_id"])}

    @classmethod
    def open(cls, artifact_path: Path, embedder: Embedder | None = None) -> Self:
        """Open an index artefact's folder.

        Args:
            artifact_path: ``Artifact.path`` of an artefact of kind 'index'.
            embedder: a loaded embedder to share; None loads the one that the index names.

        Raises:
            StorageError: the folder holds no index.
            IntegrityError: ``index.json`` cannot be read, or the embedder is not the one that made the index.
        """
        info = read_info(artifact_path)
        embedder = embedder or Embedder.load(info.embedder)
        if embedder.fingerprint != info.fingerprint:
            raise IntegrityError(
                f"The index {artifact_path.name} was made by embedder {info.embedder} ({info.fingerprint[:12]}), not by"
                f" {embedder.name} ({embedder.fingerprint[:12]}): use that embedder, or build the index again."
            )
        import lancedb

        try:
            table = lancedb.connect(artifact_path).open_table(TABLE)
        except ValueError as error:
            raise StorageError(f"{artifact_path} holds no table {TABLE!r}: build the index again.") from error
        return cls(artifact_path, info, embedder, table)

    def search(
        self,
        query: str | Query,
        *,
        max_passages: int,
        min_score: float = 0.0,
        mode: Mode = "hybrid",
        at: date | None = None,
        labels: AbstractSet[str] = PUBLIC,
    ) -> list[Hit]:
        """The chunks that fit a query best.

        Args:
            query: what was asked; with earlier turns of the dialogue, they count for a fraction of the last one.
            max_passages: hits at most.
            min_score: hits whose cosine similarity is below this are left out, in every mode.
            mode: which rankings count.
            at: leave out documents that are not valid on this day; None looks at no dates.
            labels: the caller's access labels; chunks that have labels need one of these.

        Returns:
            Hits, best first; equal ones in the order of their ids.
        """
        query = Query(query) if isinstance(query, str) else query
        if not query.text.strip() or max_passages < 1 or not self._position:
            return []
        vector, weights = self._queries.of(query)
        scores: np.ndarray = self._vectors @ vector  # (chunks,)
        seen = _Seen(self._visible(at, labels), _condition(at, labels, restricted=bool(self._access)))
        depth = max(DEPTH, 2 * max_passages)
        lexical = {} if mode == "dense" else self._lexical(query, weights, depth, seen)
        dense = [] if mode == "lexical" else _dense(scores, depth, seen)
        ranked = _fused(scores, dense, lexical, mode)
        kept = [i for i in sorted(ranked, key=lambda i: (-ranked[i], i)) if scores[i] >= min_score]
        return [self._hit(i, float(scores[i]), ranked[i]) for i in kept[:max_passages]]

    def documents(self, at: date | None = None, labels: AbstractSet[str] = PUBLIC) -> set[str]:
        """Ids of the documents that a search on a day, by a caller with these labels, can find."""
        mask = self._visible(at, labels)
        return {name for i, name in enumerate(self._rows["document_id"]) if mask is None or mask[i]}

    def _lexical(self, query: Query, weights: list[float], depth: int, seen: "_Seen") -> dict[int, float]:
        words = _words(query, weights)
        search = self._table.search(words, query_type="fts", fts_columns="search_text")
        if seen.condition:
            search = search.where(seen.condition, prefilter=True)
        found = search.select(["chunk_id", "_score"]).limit(depth).to_list()
        ranked = {self._position[row["chunk_id"]]: float(row["_score"]) for row in found}
        return {i: score for i, score in ranked.items() if seen.mask is None or seen.mask[i]}

    def _visible(self, at: date | None, labels: AbstractSet[str]) -> "np.ndarray | None":
        """Which chunks may be found, (chunks,) of bool; None: all."""
        import numpy as np

        hidden = [i for i, needed in self._access.items() if not needed & labels]
        if at is None and not hidden:
            return None
        mask = np.ones(len(self._position), dtype=bool) if at is None else self._valid(at)
        mask[hidden] = False
        return mask

    def _valid(self, at: date) -> "np.ndarray":
        day = at.isoformat()
        starts, ends = self._dates
        return ((starts == "") | (starts <= day)) & ((ends == "") | (ends >= day))

    @cached_property
    def _dates(self) -> tuple["np.ndarray", "np.ndarray"]:
        import numpy as np

        return np.array(self._rows["valid_from"]), np.array(self._rows["valid_until"])

    def _hit(self, i: int, score: float, rank_score: float) -> Hit:
        return Hit(
            chunk_id=self._rows["chunk_id"][i],
            document_id=self._rows["document_id"][i],
            title=self._rows["title"][i],
            text=self._rows["text"][i],
            score=score,
            rank_score=rank_score,
        )


def read_info(artifact_path: Path) -> IndexInfo:
    """What an index artefact says of itself.

    Raises:
        StorageError: the folder holds no index.
        IntegrityError: its ``index.json`` is not one of this version.
    """
    path = artifact_path / INDEX_FILE
    if not path.is_file():
        raise StorageError(f"{artifact_path} holds no {INDEX_FILE}: give the folder of an index artefact.")
    try:
        info = IndexInfo.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    if info.schema_version != SCHEMA:
        raise IntegrityError(f"{path} has schema {info.schema_version}, not {SCHEMA}: build the index again.")
    return info


def epoch(artifact_path: Path, at: date) -> date | None:
    """A day that finds what ``at`` finds, and stays the same until documents begin or end to be valid.

    For keys of what a search found: they need not change from day to day.  None: no document of the index has dates.
    """
    import lancedb

    columns = ["valid_from", "valid_until"]
    rows = lancedb.connect(artifact_path).open_table(TABLE).search().select(columns).to_arrow()
    starts, ends = ({date.fromisoformat(day) for day in set(rows[name].to_pylist()) if day} for name in columns)
    changes = starts | {day + timedelta(days=1) for day in ends if day < date.max}
    if not changes:
        return None
    return max((day for day in changes if day <= at), default=min(changes) - timedelta(days=1))


@dataclass(frozen=True)
class _Seen:
    """What a search may find, said twice: for the vectors in memory and for the table."""

    mask: "np.ndarray | None"
    condition: str


def access_labels(value: str) -> tuple[str, ...]:
    """The labels in a document's metadata ``access``: separated by commas or spaces; sorted, each once.

    Raises:
        ValueError: one of them is no label (letters, digits and ``_.:@/-``, at most 64).
    """
    labels = sorted({label for label in re.split(r"[,\s]+", value) if label})
    for label in labels:
        if not LABEL.fullmatch(label):
            raise ValueError(f"{label!r} is no access label: letters, digits and _.:@/- make one, at most 64")
    return tuple(labels)


def _condition(at: date | None, labels: AbstractSet[str], *, restricted: bool) -> str:
    """The filter in the table's SQL; empty: none."""
    parts = []
    if at is not None:
        day = at.isoformat()
        parts.append(f"(valid_from = '' OR valid_from <= '{day}') AND (valid_until = '' OR valid_until >= '{day}')")
    if restricted:
        known = sorted(label for label in labels if LABEL.fullmatch(label))  # nothing else can be in the table
        having = f" OR array_has_any({ACCESS}, [{', '.join(repr(label) for label in known)}])" if known else ""
        parts.append(f"({ACCESS} IS NULL OR array_length({ACCESS}) IS NULL OR array_length({ACCESS}) = 0{having})")
    return " AND ".join(parts)


def _words(query: Query, weights: list[float]) -> Any:
    """The full-text query: the last turn's words, and those of earlier turns for a fraction."""
    from lancedb.query import BooleanQuery, MatchQuery, Occur

    earlier = [(text, weight) for text, weight in zip(query.earlier, weights, strict=True) if weight]
    if not earlier:
        return query.text
    parts = [(query.text, 1.0), *earlier]
    match: Any = MatchQuery  # its types demand arguments that have defaults
    return BooleanQuery([(Occur.SHOULD, match(text, "search_text", boost=weight)) for text, weight in parts])


def _dense(scores: "np.ndarray", depth: int, seen: _Seen) -> list[int]:
    import numpy as np

    positions = np.arange(len(scores)) if seen.mask is None else np.flatnonzero(seen.mask)
    rounded = np.round(scores[positions], SAME_SCORE)
    best = np.argsort(-rounded, kind="stable")[:depth]
    return [int(i) for i in positions[best]]


def _fused(scores: "np.ndarray", dense: list[int], lexical: dict[int, float], mode: Mode) -> dict[int, float]:
    if mode == "dense":
        return {i: round(float(scores[i]), SAME_SCORE) for i in dense}
    if mode == "lexical":
        return lexical
    return reciprocal_ranks([dense, sorted(lexical, key=lambda i: (-lexical[i], i))])


def reciprocal_ranks(rankings: list[list[int]], k: int = RRF_K) -> dict[int, float]:
    """Fuse rankings: each adds 1 / (k + rank) to what it holds, the first rank being 1."""
    fused: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            fused[item] = fused.get(item, 0.0) + 1.0 / (k + rank)
    return fused
