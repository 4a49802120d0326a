"""How well the grounding score tells supported answers from others, and what it costs.

python tests/bench/grounding.py [--json] [--data DIR]

Every figure is on answers that the model was not fitted on: by folds (grouped by knowledge, or by MTRAG task) and
across BEGIN's files.  Beside each stands the share of the answer's words that the passages hold.  Answers with one
changed number, name or negation are made from MTRAG's references with a fixed seed; 'foreign' leaves out changes to a
number or name of the same passages.
Data: BEGIN dev and MTRAG dev in ../shared/data; two minutes.
"""

import argparse
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from serin.core.grounding.claims import claims_of
from serin.core.grounding.model import KINDS, GroundingModel
from serin.core.grounding.score import ground_afresh, mismatches, reading_of
from serin.core.grounding.training.examples import BEGIN_FILES, Example, answerable_tasks, examples
from serin.core.grounding.training.fit import across_files, out_of_fold
from serin.core.grounding.words import passage_of

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
NUM_PASSAGES, ANSWER_WORDS = 5, 100

Scored = tuple[Example, float, GroundingModel]


def main() -> None:
    """Print the table, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the JSON line alone")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with begin_groundedness and mtrag_rag")
    options = parser.parse_args()
    if not (options.data / "begin_groundedness").is_dir():
        sys.exit(f"Error: {options.data} is not here: it holds the answers.")
    figures = run(options.data)
    if not options.json:
        for name, value in figures.items():
            print(f"{name:<32}{value:>10}")
    print(json.dumps(figures))


def run(data: Path) -> dict[str, float]:
    """All figures."""
    found = examples(data)
    scored, across = out_of_fold(found), across_files(found)
    figures: dict[str, float] = {}
    for file in BEGIN_FILES:
        judged = [row for row in scored if row[0].source == file and row[0].kind == "judged"]
        figures[f"begin_{file}_auc"] = auc(judged)
        figures[f"begin_{file}_auc_across_files"] = auc(across[file])
        figures[f"begin_{file}_auc_word_share"] = baseline_auc(judged)
        figures[f"begin_{file}_balanced_accuracy"] = balanced_accuracy(judged)
    changed = [row for row in scored if row[0].source == "mtrag"]
    figures["changed_auc"], figures["changed_auc_word_share"] = auc(changed), baseline_auc(changed)
    figures["changed_auc_foreign"] = auc([row for row in changed if row[0].foreign])
    changed_true = [row for row in changed if row[0].kind == "true"]
    for kind in KINDS:
        figures[f"changed_{kind}_auc"] = auc([row for row in changed if row[0].kind in ("true", kind)])
    figures["other_passages_auc"] = auc([*changed_true, *of_other_passages(changed_true)])
    figures |= flag_rates(changed)
    return {name: round(value, 4) for name, value in (figures | latency(data)).items()}


def auc(rows: Sequence[Scored]) -> float:
    """Area under the ROC curve, ties by half."""
    return _auc([margin for _, margin, _ in rows], [one.supported for one, _, _ in rows])


def baseline_auc(rows: Sequence[Scored]) -> float:
    """The same for the share of the answer's words that its passages hold."""
    shares = []
    for one, _, _ in rows:
        known = set(_plain(" ".join(one.context)))
        said = _plain(one.answer)
        shares.append(sum(word in known for word in said) / max(1, len(said)))
    return _auc(shares, [one.supported for one, _, _ in rows])


def balanced_accuracy(rows: Sequence[Scored]) -> float:
    """Mean share of right verdicts of both labels, at the threshold chosen on the other folds."""
    held = [(one.supported, model.score(margin) >= model.thresholds["unsupported"]) for one, margin, model in rows]
    return statistics.fmean(
        statistics.fmean(verdict == label for truth, verdict in held if truth == label) for label in (True, False)
    )


def of_other_passages(rows: Sequence[Scored]) -> list[Scored]:
    """The true answers with the passages of the next task's."""
    found = []
    for (one, _, model), (other, _, _) in zip(rows, [*rows[1:], rows[0]], strict=True):
        passages = [passage_of(text) for text in other.context]
        claims = claims_of(one.answer, passages)
        margin = model.margin(reading_of(claims, passages)) if claims else math.inf
        found.append((replace(one, supported=False, context=other.context), margin, model))
    return found


def flag_rates(rows: Sequence[Scored]) -> dict[str, float]:
    """Share of true answers with any mismatch flag, and of changed ones with the flag of their change."""
    found: dict[str, list[bool]] = {}
    for one, _, model in rows:
        flags = mismatches(model, one.judged, model.place_logits(one.judged)) if one.judged else set()
        wanted = {"number": "number_mismatch", "name": "name_mismatch"}.get(one.kind, "negation_mismatch")
        found.setdefault(one.kind, []).append(bool(flags) if one.kind == "true" else wanted in flags)
    return {f"flagged_{kind}": statistics.fmean(values) for kind, values in found.items()}


def latency(data: Path) -> dict[str, float]:
    """CPU milliseconds for an answer of 100 words with five passages: read for the first time, and seen before."""
    found = [one for one in examples(data) if one.source == "mtrag" and one.kind == "true"]
    corpus = [text for one in found for text in one.context]
    cold, warm = [], []
    assert len(answerable_tasks(data)) == len(found)
    for number, one in enumerate(found):
        answer = " ".join((one.answer + " ").split()[:ANSWER_WORDS])
        if len(answer.split()) < ANSWER_WORDS:
            continue
        context = [*one.context, *corpus[number:]][:NUM_PASSAGES]
        passage_of.cache_clear()
        for times in (cold, warm, warm, warm):
            started = time.thread_time()
            ground_afresh(answer, context)
            times.append((time.thread_time() - started) * 1000)
    return {
        "cold_cpu_ms_p50": statistics.median(cold), "cold_cpu_ms_p95": float(np.quantile(cold, 0.95)),
        "warm_cpu_ms_p50": statistics.median(warm), "warm_cpu_ms_p95": float(np.quantile(warm, 0.95)),
    }  # fmt: skip


def _auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    ranks, wanted = rankdata(scores), np.array(labels)
    positive, negative = wanted.sum(), (~wanted).sum()
    return float((ranks[wanted].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _plain(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


if __name__ == "__main__":
    main()
