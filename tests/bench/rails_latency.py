"""What all rails together cost a request, and how much personal data the masks find.

python tests/bench/rails_latency.py [--json] [--data DIR]

A request is one of MTRAG's questions, five passages, and its reference answer streamed word by word, under the default
policy with the language and topic rails on too; no judge.  CPU milliseconds of one thread, which is what the rails
take from other requests: with passages that were judged before (an index's come again and again), and with five
that were not.  Personal data: Presidio's synthetic sentences, whose spans are found when any part of them is masked;
names, addresses and dates are out of scope (they need a model).  Data: MTRAG dev and Presidio in ../shared/data.
"""

import argparse
import gzip
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serin.core.grounding import score
from serin.core.grounding.words import passage_of
from serin.core.pii import find_pii
from serin.core.policy import GuardrailPolicy
from serin.core.prompts import Prompt
from serin.serve.guardrails import Guardrails, OutputGuard

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
NUM_PASSAGES, ROUNDS = 5, 3
KINDS = {"EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone", "CREDIT_CARD": "card", "IBAN_CODE": "iban"}


def main() -> None:
    """Print the table, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the JSON line alone")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with mtrag_rag and presidio_pii")
    options = parser.parse_args()
    if not (options.data / "mtrag_rag").is_dir():
        sys.exit(f"Error: {options.data} is not here: it holds the requests.")
    figures = run(options.data)
    if not options.json:
        for name, value in figures.items():
            print(f"{name:<32}{value:>10}")
    print(json.dumps(figures))


def run(data: Path) -> dict[str, float]:
    """All figures."""
    requests = _requests(data)
    questions = [question for question, _, _ in requests]
    policy = GuardrailPolicy.load(
        {"language": {"input": "flag", "allowed": ["en", "fr"]}, "topic": {"input": "flag", "examples": questions[:40]}}
    )
    guardrails = Guardrails(policy, Prompt().system)
    for request in requests[:3]:
        _request(guardrails, *request)
    seen, unseen = [], []
    rails: Counter[str] = Counter()
    for number in range(ROUNDS):
        for request in requests:
            fresh = [f"{passage} {number}" for passage in request[1]]  # a text that no rail has judged
            for times, passages in ((unseen, fresh), (seen, fresh)):
                score._remembered.cache_clear()  # no question or answer comes twice
                started = time.thread_time()
                took = _request(guardrails, f"{request[0]} {len(seen) + len(unseen)}", passages, request[2])
                times.append((time.thread_time() - started) * 1000)
                rails.update(took if times is seen else {})
    figures = {
        "rails_p50_ms": statistics.median(seen), "rails_p95_ms": float(np.quantile(seen, 0.95)),
        "rails_unseen_p50_ms": statistics.median(unseen), "rails_unseen_p95_ms": float(np.quantile(unseen, 0.95)),
    }  # fmt: skip
    figures |= {f"wall_ms_mean_{rail}": total / len(seen) for rail, total in sorted(rails.items())}
    return {name: round(value, 4) for name, value in (figures | personal_data(data)).items()}


def personal_data(data: Path) -> dict[str, float]:
    """Recall by kind and over all kinds in scope, and precision over everything that is masked."""
    path = data / "presidio_pii" / "dev" / "generated_small.jsonl.gz"
    wanted, found, right, masked = Counter[str](), Counter[str](), 0, 0
    for row in _rows(path):
        matches = find_pii(row["full_text"])
        for span in row["spans"]:
            if kind := KINDS.get(span["entity_type"]):
                wanted[kind] += 1
                found[kind] += any(_meets(match, span) for match in matches)
        masked += len(matches)
        right += sum(any(_meets(match, span) for span in row["spans"]) for match in matches)
    figures = {f"pii_{kind}_recall": found[kind] / wanted[kind] for kind in wanted}
    return figures | {
        "pii_recall": sum(found.values()) / sum(wanted.values()), "pii_spans": float(sum(wanted.values())),
        "pii_precision": right / masked if masked else 1.0,
    }  # fmt: skip


def _request(guardrails: Guardrails, question: str, passages: Sequence[str], answer: str) -> Counter[str]:
    """One request through every stage; milliseconds by rail."""
    took: Counter[str] = Counter()
    took.update(guardrails.check("input", question).rails)
    for passage in passages:
        took.update(guardrails.check("retrieval", passage).rails)
    guard = OutputGuard(guardrails, [*passages, question])
    parts = [guard.push(word + " ") for word in answer.split(" ")]
    text = "".join([*parts, guard.finish()])
    took["streaming"] += guard.latency_ms
    took.update(guardrails.finish_answer(text, passages, [question]).rails)
    return took


def _requests(data: Path) -> list[tuple[str, list[str], str]]:
    corpus = {row["doc_id"]: row["text"] for row in _rows(data / "mtrag_rag" / "corpus.jsonl.gz")}
    others, rng = list(corpus.values()), random.Random(0)
    found = []
    for row in _rows(data / "mtrag_rag" / "dev" / "rag_tasks.jsonl.gz"):
        passages = [corpus[name] for name in row["gold_doc_ids"] if name in corpus]
        passages = [*passages, *rng.sample(others, NUM_PASSAGES)][:NUM_PASSAGES]
        found.append((row["conversation"][-1]["text"], passages, row["reference_answer"]))
    passage_of.cache_clear()
    return found


def _meets(match: Any, span: dict[str, Any]) -> bool:
    return bool(match.start < span["end_position"] and span["start_position"] < match.end)


def _rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


if __name__ == "__main__":
    main()
