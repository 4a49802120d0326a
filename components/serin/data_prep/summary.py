"""What the pipeline's page shows of a prepared source."""

from serin.core.artifacts import Artifact
from serin.core.records import SPLITS

MAX_FILES = 30


def summarise(dataset: Artifact, documents: Artifact) -> str:
    """A short Markdown page: what came in, what was kept, and why the rest was not."""
    facts = dataset.metadata
    lines = [
        "# Data",
        f"Source `{facts['source_uri']}`: {len(facts['files'])} files used, {len(facts['skipped'])} skipped.",
        "| split | conversations | groups |\n|---|---|---|\n"
        + "\n".join(f"| {name} | {facts['splits'][name]} | {facts['groups'][name]} |" for name in SPLITS),
        f"Documents: {documents.metadata['documents']} ({_counts(documents.metadata['languages'])})."
        f" Golden questions: {facts['golden']}. Conversations: {_counts(facts['languages'])}.",
        f"Not used: {_counts(facts['rejected'])}. Each is listed in `rejected.jsonl`.",
        f"Personal data masked: {_counts(facts['masked'])}. Texts repaired: {facts['repaired_texts']}."
        f" Placeholders written out: {facts['filled_placeholders']}.",
        _files(facts["files"], facts["skipped"]),
        f"Dataset `{dataset.digest[:16]}` at `{dataset.uri}`, documents `{documents.digest[:16]}` at"
        f" `{documents.uri}`, {facts['seconds']} s.",
    ]
    return "\n\n".join(lines) + "\n"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _files(files: dict[str, dict[str, int]], skipped: dict[str, str]) -> str:
    rows = [f"| {name} | {_counts(kinds)} |" for name, kinds in files.items()]
    rows += [f"| {name} | skipped: {reason} |" for name, reason in skipped.items()]
    more = f"\n\n... and {len(rows) - MAX_FILES} more files." if len(rows) > MAX_FILES else ""
    return "| file | holds |\n|---|---|\n" + "\n".join(rows[:MAX_FILES]) + more
