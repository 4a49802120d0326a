"""What a dialogue's earlier turns do for retrieval, on MTRAG's questions with their dialogues.

python tests/bench/retrieval_followups.py [--json]

Recall at 5 of the index's hybrid search (MiniLM and BM25) for the last user turn alone, for all turns joined, and for
``core.query``'s rule, over first questions, follow-ups, and questions that were put behind a foreign dialogue (which a
rule that trusts the earlier turns too much loses).  Data: MTRAG (IBM, Apache-2.0) in ../shared/data; about a minute.
"""

import argparse
import gzip
import json
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serin.core.artifacts import ArtifactStore, Built
from serin.core.context import stage_context
from serin.core.query import Query
from serin.core.records import Document, Message, write_jsonl
from serin.core.retrieval import IndexReader
from serin.core.serving import ServingConfig, search_query
from serin.index.build import build_index
from serin.index.config import IndexConfig

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "mtrag_rag"
DEPTH = 5
FOREIGN = 4
"""Foreign dialogues that each standalone question is put behind."""
LONG_WORDS = 9
"""A question of so many words stands by itself."""

Rule = Callable[[list[str]], Query]


@dataclass(frozen=True)
class Asked:
    """A question, the user's turns before it, and the documents that answer it."""

    turns: tuple[str, ...]
    wanted: frozenset[str]


def main() -> None:
    """Print the table, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the JSON line alone")
    options = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"Error: {DATA} is not here: it holds the questions.")
    figures = run()
    if not options.json:
        _print(figures)
    print(json.dumps(figures))


def run() -> dict[str, dict[str, float]]:
    """Recall at 5 by rule and kind of question."""
    with tempfile.TemporaryDirectory() as folder:
        reader = _index(Path(folder))
        kinds = _kinds()
        return {
            name: {kind: round(_recall(reader, rule, asked), 4) for kind, asked in kinds.items()}
            for name, rule in _rules().items()
        }


def _rules() -> dict[str, Rule]:
    def by_turns(count: int) -> Rule:
        return lambda turns: search_query([Message(role="user", content=turn) for turn in turns], count)

    return {
        "last turn alone": by_turns(1),
        "all turns joined": lambda turns: Query(" ".join(turns)),
        "last two joined": lambda turns: Query(" ".join(turns[-2:])),
        "weighted (default)": by_turns(ServingConfig().history_turns),
        "weighted, 2 turns": by_turns(2),
        "weighted, all turns": by_turns(99),
    }


def _index(folder: Path) -> IndexReader:
    with gzip.open(DATA / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    documents = [Document(id=row["doc_id"], title="", text=row["text"], source=row["doc_id"]) for row in rows]
    with stage_context("index", store_uri=str(folder)) as context:
        made = context.produce(
            "documents", lambda out, _: Built({"n": write_jsonl(out / "documents.jsonl", documents)}),
            inputs={}, config={},
        )  # fmt: skip
        index = build_index(IndexConfig(max_chars=20_000), made, context)
    return IndexReader.open(ArtifactStore(str(folder)).open(index.uri).path)


def _kinds() -> dict[str, list[Asked]]:
    rows = [json.loads(line) for line in (DATA / "dev" / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    wanted = _wanted()
    asked = [Asked((*row["previous_user_turns"], row["text"]), wanted[row["query_id"]]) for row in rows]
    followups = [one for one in asked if len(one.turns) > 1]
    chooser = random.Random(0)
    dialogues = [one.turns for one in followups if len(one.turns) > 2]

    def behind_foreign(questions: list[Asked]) -> list[Asked]:
        return [
            Asked((*chooser.choice(dialogues), one.turns[-1]), one.wanted) for one in questions for _ in range(FOREIGN)
        ]

    firsts = [one for one in asked if len(one.turns) == 1]
    longs = [one for one in asked if len(one.turns[-1].split()) >= LONG_WORDS]
    return {
        "all": asked,
        "first": firsts,
        "follow-up": followups,
        "short follow-up": [one for one in followups if len(one.turns[-1].split()) <= 5],
        "first, foreign dialogue": behind_foreign(firsts),
        "long": [Asked(one.turns[-1:], one.wanted) for one in longs],
        "long, foreign dialogue": behind_foreign(longs),
    }


def _wanted() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for line in (DATA / "dev" / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query_id, document_id, score = line.split("\t")
        if float(score) > 0:
            found[query_id].add(document_id)
    return {name: frozenset(documents) for name, documents in found.items()}


def _recall(reader: IndexReader, rule: Rule, asked: list[Asked]) -> float:
    return sum(_found(reader, rule(list(one.turns)), one.wanted) for one in asked) / len(asked)


def _found(reader: IndexReader, query: Query, wanted: frozenset[str]) -> float:
    hits = reader.search(query, max_passages=4 * DEPTH)
    first = list(dict.fromkeys(hit.document_id for hit in hits))[:DEPTH]
    return len(wanted & set(first)) / len(wanted)


def _print(figures: dict[str, dict[str, Any]]) -> None:
    kinds = list(next(iter(figures.values())))
    print(f"| recall at {DEPTH} | " + " | ".join(kinds) + " |")
    print("|---" * (len(kinds) + 1) + "|")
    for name, row in figures.items():
        print(f"| {name} | " + " | ".join(f"{row[kind]:.3f}" for kind in kinds) + " |")


if __name__ == "__main__":
    main()
