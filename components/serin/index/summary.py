"""What the pipeline's page shows of an index."""

from serin.core.artifacts import Artifact


def summarise(index: Artifact) -> str:
    """A short Markdown page: what is in the index and how it was made."""
    facts = index.metadata
    languages = ", ".join(f"{name} {count}" for name, count in facts["languages"].items())
    rows = {
        "Documents": f"{facts['documents']} ({languages})",
        "Chunks": facts["chunks"],
        "Characters": facts["chars"],
        "Embedder": f"{facts['embedder']} ({facts['fingerprint'][:12]})",
        "Embedded anew": f"{facts['embedded']} (the rest were known)",
        "Word index": facts["lexical_language"] or "no stemming",
        "Seconds": facts["seconds"],
        "Digest": f"`{index.digest[:16]}`",
        "Where": f"`{index.uri}`",
    }
    return "# Index\n\n| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())
