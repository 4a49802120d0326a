"""What a release's index finds: passages for held-out conversations, and documents for golden questions.

Both are one artefact, keyed by the index, the settings of the search and the documents that are valid today, so
releases that share an index ask it once, and again only when a document begins or ends to be valid.  The searches are
the endpoint's (``core.serving.search``) for a caller without access labels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from serin.core.artifacts import Artifact, Built
from serin.core.context import StageContext
from serin.core.digests import digest_of_text
from serin.core.embedding import Embedder
from serin.core.records import Conversation, GoldenQuestion, read_jsonl, write_jsonl
from serin.core.release import Release, open_part
from serin.core.retrieval import IndexReader, epoch, read_info
from serin.core.serving import ServingConfig, search, search_query, today
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.results import FoundPassages, GoldenResult
from serin.evaluate.sampling import held_out

GOLDEN, PASSAGES = "golden.jsonl", "passages.jsonl"


@dataclass(frozen=True)
class Found:
    """What an index found."""

    artifact: Artifact
    passages: dict[str, FoundPassages]
    """By conversation id."""
    golden: list[GoldenResult]


def ask_index(config: EvaluateConfig, release: Release, dataset: Artifact, context: StageContext) -> Found:
    """Search for the first held-out conversations and for the golden questions, or find the earlier results."""
    index = open_part(release.index, context.store)
    serving = ServingConfig.load(release.serving)
    day = epoch(index.path, today()) if serving.check_dates else None
    settings = {"max_passages": serving.max_passages, "min_score": serving.min_score, "turns": serving.history_turns}

    def build(output: Path, scratch: Path) -> Built:
        conversations = held_out(config, dataset)[: config.num_retrieved]
        questions = _golden(config, dataset)
        reader = _reader(index, config) if conversations or questions else None
        context.progress(f"searching for {len(conversations)} conversations and {len(questions)} golden questions")
        found = [_search(reader, one, serving, day) for one in conversations if reader]
        asked = _answerable(questions, reader, day) if reader else []
        write_jsonl(output / PASSAGES, found)
        write_jsonl(output / GOLDEN, [_ask(reader, one, config.golden_depth, day) for one in asked if reader])
        return Built(
            metadata={
                "num_conversations": len(conversations),
                "num_questions": len(asked),
                "num_questions_out_of_date": len(questions) - len(asked),
            }
        )

    names = ("num_conversations", "num_retrieved", "num_golden", "golden_depth", "seed")
    keyed = {
        "search": settings | {"day": day.isoformat() if day else ""},
        **{name: getattr(config, name) for name in names},
    }
    artifact = context.produce("retrieval", build, inputs={"index": index, "dataset": dataset}, config=keyed)
    return Found(
        artifact=artifact,
        passages={one.id: one for one in read_jsonl(artifact.path / PASSAGES, FoundPassages)},
        golden=read_jsonl(artifact.path / GOLDEN, GoldenResult),
    )


def recall(result: GoldenResult, depth: int) -> float:
    """Share of a question's documents among the first hits."""
    return len(set(result.document_ids) & set(result.found_ids[:depth])) / len(set(result.document_ids))


def ndcg(result: GoldenResult, depth: int) -> float:
    """Normalised discounted cumulative gain of the first hits, with a document counted once.

    Binary relevance, logarithm of base 2 (Jarvelin and Kekalainen 2002, doi 10.1145/582415.582418).
    """
    return graded_ndcg(dict.fromkeys(result.document_ids, 1.0), result.found_ids, depth)


def graded_ndcg(grades: Mapping[str, float], found_ids: Sequence[str], depth: int) -> float:
    """The same with graded relevance, where a document's gain is its grade.

    Args:
        grades: document to grade, above 0.
        found_ids: best first.
        depth: how many of them count.
    """
    found = list(dict.fromkeys(found_ids))[:depth]
    gain = sum(grades.get(one, 0.0) / math.log2(rank + 1) for rank, one in enumerate(found, start=1))
    best = sorted(grades.values(), reverse=True)[:depth]
    return gain / sum(grade / math.log2(rank + 1) for rank, grade in enumerate(best, start=1))


def reciprocal_rank(result: GoldenResult) -> float:
    """1 / rank of the first hit of a right document; 0 when there is none."""
    for rank, found in enumerate(result.found_ids, start=1):
        if found in result.document_ids:
            return 1 / rank
    return 0.0


def _golden(config: EvaluateConfig, dataset: Artifact) -> list[GoldenQuestion]:
    path = dataset.path / GOLDEN
    questions = read_jsonl(path, GoldenQuestion) if path.is_file() else []
    return sorted(questions, key=lambda one: digest_of_text(f"{config.seed}:{one.id}"))[: config.num_golden]


def _reader(index: Artifact, config: EvaluateConfig) -> IndexReader:
    return IndexReader.open(index.path, Embedder.load(read_info(index.path).embedder, config.num_threads))


def _answerable(questions: list[GoldenQuestion], reader: IndexReader, day: date | None) -> list[GoldenQuestion]:
    """All questions but those whose documents are all out of date: nobody may find them.

    A question whose documents the index does not have at all stays: that is a miss.
    """
    outdated = reader.documents() - reader.documents(day)
    return [one for one in questions if not set(one.document_ids) <= outdated]


def _search(reader: IndexReader, conversation: Conversation, serving: ServingConfig, day: date | None) -> FoundPassages:
    query = search_query(conversation.messages[:-1], serving.history_turns)
    hits = search(reader, serving, query, at=day)
    return FoundPassages(
        id=conversation.id, texts=tuple(hit.text for hit in hits), scores=tuple(hit.score for hit in hits)
    )


def _ask(reader: IndexReader, question: GoldenQuestion, depth: int, day: date | None) -> GoldenResult:
    hits = reader.search(question.question, max_passages=depth, at=day)
    return GoldenResult(
        id=question.id,
        question=question.question,
        language=question.language,
        document_ids=question.document_ids,
        found_ids=tuple(hit.document_id for hit in hits),
    )
