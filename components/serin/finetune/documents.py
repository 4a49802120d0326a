"""The documents that a model may learn from."""

import logging
from pathlib import Path

from serin.core.records import Document, read_jsonl

logger = logging.getLogger(__name__)

ACCESS = "access"
"""Metadata with the labels of those who may read a document; empty: everybody may."""


def public_documents(folder: Path) -> list[Document]:
    """An artefact's documents without those that only some may read: a model tells whoever asks what it has learned."""
    every = read_jsonl(folder / "documents.jsonl", Document)
    public = [document for document in every if not document.metadata.get(ACCESS, "").strip()]
    if len(public) < len(every):
        logger.info("%d documents with access labels are not learned from.", len(every) - len(public))
    return public
