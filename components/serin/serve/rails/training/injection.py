"""Train the injection rail for users' turns.

Run: python -m serin.serve.rails.training.injection --data DIR --output FILE   (six minutes on one core)
DIR holds the public data sets that ``training.data`` reads; FILE becomes ``weights/injection.safetensors``.
"""

import argparse
import logging
import random
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from serin.core.transformer import Array
from serin.serve.rails.encoder import WINDOW, pieces
from serin.serve.rails.normal import plain
from serin.serve.rails.sentences import sentences
from serin.serve.rails.training import data as sets
from serin.serve.rails.training import linear
from serin.serve.rails.training.grammar import Grammar, vary

SEED = 20
PER_CATEGORY = 300
NUM_CLEAN = 20_000
PER_LANGUAGE = 120
PER_CLEAN_LANGUAGE = 250
SETTINGS = linear.Settings(first=3e-3, last=3e-3, gate_quantile=0.92, quantile=0.997, long_quantile=0.98)
"""At most 8% of each calibration set of turns go on to the second step, and at most 0.3% are over the threshold.

Of each set of long texts, at most 2% are over it.
"""
NUM_SENTENCES = 9000
NARROW = 24
"""Word pieces of a narrow window, about a sentence."""
NARROW_FRACTION = 0.3
"""Of the clean texts, those that are seen through a narrow window."""
HELD_OUT_XQUAD = 60
"""XQuAD's last paragraphs of each language, left for calibration."""
HELD_OUT_MEDQUAD = 400
"""MedQuAD's last answers, left for calibration."""
NUM_LONG = 150
LONG = 96
"""Word pieces of a long text at least."""


@dataclass
class Examples:
    """Rows of word pieces with their labels, and the kinds of attacks in each."""

    rows: list[list[int]] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    kinds: list[frozenset[str]] = field(default_factory=list)

    def add(self, text: str, label: float, kinds: Collection[str] = ()) -> None:
        """Add a text as it will be seen, in its plain reading; one without a word is left out."""
        row = list(pieces(plain(text[:1000])))
        if row:
            self.rows.append(row)
            self.labels.append(float(label))
            self.kinds.append(frozenset(kinds))


def main() -> None:
    """Train both steps, set their thresholds and write them."""
    parser = argparse.ArgumentParser(description="Train the injection rail.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data sets")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    examples = turn_examples(arguments.data)
    weights = linear.fit_steps(features(examples), np.array(examples.labels), SETTINGS)
    turns, long_texts = calibration_turns(arguments.data), calibration_texts(arguments.data)
    linear.calibrate(weights, [linear.read(one) for one in turns], [linear.read(one) for one in long_texts], SETTINGS)
    linear.save(weights, arguments.output)


def calibration_turns(data: Path) -> list[list[str]]:
    """Clean turns that set the threshold: CLINC150's train part, XQuAD's left-out questions, left-out retail turns."""
    rng = sets.seeded(SEED)
    questions = [one for rows in sets.xquad(data).values() for _, asked in rows[-HELD_OUT_XQUAD:] for one in asked]
    turns = [text for text, _ in sets.clinc(data, "train")]
    return [sets.sample(turns, 2000, rng), sets.sample(questions, 600, rng), sets.retail_turns(data)[1::2]]


def calibration_texts(data: Path) -> list[list[str]]:
    """Clean long texts: pages, health answers and paragraphs that were left out, and CLINC150's turns in a row."""
    rng = sets.seeded(SEED)
    pages = [text for name, text in sets.mtrag_passages(data) if not name.endswith("clapnq")][1::2]
    answers = [answer for _, answer in sets.medquad(data)[-HELD_OUT_MEDQUAD:]]
    paragraphs = [text for rows in sets.xquad(data).values() for text, _ in rows[-HELD_OUT_XQUAD::6]]
    turns = [_as_sentence(text, rng) for text, _ in sets.clinc(data, "train")]
    joined = [" ".join(rng.sample(turns, rng.randint(4, 16))) for _ in range(NUM_LONG)]
    found = [sets.sample(pages, NUM_LONG, rng), sets.sample(answers, NUM_LONG, rng), paragraphs, joined]
    return [[text[:2000] for text in texts if len(pieces(text)) > LONG] for texts in found]


def features(examples: Examples) -> Array:
    """(examples, 3072): what both steps see of each, a drawn window of long ones, a narrow one of some clean ones."""
    rng = sets.seeded(SEED)
    rows = []
    for row, label in zip(examples.rows, examples.labels, strict=True):
        narrow = label == 0 and rng.random() < NARROW_FRACTION
        rows.append(_crop(row, NARROW if narrow else WINDOW, rng))
    return linear.features(rows)


def turn_examples(data: Path) -> Examples:
    """Attacks by our grammar and clean turns: our grammar's, questions and prose of public sets."""
    rng = sets.seeded(SEED)
    by_hand = [text for texts in sets.held_out().values() for text in texts]
    copies = sets.Copies([row["prompt"] for row in sets.giskard(data)] + by_hand)
    attacks, clean = attack_grammar(), Grammar.load("clean")
    benign = clean_turns(data, clean, rng)
    found = Examples()
    categories = list(attacks.groups["categories"])
    for category in categories:
        for _ in range(PER_CATEGORY):
            text, kinds = vary(attacks.draw("categories", category, rng), rng), {category}
            if copies.holds(text):
                continue
            if rng.random() < 0.2:
                other = rng.choice(categories)
                text, kinds = f"{text} {vary(attacks.draw('categories', other, rng), rng)}", {category, other}
            found.add(text, 1, kinds)
            if rng.random() < 0.4:
                found.rows[-1] = _surrounded(found.rows[-1], rng.choice(benign), rng.choice(benign), rng)
    for language in attacks.groups["languages"]:
        for _ in range(PER_LANGUAGE):
            found.add(vary(attacks.draw("languages", language, rng), rng), 1, {language})
    languages = [one for one in clean.groups["languages"] for _ in range(PER_CLEAN_LANGUAGE)]
    foreign = [vary(clean.draw("languages", one, rng), rng) for one in languages]
    for text in sets.sample(benign, NUM_CLEAN, rng) + foreign + clean_sentences(data, rng):
        if not copies.holds(text):
            found.add(text, 0)
    return found


def attack_grammar() -> Grammar:
    """Our grammar of attacks, with the templates of the same kinds that the passage rail does not learn."""
    attacks = Grammar.load("attacks")
    more, known = attacks.groups["turns"], attacks.groups["categories"]
    kinds = {name: [*more.get(name, ()), *templates] for name, templates in known.items()}
    return replace(attacks, groups={**attacks.groups, "categories": kinds})


def clean_turns(data: Path, clean: Grammar, rng: random.Random) -> list[str]:
    """Texts without an attack, of the sets that no test of false alarms uses."""
    found = [
        vary(clean.draw(group, category, rng), rng)
        for group in ("turns", "categories")
        for category in clean.groups[group]
        for _ in range(1500)
    ]
    found += [vary(clean.draw("languages", c, rng), rng) for c in clean.groups["languages"] for _ in range(400)]
    harm = Grammar.load("harm")
    for group in harm.groups:
        found += [vary(harm.draw(group, c, rng), rng) for c in harm.groups[group] for _ in range(200)]
    health = sets.sample(sets.medquad(data)[:-HELD_OUT_MEDQUAD], 4000, rng)
    found += [vary(question, rng) for question, _ in health]
    found += [_excerpt(answer, rng) for _, answer in health[:3000]]
    for paragraphs in sets.xquad(data).values():
        for paragraph, questions in paragraphs[:-HELD_OUT_XQUAD]:
            found += sets.sample(questions, 3, rng)
            found.append(_excerpt(paragraph, rng))
    found += [turn for turn in sets.retail_turns(data)[::2] for _ in range(3)]
    found += [_excerpt(page, rng) for page in sets.kubeflow(data) for _ in range(3)]
    found += [_excerpt(text, rng) for text in known_passages(data)]
    found += [_excerpt(answer, rng) for _, answer in sets.sample(sets.bitext(data), 1500, rng)]
    found += [_excerpt(text, rng) for text in sets.abcd(data) for _ in range(20)]
    singles = list(found)
    found += [" ".join(rng.choices(singles, k=rng.choice((2, 2, 3, 4, 5)))) for _ in range(5000)]
    return [text for text in found if text.strip()]


def clean_sentences(data: Path, rng: random.Random) -> list[str]:
    """Sentences of long texts, each as a turn of its own, as the rail judges them."""
    pages = [*sets.kubeflow(data), *known_passages(data), *sets.abcd(data)]
    pages += [answer for _, answer in sets.sample(sets.medquad(data)[:-HELD_OUT_MEDQUAD], 800, rng)]
    pages += [answer for _, answer in sets.sample(sets.bitext(data), 500, rng)]
    found = [one for page in pages for one in sets.sample(sentences(page), 4, rng)]
    for paragraphs in sets.xquad(data).values():
        found += [one for text, _ in paragraphs[:-HELD_OUT_XQUAD] for one in sets.sample(sentences(text), 2, rng)]
    return sets.sample(found, NUM_SENTENCES, rng)


def known_passages(data: Path) -> list[str]:
    """Every other passage of MTRAG's public pages (government and IBM); the rest are left for the threshold."""
    return [text for name, text in sets.mtrag_passages(data) if not name.endswith("clapnq")][::2]


def _surrounded(row: list[int], before: str, after: str, rng: random.Random) -> list[int]:
    """An attack among clean text, within one window, wide or narrow."""
    room = max(0, rng.choice((NARROW, 40, WINDOW)) - len(row))
    left = rng.randint(0, room)
    return [*pieces(before)[-left:], *row, *pieces(after)[: room - left]] if left else [*row, *pieces(after)[:room]]


def _as_sentence(text: str, rng: random.Random) -> str:
    return text[:1].upper() + text[1:] + rng.choice(".?")


def _excerpt(text: str, rng: random.Random) -> str:
    at = rng.randrange(max(1, len(text) - 300))
    return text[at : at + rng.randrange(60, 320)]


def _crop(row: list[int], size: int, rng: random.Random) -> list[int]:
    start = rng.randrange(max(1, len(row) - size + 1))
    return row[start : start + size]


if __name__ == "__main__":
    main()
