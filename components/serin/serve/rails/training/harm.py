"""Train the harm rail: does a user ask for something unsafe?

Run: python -m serin.serve.rails.training.harm --data DIR --output FILE
DIR holds the public data sets that ``training.data`` reads; FILE becomes ``weights/harm.safetensors``.
"""

import argparse
import copy
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from serin.core.transformer_training import save, table_tensor, train
from serin.serve.rails import encoder
from serin.serve.rails.encoder import WINDOW
from serin.serve.rails.training import data as sets
from serin.serve.rails.training.grammar import Grammar, gerund, vary
from serin.serve.rails.training.injection import HELD_OUT_XQUAD, Examples
from serin.serve.rails.training.linear import offset
from serin.serve.rails.training.student import Student

logger = logging.getLogger(__name__)

SEED = 30
STEPS = 700
TUNING_STEPS = 60
BATCH = 192
LEARNING_RATE = 2e-3
TUNING_RATE = 5e-4
TUNING_SHARE = 1 / 6
PER_CATEGORY = 1500
CLEAN_QUANTILE = 0.995
SAFE_QUANTILE = 1.0
"""The threshold is the highest score of a safe prompt that was judged with its kind left out."""
SET_REPEATS = 12
"""How often an XSTest prompt counts beside a drawn one."""


def main() -> None:
    """Train and write the network: the grammar, then XSTest's dev half, whose kinds are judged left out."""
    parser = argparse.ArgumentParser(description="Train the harm rail.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data sets")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    base, rows = train_base(arguments.data), sets.xstest(arguments.data)
    others = harm_examples(arguments.data, TUNING_SHARE)
    weights = weights_of(tune(base, others, rows))
    logits = left_out_logits(base, others, rows)
    unseen = logits_of([row["prompt"] for row in rows], weights_of(base))
    logger.info("before XSTest is seen: AUC %.3f", auc(unseen, rows))
    logger.info("kinds left out in turn: AUC %.3f", auc(logits, rows))
    unsafe = np.array([row["label"] == "unsafe" for row in rows])
    clean = [logits_of(texts, weights) for texts in calibration_turns(arguments.data)]
    weights["offset"] = np.maximum(offset(clean, CLEAN_QUANTILE), offset([logits[~unsafe]], SAFE_QUANTILE))
    report_folds(rows, logits)
    save(weights, arguments.output)


def fold_of(row: dict[str, str]) -> str:
    """The kind of an XSTest prompt; a safe kind and its unsafe contrast are left out together."""
    kind = row["type"].removeprefix("contrast_")
    if "discr" in kind:
        return "discrimination"
    return "privacy" if kind.startswith("privacy") else kind


def auc(logits: np.ndarray, rows: Sequence[dict[str, str]]) -> float:
    """Chance that an unsafe prompt gets the higher logit than a safe one."""
    unsafe = np.array([row["label"] == "unsafe" for row in rows])
    return float((logits[unsafe][:, None] > logits[~unsafe][None, :]).mean())


def left_out_logits(base: Student, others: Examples, rows: Sequence[dict[str, str]]) -> np.ndarray:
    """(rows of XSTest,): each judged by a network that was tuned without its kind."""
    found = np.zeros(len(rows))
    for fold in sorted({fold_of(row) for row in rows}):
        weights = weights_of(tune(base, others, [row for row in rows if fold_of(row) != fold]))
        mine = [i for i, row in enumerate(rows) if fold_of(row) == fold]
        found[mine] = logits_of([rows[i]["prompt"] for i in mine], weights)
    return found


def report_folds(rows: Sequence[dict[str, str]], logits: np.ndarray) -> dict[str, tuple[float, float]]:
    """Per kind and over all: share of safe prompts blocked and of unsafe ones, the threshold set on the other kinds."""
    unsafe = np.array([row["label"] == "unsafe" for row in rows])
    folds = np.array([fold_of(row) for row in rows])
    blocked = np.zeros(len(rows), dtype=bool)
    for fold in sorted(set(folds)):
        limit = np.quantile(logits[(folds != fold) & ~unsafe], SAFE_QUANTILE)
        blocked[folds == fold] = logits[folds == fold] > limit
    found = {}
    for fold in (*sorted(set(folds)), "all"):
        mine = np.full(len(rows), True) if fold == "all" else folds == fold
        found[fold] = (float(blocked[mine & ~unsafe].mean()), float(blocked[mine & unsafe].mean()))
        logger.info("%-22s safe blocked %.3f, unsafe blocked %.3f", fold, *found[fold])
    return found


def calibration_turns(data: Path) -> list[list[str]]:
    """Clean requests that set the threshold too: CLINC150's val part, XQuAD's left-out questions."""
    questions = [one for rows in sets.xquad(data).values() for _, asked in rows[-HELD_OUT_XQUAD:] for one in asked]
    turns = [text for text, _ in sets.clinc(data, "val")]
    return [turns, sets.sample(questions, 600, sets.seeded(SEED))]


def logits_of(texts: Sequence[str], weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """(texts,): what ``rails.harm`` gives before the offset."""
    return np.array([encoder.highest(text, weights) for text in texts])


def train_base(data: Path, steps: int = STEPS) -> Student:
    """The network before it has seen any row of XSTest."""
    torch.manual_seed(SEED)
    model = Student(table_tensor(), outputs=1)
    _fit(model, harm_examples(data, 1.0), steps, LEARNING_RATE)
    return model


def tune(base: Student, others: Examples, known: Sequence[dict[str, str]]) -> Student:
    """A copy of the network, tuned with some rows of XSTest among other texts."""
    rng, model = sets.seeded(SEED), copy.deepcopy(base)
    examples = Examples(list(others.rows), list(others.labels))
    for row in known:
        for _ in range(SET_REPEATS):
            examples.add(vary(row["prompt"], rng), float(row["label"] == "unsafe"))
    _fit(model, examples, TUNING_STEPS, TUNING_RATE)
    return model


def weights_of(model: Student) -> dict[str, np.ndarray]:
    """Arrays under the names that ``rails.harm`` reads."""
    head = {"head.w": model.head.weight, "head.b": model.head.bias}
    return {**model.body(), **{key: value.detach().numpy().copy() for key, value in head.items()}}


def _fit(model: Student, examples: Examples, steps: int, learning_rate: float) -> None:
    labels = torch.tensor(examples.labels)

    def loss_of(ids: Tensor, mask: Tensor, indices: Tensor) -> Tensor:
        wanted = labels[indices] * 0.98 + 0.01
        return nn.functional.binary_cross_entropy_with_logits(model(ids, mask)[:, 0], wanted)

    rows = [row[:WINDOW] for row in examples.rows]
    train(model, rows, loss_of, steps=steps, batch=BATCH, learning_rate=learning_rate, seed=SEED)


def harm_examples(data: Path, share: float) -> Examples:
    """Unsafe and safe requests by our grammar, and clean requests of other sets.

    A drawn text that nears an XSTest prompt is left out, so that the tests on XSTest hold no copy.
    """
    rng = sets.seeded(SEED)
    copies = sets.Copies(row["prompt"] for row in sets.xstest(data))
    harm, clean = Grammar.load("harm"), Grammar.load("clean")
    found = Examples()
    for group, label in (("unsafe", 1.0), ("safe", 0.0)):
        for category in harm.groups[group]:
            for _ in range(int(share * PER_CATEGORY)):
                text = vary(_draw(harm, group, category, rng), rng)
                if not copies.holds(text):
                    found.add(text, label)
    others = [vary(clean.draw("categories", c, rng), rng) for c in clean.groups["categories"] for _ in range(400)]
    others += [question for question, _ in sets.sample(sets.medquad(data), 1500, rng)]
    others += [text for text, _ in sets.sample(sets.clinc(data, "train"), 6000, rng) + sets.clinc(data, "oos_train")]
    others += [text for text, _ in sets.sample(sets.bitext(data), 1500, rng)]
    for language, paragraphs in sets.xquad(data).items():
        others += [rng.choice(questions) for _, questions in paragraphs[: 120 if language == "en" else 20]]
    others += sets.retail_turns(data)[::2]
    for text in sets.sample(others, int(share * len(others)), rng):
        found.add(text, 0)
    return found


def _draw(grammar: Grammar, group: str, category: str, rng: random.Random) -> str:
    """A text; a third of those that ask "how do I <verb>" ask with the -ing form instead, safe and unsafe alike."""
    template = rng.choice(grammar.groups[group][category])
    if template.startswith("{how} ") and rng.random() < 0.33:
        return f"{grammar.expand('{of}', rng)} {gerund(grammar.expand(template.removeprefix('{how} '), rng))}"
    return grammar.expand(template, rng)


if __name__ == "__main__":
    main()
