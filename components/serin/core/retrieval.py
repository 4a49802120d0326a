"""Search in an index artefact: dense and full-text rankings fused by reciprocal rank.

An index artefact holds ``index.json`` (what it is, and the embedder's fingerprint) and the Lance table ``chunks``.
The vectors are read into memory once and compared exactly (16 ms for 100,000 of them); full text is ranked by BM25
in the table.  A reader never writes, and several threads may search through one.
"""

import json
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from serin.core.embedding import Embedder
from serin.core.errors import IntegrityError, StorageError

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
        rows = table.search().select([*COLUMNS, "vector"]).to_arrow().sort_by("chunk_id")
        vectors = rows["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        self._vectors: np.ndarray = vectors.reshape(rows.num_rows, info.dimensions)  # (chunks, dimensions)
        self._rows: dict[str, list[str]] = {name: rows[name].to_pylist() for name in COLUMNS}
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
        query: str,
        *,
        max_passages: int,
        min_score: float = 0.0,
        mode: Mode = "hybrid",
        at: date | None = None,
    ) -> list[Hit]:
        """The chunks that fit a query best.

        Args:
            query: what was asked.
            max_passages: hits at most.
            min_score: hits whose cosine similarity is below this are left out, in every mode.
            mode: which rankings count.
            at: leave out documents that are not valid on this day; None looks at no dates.

        Returns:
            Hits, best first; equal ones in the order of their ids.
        """
        import numpy as np

        if not query.strip() or max_passages < 1 or not self._position:
            return []
        scores: np.ndarray = self._vectors @ self.embedder.encode([query])[0]  # (chunks,)
        ranked = self._ranked(query, scores, max(DEPTH, 2 * max_passages), mode, at)
        kept = [i for i in sorted(ranked, key=lambda i: (-ranked[i], i)) if scores[i] >= min_score]
        return [self._hit(i, float(scores[i]), ranked[i]) for i in kept[:max_passages]]

    def _ranked(self, query: str, scores: "np.ndarray", depth: int, mode: Mode, at: date | None) -> dict[int, float]:
        if mode == "dense":
            return {i: round(float(scores[i]), SAME_SCORE) for i in self._dense(scores, depth, at)}
        lexical = self._lexical(query, depth, at)
        if mode == "lexical":
            return lexical
        by_words = sorted(lexical, key=lambda i: (-lexical[i], i))
        return reciprocal_ranks([self._dense(scores, depth, at), by_words])

    def _dense(self, scores: "np.ndarray", depth: int, at: date | None) -> list[int]:
        import numpy as np

        positions = np.arange(len(scores)) if at is None else np.flatnonzero(self._valid(at))
        rounded = np.round(scores[positions], SAME_SCORE)
        best = np.argsort(-rounded, kind="stable")[:depth]
        return [int(i) for i in positions[best]]

    def _lexical(self, query: str, depth: int, at: date | None) -> dict[int, float]:
        search = self._table.search(query, query_type="fts", fts_columns="search_text")
        if at is not None:
            day = at.isoformat()
            search = search.where(
                f"(valid_from = '' OR valid_from <= '{day}') AND (valid_until = '' OR valid_until >= '{day}')",
                prefilter=True,
            )
        found = search.select(["chunk_id", "_score"]).limit(depth).to_list()
        return {self._position[row["chunk_id"]]: float(row["_score"]) for row in found}

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


def reciprocal_ranks(rankings: list[list[int]], k: int = RRF_K) -> dict[int, float]:
    """Fuse rankings: each adds 1 / (k + rank) to what it holds, the first rank being 1."""
    fused: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            fused[item] = fused.get(item, 0.0) + 1.0 / (k + rank)
    return fused
