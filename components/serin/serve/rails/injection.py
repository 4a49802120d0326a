"""Does a text try to instruct the model against its owner?"""

from collections.abc import Mapping, Sequence

import numpy as np

from serin.core.pieces import table
from serin.serve.rails import encoder, twostep
from serin.serve.rails.normal import readings
from serin.serve.rails.sentences import MAX_SENTENCES, sentences

DEFAULT_THRESHOLD = 0.5
"""For a user's turn."""
DEFAULT_PASSAGE_THRESHOLD = 0.5
"""For a document's passage."""
SENTENCE_PIECES = 48
"""Word pieces of a sentence that count; a longer sentence is judged in several parts."""


def score(text: str) -> float:
    """Probability-like score in [0, 1] that a user's turn is an injection or a jailbreak.

    Each reading of the text (see ``rails.normal``) is judged sentence by sentence and in windows of 64 word pieces,
    in two steps (``rails.twostep``); the highest score counts.
    """
    return encoder.sigmoid(twostep.logit(text, encoder.load("injection")))


def score_passage(text: str) -> float:
    """Score in [0, 1] that a passage holds an instruction that is foreign to it.

    Each sentence is judged by itself and by how its words agree with the rest of the passage; the highest counts.
    """
    weights = encoder.load("passage")
    return encoder.sigmoid(passage_logit(text, weights) - float(weights["offset"][0]))


def passage_logit(text: str, weights: Mapping[str, np.ndarray]) -> float:
    """The network's highest output for a sentence of a passage; very low for a text without a word."""
    rows = _sentence_rows(text)
    if not rows:
        return encoder.NOTHING
    sums = np.stack([table()[list(row)].sum(axis=0) for row in rows])  # (sentences, 64)
    counts = np.array([[len(row)] for row in rows], dtype=np.float32)
    others = (sums.sum(axis=0) - sums) / np.maximum(1, counts.sum() - counts)
    agreement = (sums / counts) @ weights["agree.w"].T * (others @ weights["agree.w"].T)
    own = np.maximum(encoder.encode(rows, weights) @ weights["head.w"].T + weights["head.b"], 0)
    logits = np.concatenate([own, agreement], axis=1) @ weights["last.w"][0] + weights["last.b"][0]
    return float(logits.max())


def _sentence_rows(text: str) -> list[Sequence[int]]:
    rows: list[Sequence[int]] = []
    for reading in readings(text):  # the plain one, then only what hides in it
        for sentence in sentences(reading):
            ids = encoder.pieces(sentence)
            rows += [ids[at : at + SENTENCE_PIECES] for at in range(0, len(ids), SENTENCE_PIECES)]
    return rows[:MAX_SENTENCES]
