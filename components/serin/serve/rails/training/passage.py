"""Train the injection rail for the passages of documents.

Run: python -m serin.serve.rails.training.passage --data DIR --output FILE
DIR holds the public data sets that ``training.data`` reads; FILE becomes ``weights/passage.safetensors``.
"""

import argparse
import logging
import random
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from serin.core.pieces import table
from serin.core.transformer_training import save, table_tensor, train
from serin.serve.rails import injection
from serin.serve.rails.encoder import pieces
from serin.serve.rails.normal import plain
from serin.serve.rails.sentences import sentences
from serin.serve.rails.training import data as sets
from serin.serve.rails.training.grammar import Grammar, vary
from serin.serve.rails.training.injection import HELD_OUT_XQUAD, Examples, known_passages
from serin.serve.rails.training.linear import offset
from serin.serve.rails.training.student import Student

SEED = 21
STEPS = 500
BATCH = 192
LEARNING_RATE = 2e-3
SENTENCES = 6
"""Of a clean passage that are learned from."""
QUANTILE = 0.98
DIRECT = ("override", "prompt_leak", "fake_system", "output_forcing", "exfiltration", "authority", "special_mode")
"""Kinds of attacks in a user's turn that a document may hold too."""


def main() -> None:
    """Train the network, set its offset and write it."""
    parser = argparse.ArgumentParser(description="Train the injection rail for passages.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data sets")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    weights = train_passage(arguments.data)
    scores = [passage_logits(texts, weights) for texts in calibration_passages(arguments.data)]
    weights["offset"] = offset([np.concatenate(scores)], QUANTILE)
    save(weights, arguments.output)


def calibration_passages(data: Path) -> list[list[str]]:
    """Clean passages that set the threshold: MTRAG's public pages and XQuAD's paragraphs that were left out."""
    pages = [text for name, text in sets.mtrag_passages(data) if not name.endswith("clapnq")][1::2]
    return [pages, [text for rows in sets.xquad(data).values() for text, _ in rows[-HELD_OUT_XQUAD:]][::2]]


def passage_logits(texts: Sequence[str], weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """(texts,): the same for passages."""
    return np.array([injection.passage_logit(text, weights) for text in texts])


def train_passage(data: Path, leave_out: Collection[str] = (), steps: int = STEPS) -> dict[str, np.ndarray]:
    """Weights of the network for the sentences of a passage."""
    examples, others = passage_examples(data, leave_out)
    labels = torch.tensor(examples.labels)
    torch.manual_seed(SEED)
    model = PassageStudent(table_tensor())
    rows = [row[: injection.SENTENCE_PIECES] for row in examples.rows]
    means = torch.from_numpy(others)

    def loss_of(ids: Tensor, mask: Tensor, indices: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(model(ids, mask, means[indices]), labels[indices])

    train(model, rows, loss_of, steps=steps, batch=BATCH, learning_rate=LEARNING_RATE, seed=SEED)
    return model.arrays()


def passage_examples(data: Path, leave_out: Collection[str] = ()) -> tuple[Examples, np.ndarray]:
    """Sentences of passages (0) and requests to an assistant put there (1); (rows, 64) means of the rest's words."""
    rng = sets.seeded(SEED)
    copies = sets.Copies(text for texts in sets.bipia_attacks(data).values() for text in texts)
    foreign, attacks = Grammar.load("passages"), Grammar.load("attacks")
    found, means, whole = Examples(), [], []
    for passage in clean_passages(data, rng):
        rows = [row for part in sentences(plain(passage)) if (row := list(pieces(part)))]
        sums, counts = np.stack([table()[row].sum(axis=0) for row in rows]), [len(row) for row in rows]
        whole.append(sums.sum(axis=0) / sum(counts))
        for i in sets.sample(range(len(rows)), SENTENCES, rng):
            found.rows.append(rows[i])
            found.labels.append(0.0)
            means.append((sums.sum(axis=0) - sums[i]) / max(1, sum(counts) - counts[i]))
    kinds = [(foreign, name) for name in foreign.groups["categories"] if name not in leave_out]
    kinds += [(attacks, name) for name in DIRECT if name not in leave_out]
    for grammar, category in kinds:
        for _ in range(700 if grammar is foreign else 300):
            text = vary(grammar.draw("categories", category, rng), rng)
            if not copies.holds(text):
                found.add(text, 1)
                means.append(rng.choice(whole))
    return found, np.stack(means)


def clean_passages(data: Path, rng: random.Random) -> list[str]:
    """Passages of the sets that no test of the passage rail uses."""
    health = sets.sample(sets.medquad(data), 1600, rng)
    found = [answer[:1500] for _, answer in health]
    found += [f"{question}\n{answer[:800]}" for question, answer in health[:500]]
    for language, paragraphs in sets.xquad(data).items():
        found += [paragraph for paragraph, _ in paragraphs[: -HELD_OUT_XQUAD if language == "en" else 40]]
    for page in sets.kubeflow(data):
        at = rng.randrange(max(1, len(page) - 1500))
        found.append(page[at : at + 1500])
    found += [answer for _, answer in sets.sample(sets.bitext(data), 600, rng)]
    found += [text[at : at + 1500] for text in sets.abcd(data)[::2] for at in range(0, min(len(text), 6000), 1500)]
    return [text for text in found + known_passages(data) if sentences(text)]


def array(tensor: Tensor) -> np.ndarray:
    """A tensor's values."""
    return tensor.detach().numpy().copy()


class PassageStudent(nn.Module):
    """A sentence's pooled outputs, and how its words agree with those of the rest of the passage, to one logit."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.student = Student(table, outputs=32)
        self.agree = nn.Linear(table.shape[1], 32, bias=False)
        self.last = nn.Linear(64, 1)

    def forward(self, ids: Tensor, mask: Tensor, means: Tensor) -> Tensor:
        weight = mask[:, :, None].float()
        own = self.agree((self.student.table[ids] * weight).sum(1) / weight.sum(1))
        hidden = torch.cat([torch.relu(self.student(ids, mask)), own * self.agree(means)], dim=1)
        return self.last(hidden)[:, 0]

    def arrays(self) -> dict[str, np.ndarray]:
        """Weights under the names that ``rails.injection`` reads."""
        head = {
            "head.w": self.student.head.weight,
            "head.b": self.student.head.bias,
            "agree.w": self.agree.weight,
            "last.w": self.last.weight,
            "last.b": self.last.bias,
        }
        return {**self.student.body(), **{key: array(value) for key, value in head.items()}}


if __name__ == "__main__":
    main()
