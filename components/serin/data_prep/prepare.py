"""Make a dataset and documents from a source: read, clean, mask, remove duplicates, split.

Run it alone with ``serin data``.  The same files and settings give the same digests, wherever the files lie.
"""

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from serin.core.artifacts import Artifact, Built
from serin.core.context import StageContext
from serin.core.errors import InputError
from serin.core.records import SPLITS, write_jsonl
from serin.data_prep.config import DataPrepConfig
from serin.data_prep.loading import load
from serin.data_prep.refine import Refined, refine
from serin.data_prep.sources import Source, open_source


@dataclass(frozen=True)
class Prepared:
    """The stage's two results."""

    dataset: Artifact
    """Kind 'dataset': train, validation, test and golden.jsonl, rejected.jsonl."""
    documents: Artifact
    """Kind 'documents': documents.jsonl."""


def prepare(config: DataPrepConfig, source_uri: str, context: StageContext) -> Prepared:
    """The dataset and the documents of a source.

    Args:
        config: settings.
        source_uri: a folder, ``file://`` or ``s3://`` prefix.
        context: store, progress.

    Raises:
        ConfigError: the data window is empty.
        InputError: the source is missing, empty, broken (naming file and line), or holds nothing to learn from.
    """
    config = config.on(datetime.now(UTC).date())
    context.progress(f"listing {source_uri}", 0.0)
    with open_source(source_uri, config.exclude) as source:
        work = _Work(config, source, context)
        inputs = {"source": source.digest}
        dataset = context.produce("dataset", work.write_dataset, inputs=inputs, config=config)
        documents = context.produce("documents", work.write_documents, inputs=inputs, config=config)
    context.tracker.params({"data_prep.source": source_uri, "data_prep.source_digest": source.digest})
    counts = {**dataset.metadata["splits"], "documents": documents.metadata["documents"]}
    context.tracker.metrics({f"data_prep.{name}": count for name, count in counts.items()})
    return Prepared(dataset=dataset, documents=documents)


class _Work:
    """Reads and refines the source once, when the first of the two artefacts has to be made."""

    def __init__(self, config: DataPrepConfig, source: Source, context: StageContext) -> None:
        self._config, self._source, self._context = config, source, context
        self._refined: Refined | None = None
        self._seconds = 0.0

    def write_dataset(self, output: Path, scratch: Path) -> Built:
        """Build function of the dataset artefact."""
        refined = self._result()
        for name in SPLITS:
            write_jsonl(output / f"{name}.jsonl", refined.splits[name])
        write_jsonl(output / "golden.jsonl", refined.golden)
        with (output / "rejected.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in refined.rejected)
        return Built(metadata={**self._facts(refined), **refined.statistics})

    def write_documents(self, output: Path, scratch: Path) -> Built:
        """Build function of the documents artefact."""
        refined = self._result()
        write_jsonl(output / "documents.jsonl", refined.documents)
        return Built(
            metadata={
                **self._facts(refined),
                "documents": len(refined.documents),
                "languages": refined.statistics["document_languages"],
                "chars": sum(len(document.text) for document in refined.documents),
            }
        )

    def _result(self) -> Refined:
        if self._refined is None:
            started = time.monotonic()
            loaded = load(self._source, self._config, self._context.progress)
            self._refined = refine(loaded, self._config, self._context.progress)
            self._check(self._refined)
            self._source.check_unchanged()
            self._seconds = time.monotonic() - started
        return self._refined

    def _check(self, refined: Refined) -> None:
        conversations = sum(len(rows) for rows in refined.splits.values())
        files = len(self._source.files)
        if not conversations and not refined.documents:
            raise InputError(
                f"None of the {files} files of {self._source.uri} can be used{_reasons(refined)}: Markdown, text, HTML,"
                " and rows with 'messages', question and answer, or 'text' are read."
            )
        if not conversations and self._config.require_conversations:
            raise InputError(
                f"{self._source.uri} holds no usable conversation in {files} files{_reasons(refined)}: give rows with"
                " 'messages' or with question and answer columns."
            )

    def _facts(self, refined: Refined) -> dict[str, object]:
        return {
            "source_uri": self._source.uri,
            "source_digest": self._source.digest,
            "source_bytes": self._source.size,
            "files": refined.files,
            "skipped": refined.skipped,
            "seconds": round(self._seconds, 2),
        }


def _reasons(refined: Refined) -> str:
    """The most frequent reasons for refusing, in brackets."""
    reasons: dict[str, int] = refined.statistics["rejected"]
    named = [f"{reason}: {count}" for reason, count in list(reasons.items())[:3]]
    named += [f"{name}: {why}" for name, why in list(refined.skipped.items())[: 3 - len(named)]]
    return f" ({'; '.join(named)})" if named else ""
