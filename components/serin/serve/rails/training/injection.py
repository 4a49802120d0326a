"""Train the injection rail for users' turns.

Run: python -m serin.serve.rails.training.injection --data DIR --output FILE
DIR holds the public data sets that ``training.data`` reads; FILE becomes ``weights/injection.safetensors``.
"""

import argparse
import logging
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from serin.core.transformer_training import save, table_tensor, train
from serin.serve.rails import injection
from serin.serve.rails.encoder import WINDOW, pieces
from serin.serve.rails.normal import plain
from serin.serve.rails.training import data as sets
from serin.serve.rails.training.grammar import Grammar, vary
from serin.serve.rails.training.student import Student

logger = logging.getLogger(__name__)

SEED = 20
STEPS = 450
BATCH = 192
LEARNING_RATE = 2e-3
PER_CATEGORY = 700
NUM_CLEAN = 22_000
PER_LANGUAGE = 220
QUANTILE = 0.993
HELD_OUT_XQUAD = 60
"""XQuAD's last paragraphs of each language, left for calibration."""


@dataclass
class Examples:
    """Rows of word pieces with their labels."""

    rows: list[list[int]] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)

    def add(self, text: str, label: float) -> None:
        """Add a text as it will be seen: in its plain reading."""
        self.rows.append(list(pieces(plain(text[:1000]))))
        self.labels.append(float(label))


def main() -> None:
    """Train the network, set its offset and write it."""
    parser = argparse.ArgumentParser(description="Train the injection rail.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data sets")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    weights = train_turn(arguments.data)
    scores = [turn_logits(texts, weights) for texts in calibration_turns(arguments.data)]
    weights["offset"] = offset(scores, QUANTILE)
    save(weights, arguments.output)


def offset(scores: Sequence[np.ndarray], quantile: float) -> np.ndarray:
    """(1,): the logit that becomes a score of 0.5, so that each calibration set has at most 1 - quantile above it."""
    found = [float(np.quantile(one, quantile)) for one in scores]
    logger.info("logits at quantile %s, by calibration set: %s", quantile, np.round(found, 2))
    return np.array([max(found)])


def calibration_turns(data: Path) -> list[list[str]]:
    """Clean turns that set the threshold: CLINC150's train part, XQuAD's left-out questions, left-out retail turns."""
    rng = sets.seeded(SEED)
    questions = [one for rows in sets.xquad(data).values() for _, asked in rows[-HELD_OUT_XQUAD:] for one in asked]
    turns = [text for text, _ in sets.clinc(data, "train")]
    return [sets.sample(turns, 2000, rng), sets.sample(questions, 600, rng), sets.retail_turns(data)[1::2]]


def turn_logits(texts: Sequence[str], weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """(texts,): what ``rails.injection`` gives before the offset."""
    return np.array([injection.turn_logit(text, weights) for text in texts])


def train_turn(
    data: Path, leave_out: Collection[str] = (), steps: int = STEPS, share: float = 1.0
) -> dict[str, np.ndarray]:
    """Weights of the network; categories of attacks can be left out to test on them, and a share of the texts used."""
    examples = turn_examples(data, leave_out, share)
    labels = torch.tensor(examples.labels)
    torch.manual_seed(SEED)
    model = Student(table_tensor(), outputs=1)
    rng = sets.seeded(SEED)

    def loss_of(ids: Tensor, mask: Tensor, indices: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(model(ids, mask)[:, 0], labels[indices])

    rows = [_crop(row, WINDOW, rng) for row in examples.rows]
    train(model, rows, loss_of, steps=steps, batch=BATCH, learning_rate=LEARNING_RATE, seed=SEED)
    return {**model.body(), "head.w": array(model.head.weight), "head.b": array(model.head.bias)}


def turn_examples(data: Path, leave_out: Collection[str] = (), share: float = 1.0) -> Examples:
    """Attacks by our grammar and clean turns: our grammar's, questions and prose of public sets."""
    rng = sets.seeded(SEED)
    copies = sets.Copies(row["prompt"] for row in sets.giskard(data))
    attacks, clean = Grammar.load("attacks"), Grammar.load("clean")
    benign = clean_turns(data, clean, rng)
    found = Examples()
    categories = [name for name in attacks.groups["categories"] if name not in leave_out]
    for category in categories:
        for _ in range(int(share * PER_CATEGORY)):
            text = vary(attacks.draw("categories", category, rng), rng)
            if copies.holds(text):
                continue
            if rng.random() < 0.2:
                text = f"{text} {vary(attacks.draw('categories', rng.choice(categories), rng), rng)}"
            found.add(text, 1)
            if rng.random() < 0.4:
                found.rows[-1] = _surrounded(found.rows[-1], rng.choice(benign), rng.choice(benign), rng)
    for language in attacks.groups["languages"]:
        for _ in range(int(share * PER_LANGUAGE)):
            found.add(vary(attacks.draw("languages", language, rng), rng), 1)
    for text in sets.sample(benign, int(share * NUM_CLEAN), rng):
        found.add(text, 0)
    return found


def clean_turns(data: Path, clean: Grammar, rng: random.Random) -> list[str]:
    """Texts without an attack, of the sets that no test of false alarms uses."""
    found = [vary(clean.draw("categories", c, rng), rng) for c in clean.groups["categories"] for _ in range(1500)]
    found += [vary(clean.draw("languages", c, rng), rng) for c in clean.groups["languages"] for _ in range(200)]
    harm = Grammar.load("harm")
    for group in harm.groups:
        found += [vary(harm.draw(group, c, rng), rng) for c in harm.groups[group] for _ in range(200)]
    health = sets.sample(sets.medquad(data), 4000, rng)
    found += [vary(question, rng) for question, _ in health]
    found += [_excerpt(answer, rng) for _, answer in health[:3000]]
    for paragraphs in sets.xquad(data).values():
        for paragraph, questions in paragraphs[:-HELD_OUT_XQUAD]:
            found += sets.sample(questions, 3, rng)
            found.append(_excerpt(paragraph, rng))
    found += [turn for turn in sets.retail_turns(data)[::2] for _ in range(3)]
    found += [_excerpt(page, rng) for page in sets.kubeflow(data) for _ in range(3)]
    found += [_excerpt(text, rng) for text in known_passages(data)]
    singles = list(found)
    found += [f"{a} {b}" for a, b in zip(rng.choices(singles, k=3000), rng.choices(singles, k=3000), strict=True)]
    return [text for text in found if text.strip()]


def known_passages(data: Path) -> list[str]:
    """Every other passage of MTRAG's public pages (government and IBM); the rest are left for the threshold."""
    return [text for name, text in sets.mtrag_passages(data) if not name.endswith("clapnq")][::2]


def _surrounded(row: list[int], before: str, after: str, rng: random.Random) -> list[int]:
    """An attack among clean text, within one window."""
    room = max(0, WINDOW - len(row))
    left = rng.randint(0, room)
    return [*pieces(before)[-left:], *row, *pieces(after)[: room - left]] if left else [*row, *pieces(after)[:room]]


def _excerpt(text: str, rng: random.Random) -> str:
    at = rng.randrange(max(1, len(text) - 300))
    return text[at : at + rng.randrange(60, 320)]


def _crop(row: list[int], size: int, rng: random.Random) -> list[int]:
    start = rng.randrange(max(1, len(row) - size + 1))
    return row[start : start + size]


def array(tensor: Tensor) -> np.ndarray:
    """A tensor's values."""
    return tensor.detach().numpy().copy()


if __name__ == "__main__":
    main()
