"""Answers with their passages to learn from: BEGIN's judged ones, MTRAG's references, and excerpts of MTRAG's passages.

Of true answers, copies with one changed number, name or negation are made (``changes``), with a fixed seed.
"""

import gzip
import json
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serin.core.grounding.claims import claims_of
from serin.core.grounding.model import Reading
from serin.core.grounding.score import reading_of
from serin.core.grounding.sites import Site
from serin.core.grounding.training.changes import KINDS, Changed, change, names_in
from serin.core.grounding.words import passage_of, read

BEGIN_FILES = ("tc", "wow")
NUM_EXCERPTS = 400
_CHANGES_EACH = {"mtrag": 4, "tc": 2, "wow": 2, "excerpt": 1}
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_DROPPED = frozenset(["the", "a", "an", "also", "very", "was", "however", "such", "these", "that", "which"])


@dataclass(frozen=True)
class Example:
    """An answer that is read, and what is known of it."""

    source: str
    """'tc' or 'wow' of BEGIN, 'mtrag', or 'excerpt'."""
    group: int
    """Examples of one group are never on both sides of a fold."""
    kind: str
    """'judged' by people, 'true', or the kind of its change."""
    supported: bool
    answer: str
    context: tuple[str, ...]
    reading: Reading
    """Of the whole answer, which is fitted on."""
    judged: Reading | None
    """Of what it claims (``claims.claims_of``), which is scored; None when it claims nothing."""
    changed: tuple[Site, ...] = field(default=())
    """Of a changed answer, the sites at the change."""
    foreign: bool = True
    """Whether a changed number or name comes from elsewhere than the answer's own passages."""


def examples(data: Path, seed: int = 0) -> list[Example]:
    """All examples.

    Args:
        data: the folder with ``begin_groundedness`` and ``mtrag_rag``.
        seed: of the changes and excerpts.
    """
    corpus = {row["doc_id"]: row["text"] for row in _rows(data / "mtrag_rag" / "corpus.jsonl.gz")}
    names = sorted({name for text in corpus.values() for name in names_in(text)})
    true = [*_mtrag(data, corpus), *_excerpts(data, corpus, seed)]
    found: list[Example] = []
    for file in BEGIN_FILES:
        for row in _rows(data / "begin_groundedness" / "dev" / f"begin_dev_{file}.jsonl.gz"):
            group = zlib.crc32(row["knowledge"].encode())
            context: tuple[str, ...] = (row["knowledge"],)
            supported = row["begin_label"].startswith("Fully")
            judged = _example(file, group, "judged", supported, row["response"], context)
            if judged is None:
                continue
            found.append(judged)
            if supported:
                true.append((file, group, row["response"], context))
    for number, (source, group, answer, context) in enumerate(true):
        if source in ("mtrag", "excerpt") and (original := _example(source, group, "true", True, answer, context)):
            found.append(original)
        found += _changes(source, group, answer, context, names, random.Random(f"{seed}-{number}"))  # noqa: S311
    return found


def answerable_tasks(data: Path) -> list[dict[str, Any]]:
    """MTRAG's tasks whose reference answers rest on passages."""
    rows = _rows(data / "mtrag_rag" / "dev" / "rag_tasks.jsonl.gz")
    return [row for row in rows if row["answerability"] in ("ANSWERABLE", "PARTIAL")]


_True = tuple[str, int, str, tuple[str, ...]]


def _mtrag(data: Path, corpus: dict[str, str]) -> Iterator[_True]:
    merged = json.loads((data / "mtrag_rag" / "duplicate_doc_ids.json").read_text())
    for number, task in enumerate(answerable_tasks(data)):
        context = tuple(corpus[merged.get(name, name)] for name in task["gold_doc_ids"])
        yield "mtrag", number, task["reference_answer"], context


def _excerpts(data: Path, corpus: dict[str, str], seed: int) -> Iterator[_True]:
    """Sentences of one passage, some words or parts left out, with other passages beside it; none that a task needs."""
    needed = {name for task in answerable_tasks(data) for name in task["gold_doc_ids"]}
    pool = sorted(text for name, text in corpus.items() if name not in needed and len(text.split()) > 60)
    rng = random.Random(seed)  # noqa: S311
    rng.shuffle(pool)
    for number, text in enumerate(pool[:NUM_EXCERPTS]):
        if answer := _excerpt(text, rng):
            yield "excerpt", 1_000_000 + number, answer, (text, *rng.sample(pool, rng.choice([0, 1, 2])))


def _excerpt(text: str, rng: random.Random) -> str:
    sentences = [part.strip() for part in _SENTENCE.split(text) if 6 <= len(part.split()) <= 45]
    if len(sentences) < 2:
        return ""
    chosen = []
    for sentence in rng.sample(sentences, min(len(sentences), rng.choice([1, 2, 2, 3, 4, 5]))):
        parts = sentence.split(", ")
        if len(parts) > 2 and rng.random() < 0.4:
            del parts[rng.randrange(1, len(parts))]
        words = ", ".join(parts).split()
        if rng.random() < 0.5:
            words = [word for word in words if word.lower() not in _DROPPED or rng.random() < 0.6]
        chosen.append(" ".join(words))
    opening = rng.choice(["Yes, ", "Sure. ", "According to the documents, ", "No, "]) if rng.random() < 0.2 else ""
    return opening + " ".join(chosen)


def _changes(
    source: str, group: int, answer: str, context: tuple[str, ...], names: Sequence[str], rng: random.Random
) -> Iterator[Example]:
    joined = "\n".join(context)
    for kind in KINDS:
        seen: set[str] = set()
        for _ in range(_CHANGES_EACH[source]):
            changed = change(kind, answer, joined, names, rng)
            if changed is None or changed.text in seen:
                continue
            seen.add(changed.text)
            example = _example(source, group, kind, False, changed.text, context, changed)
            if example is not None:
                yield example


def _example(
    source: str, group: int, kind: str, supported: bool, answer: str, context: tuple[str, ...],
    changed: Changed | None = None,
) -> Example | None:  # fmt: skip
    if not read(answer):
        return None
    passages = [passage_of(text) for text in context]
    claims, reading = claims_of(answer, passages), reading_of(answer, passages)
    judged = reading if claims == answer else reading_of(claims, passages) if claims else None
    sites = _changed_sites(changed, reading) if changed else ()
    foreign = changed is None or changed.text[changed.start : changed.end] not in "\n".join(context)
    return Example(source, group, kind, supported, answer, context, reading, judged, sites, foreign)


def _changed_sites(changed: Changed, reading: Reading) -> tuple[Site, ...]:
    first, last = len(read(changed.text[: changed.start])), len(read(changed.text[: changed.end]))
    if changed.kind != "removal":
        return tuple(site for site in reading.sites if site.kind == changed.kind and first <= site.place < last)
    inside = [s for s in reading.sentences if s.first <= first < s.first + len(s.words)]
    return tuple(
        site
        for sentence in inside
        for site in reading.sites
        if site.kind == "removal" and sentence.first <= site.place < sentence.first + len(sentence.words)
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)
