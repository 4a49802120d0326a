"""Build the index of a documents artefact: chunks, embeddings, one Lance table with a full-text index.

Run it alone with ``serin index``.  The artefact's digest names its chunks, their dates and the embedder, because
Lance gives its files random names.
"""

import json
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serin.core.artifacts import Artifact, Built
from serin.core.context import StageContext
from serin.core.digests import digest_of_text
from serin.core.embedding import Embedder, fingerprint_of
from serin.core.errors import ConfigError, InputError
from serin.core.records import Document, read_jsonl
from serin.core.retrieval import ACCESS, INDEX_FILE, TABLE, IndexInfo, access_labels
from serin.index.chunks import Chunk, chunk_document
from serin.index.config import IndexConfig
from serin.index.embeddings import embed

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

DOCUMENTS_FILE = "documents.jsonl"
STEMMERS = {
    "ar": "Arabic",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "hu": "Hungarian",
    "it": "Italian",
    "nl": "Dutch",
    "no": "Norwegian",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sv": "Swedish",
    "ta": "Tamil",
    "tr": "Turkish",
}
"""ISO 639-1 to the names of Lance's stemmers."""


def build_index(config: IndexConfig, documents: Artifact, context: StageContext) -> Artifact:
    """The index of these documents; an artefact of kind 'index', which ``core.retrieval`` opens.

    Args:
        config: chunking and embedder.
        documents: artefact of kind 'documents'.
        context: store, progress.

    Raises:
        InputError: there are no documents, two share an id, or a date or an access label is not one.
    """
    fingerprint = fingerprint_of(config.embedder)
    settings = {**config.dump(), "embedder": fingerprint}  # a folder's path says nothing about what is in it

    def build(output: Path, scratch: Path) -> Built:
        return _build(config, fingerprint, documents, context, output)

    index = context.produce("index", build, inputs={"documents": documents}, config=settings)
    context.tracker.params({"index.embedder": config.embedder, "index.max_chars": config.max_chars})
    context.tracker.metrics({f"index.{name}": index.metadata[name] for name in ("documents", "chunks", "seconds")})
    return index


def _build(config: IndexConfig, fingerprint: str, documents: Artifact, context: StageContext, output: Path) -> Built:
    started = time.monotonic()
    records = _read(documents)
    chunks = [chunk for record in records for chunk in chunk_document(record, config)]
    if not chunks:
        raise InputError(f"The {len(records)} documents of {documents.uri} hold no text: check the source's files.")
    context.progress(f"{len(chunks)} chunks of {len(records)} documents", 0.02)

    def progress(done: int, total: int) -> None:
        context.progress(f"embedded {done} of {total} chunks", 0.05 + 0.85 * done / total)

    texts = [chunk.search_text for chunk in chunks]
    vectors, computed = embed(
        texts, fingerprint, lambda: Embedder.load(config.embedder), context.store.storage, progress
    )
    context.progress("writing the table and its word index", 0.92)
    language = _stemmer(config.language, records)
    _write_table(output, chunks, vectors, language)
    info = IndexInfo(
        embedder=config.embedder,
        fingerprint=fingerprint,
        dimensions=vectors.shape[1],
        num_documents=len(records),
        num_chunks=len(chunks),
        lexical_language=language,
    )
    (output / INDEX_FILE).write_text(json.dumps(info.model_dump(), indent=1), encoding="utf-8")
    identity = sorted(_identity(chunk) for chunk in chunks)
    return Built(
        metadata={
            "documents": len(records),
            "chunks": len(chunks),
            "chars": sum(len(chunk.text) for chunk in chunks),
            "embedded": computed,
            "restricted_chunks": sum(bool(chunk.access) for chunk in chunks),
            "languages": dict(Counter(record.language for record in records).most_common()),
            "lexical_language": language,
            "embedder": config.embedder,
            "fingerprint": fingerprint,
            "seconds": round(time.monotonic() - started, 2),
        },
        content={"chunks": identity, "fingerprint": fingerprint, "lexical_language": language},
    )


def _identity(chunk: Chunk) -> list[Any]:
    labels = [list(chunk.access)] if chunk.access else []  # an index without labels keeps the digest that it had
    text = digest_of_text(chunk.search_text)
    return [chunk.id, text, chunk.title, chunk.language, chunk.valid_from, chunk.valid_until, *labels]


def _read(documents: Artifact) -> list[Document]:
    records = read_jsonl(documents.path / DOCUMENTS_FILE, Document)
    if not records:
        raise InputError(
            f"{documents.uri} holds no documents: an index needs Markdown, text or HTML files, or rows with 'text'."
        )
    twice = [id_ for id_, count in Counter(record.id for record in records).items() if count > 1]
    if twice:
        raise InputError(f"Document id {twice[0]!r} occurs twice in {documents.uri}: ids must be unique.")
    for record in records:
        for name in ("valid_from", "valid_until"):
            _check_date(record, name)
        try:
            access_labels(record.metadata.get("access", ""))
        except ValueError as error:
            raise InputError(f"Document {record.id}: access holds {error}.") from error
    return records


def _check_date(document: Document, name: str) -> None:
    value = document.metadata.get(name, "")
    try:
        usable = not value or date.fromisoformat(value).isoformat() == value
    except ValueError:
        usable = False
    if not usable:
        raise InputError(f"Document {document.id}: {name} is {value!r}, not a date like 2025-12-31.")


def _stemmer(language: str, records: list[Document]) -> str:
    if language == "auto":
        counts = Counter(record.language for record in records)
        language = min(counts, key=lambda name: (-counts[name], name))
        return STEMMERS.get(language, "")
    if language and language not in STEMMERS:
        raise ConfigError(f"'language' is {language!r}: use 'auto', '' or one of {', '.join(STEMMERS)}.")
    return STEMMERS.get(language, "")


def _write_table(output: Path, chunks: list[Chunk], vectors: "np.ndarray", language: str) -> None:
    import lancedb
    from lancedb.index import FTS

    table = lancedb.connect(output).create_table(TABLE, data=_arrow(chunks, vectors))
    linguistic: dict[str, Any] = {"stem": bool(language), "remove_stop_words": bool(language)}
    if language:
        linguistic["language"] = language
    table.create_index("search_text", config=FTS(with_position=False, ascii_folding=True, **linguistic))


def _arrow(chunks: list[Chunk], vectors: "np.ndarray") -> "pa.Table":
    import pyarrow as pa

    names = ("document_id", "title", "text", "search_text", "language", "valid_from", "valid_until")
    columns: dict[str, Any] = {"chunk_id": pa.array([chunk.id for chunk in chunks], pa.string())}
    columns |= {name: pa.array([getattr(chunk, name) for chunk in chunks], pa.string()) for name in names}
    columns[ACCESS] = pa.array([list(chunk.access) for chunk in chunks], pa.list_(pa.string()))
    columns["ordinal"] = pa.array([chunk.ordinal for chunk in chunks], pa.int32())
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float32()), vectors.shape[1])
    return pa.table(columns)
