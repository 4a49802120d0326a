"""The input rails on public data: what they catch, what they block wrongly, and how long they take.

Run: python tests/bench/rails_inputs.py [--data DIR]   (two minutes on one core; the last line is JSON)
No text tested here was trained on, but for XSTest, whose figures come from serin.serve.rails.training.harm (kinds left
out in turn) and are only repeated for the shipped weights as a check; serve/rails/RAILS.md says which set serves what.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from serin.serve.rails import harm, injection, language, topic
from serin.serve.rails.training import data as sets

DATA = Path(__file__).parents[3] / "shared/data"
SEED = 5
PLACES = ("start", "middle", "end")


def main() -> None:
    """Print a table for each rail, then one JSON line."""
    parser = argparse.ArgumentParser(description="Measure the input rails on public data.")
    parser.add_argument("--data", type=Path, default=DATA)
    data = parser.parse_args().data
    figures: dict[str, float] = {}
    for part in (direct, indirect, unsafe, off_topic, languages, speed):
        print(f"\n{part.__doc__}")
        found = part(data)
        for name, value in found.items():
            print(f"  {name:<44} {value:8.4f}")
        figures |= found
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def direct(data: Path) -> dict[str, float]:
    """Injection in users' turns (trained on neither these attacks nor these clean sets)"""
    rng = sets.seeded(SEED)
    attacks = np.array([injection.score(row["prompt"]) for row in sets.giskard(data)])
    found = {"injection_giskard_found": _share(attacks, injection.DEFAULT_THRESHOLD)}
    clean = {
        "banking77": [text for text, _ in sets.sample(sets.banking(data), 1500, rng)],
        "bitext": [text for text, _ in sets.sample(sets.bitext(data), 1500, rng)],
        "clinc150_val": [
            text for text, _ in [*sets.sample(sets.clinc(data, "val"), 1400, rng), *sets.clinc(data, "oos_val")]
        ],
        "mtrag_questions": sets.mtrag_questions(data),
        "xstest_safe": [row["prompt"] for row in sets.xstest(data) if row["label"] == "safe"],
    }
    for name, texts in sets.held_out().items():
        kind = "false" if name.startswith("clean") else "found"
        scores_of = np.array([injection.score(text) for text in texts])
        found[f"injection_{kind}_by_hand_{name}"] = _share(scores_of, injection.DEFAULT_THRESHOLD)
    mails = np.array([injection.score(text) for text in dict.fromkeys(sets.bipia_contexts(data))])
    found["injection_false_long_emails"] = _share(mails, injection.DEFAULT_THRESHOLD)
    scores = {name: np.array([injection.score(text) for text in texts]) for name, texts in clean.items()}
    found |= {f"injection_false_{name}": _share(one, injection.DEFAULT_THRESHOLD) for name, one in scores.items()}
    pooled = np.concatenate(list(scores.values()))
    found["injection_false_all"] = _share(pooled, injection.DEFAULT_THRESHOLD)
    found["injection_found_at_1_percent"] = _share(attacks, float(np.quantile(pooled, 0.99)))
    return found


def indirect(data: Path) -> dict[str, float]:
    """Instructions inside passages (BIPIA's attacks, its e-mails and MTRAG's Wikipedia part are never trained on)"""
    rng = sets.seeded(SEED)
    clean = {
        "emails": list(dict.fromkeys(sets.bipia_contexts(data))),
        "wikipedia": [text for name, text in sets.mtrag_passages(data) if name.endswith("clapnq")],
        "public_pages": [text for name, text in sets.mtrag_passages(data) if not name.endswith("clapnq")][1::2],
    }
    found = {}
    for name, contexts in clean.items():
        scores = np.array([injection.score_passage(text) for text in contexts])
        poisoned = np.array(
            [
                injection.score_passage(sets.poison(rng.choice(contexts), text, place))
                for texts in sets.bipia_attacks(data).values()
                for text in texts
                for place in PLACES
            ]
        )
        found[f"passage_false_{name}"] = _share(scores, injection.DEFAULT_PASSAGE_THRESHOLD)
        found[f"passage_found_{name}"] = _share(poisoned, injection.DEFAULT_PASSAGE_THRESHOLD)
        found[f"passage_found_at_1_percent_{name}"] = _share(poisoned, float(np.quantile(scores, 0.99)))
        found[f"passage_auc_{name}"] = auc(poisoned, scores)
    return found


def unsafe(data: Path) -> dict[str, float]:
    """Unsafe requests (these weights have seen XSTest: see RAILS.md for kinds left out)"""
    rng, rows = sets.seeded(SEED), sets.xstest(data)
    scores = np.array([harm.score(row["prompt"]) for row in rows])
    bad = np.array([row["label"] == "unsafe" for row in rows])
    banking = [text for text, _ in sets.sample(sets.banking(data), 1500, rng)]
    questions = sets.mtrag_questions(data)
    return {
        "harm_seen_xstest_safe_blocked": _share(scores[~bad], harm.DEFAULT_THRESHOLD),
        "harm_seen_xstest_unsafe_blocked": _share(scores[bad], harm.DEFAULT_THRESHOLD),
        "harm_false_banking77": _share(np.array([harm.score(text) for text in banking]), harm.DEFAULT_THRESHOLD),
        "harm_false_mtrag": _share(np.array([harm.score(text) for text in questions]), harm.DEFAULT_THRESHOLD),
    }


def off_topic(data: Path) -> dict[str, float]:
    """Off-topic questions: CLINC150's out-of-scope texts against its own topics, and against BANKING77's"""
    rng = sets.seeded(SEED)
    outside = [text for text, _ in [*sets.clinc(data, "oos_val"), *sets.clinc(data, "oos_train")]]
    parts = {
        "clinc150": (
            [text for text, _ in sets.sample(sets.clinc(data, "train"), 2000, rng)],
            [text for text, _ in sets.sample(sets.clinc(data, "val"), 500, rng)],
        ),
        "banking77": (
            [text for text, _ in sets.banking(data)[::20]],
            [text for text, _ in sets.sample(sets.banking(data)[1::20], 500, rng)],
        ),
    }
    found = {}
    for name, (examples, inside) in parts.items():
        model = topic.TopicModel.fit(examples)
        off, on = (np.array([model.score(text) for text in texts]) for texts in (outside, inside))
        found |= {f"topic_auc_{name}": auc(off, on), f"topic_off_found_{name}": _share(off, topic.DEFAULT_THRESHOLD)}
        found[f"topic_on_blocked_{name}"] = _share(on, topic.DEFAULT_THRESHOLD)
    return found


def languages(data: Path) -> dict[str, float]:
    """Language of XQuAD's texts: paragraphs, questions and the first three words of questions"""
    right: dict[str, list[bool]] = {"paragraphs": [], "questions": [], "three_words": []}
    sure: list[bool] = []
    for code, rows in sets.xquad(data).items():
        for text, questions in rows[::4]:
            right["paragraphs"].append(language.detect(text)[0] == code)
            right["questions"].append(language.detect(questions[0])[0] == code)
            found, confidence = language.detect(" ".join(questions[0].split()[:3]))
            right["three_words"].append(found == code)
            if confidence >= language.DEFAULT_THRESHOLD:
                sure.append(found == code)
    figures = {f"language_right_{name}": float(np.mean(one)) for name, one in right.items()}
    return figures | {"language_right_when_sure_three_words": float(np.mean(sure or [False]))}


def speed(data: Path) -> dict[str, float]:
    """Milliseconds on one core: all input rails on turns of 500 characters, and on one of 4,000"""
    answers = [answer for _, answer in sets.medquad(data) if len(answer) > 5000][:100]
    model = topic.TopicModel.fit([text for text, _ in sets.banking(data)[::20]])
    rails: dict[str, Callable[[str], object]] = {
        "injection": injection.score,
        "harm": harm.score,
        "language": language.detect,
        "topic": model.score,
    }
    times = _times(rails, [answer[:500] for answer in answers])
    found = {f"ms_p95_500_{name}": float(np.quantile(one, 0.95)) for name, one in times.items()}
    together = np.sum(list(times.values()), axis=0)
    found["input_rails_p95_ms"] = float(np.quantile(together, 0.95))
    found["input_rails_p50_ms"] = float(np.quantile(together, 0.50))
    passages = {"passage": injection.score_passage}
    found["ms_p95_500_passage"] = float(
        np.quantile(_times(passages, [answer[:500] for answer in answers])["passage"], 0.95)
    )
    long = _times(rails, [answer[:4000] for answer in answers[:40]])
    found["input_rails_p95_ms_4000"] = float(np.quantile(np.sum(list(long.values()), axis=0), 0.95))
    return found


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Chance that a positive scores above a negative (ties count half)."""
    order = np.sort(negative)
    below = np.searchsorted(order, positive, "left") + np.searchsorted(order, positive, "right")
    return float(below.mean() / (2 * len(order)))


def _share(scores: np.ndarray, threshold: float) -> float:
    return float((scores > threshold).mean())


def _times(rails: Mapping[str, Callable[[str], object]], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """CPU milliseconds of each rail on each text, after a few to warm up; each text passes all rails, as in a request.

    CPU time, so that other work on the machine does not count as waiting.
    """
    found: dict[str, list[float]] = {name: [] for name in rails}
    for text in [*texts[:5], *texts]:
        for name, judge in rails.items():
            start = time.process_time()
            judge(text)
            found[name].append((time.process_time() - start) * 1000)
    return {name: np.array(one[5:]) for name, one in found.items()}


if __name__ == "__main__":
    main()
