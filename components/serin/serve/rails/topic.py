"""Is a question off the topics that a policy declares by examples?

A question is on topic when it is near some example: by the words' meanings (rows of the rails' word table, rarer words
counting more) and by the word pieces themselves, or by sentence embeddings where they are at hand.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from serin.core.pieces import table
from serin.serve.rails import encoder
from serin.serve.rails.normal import plain

DEFAULT_THRESHOLD = 0.5
NEIGHBOURS = 3
"""Nearest examples whose similarity is averaged."""
BUCKETS = 4096


@dataclass(frozen=True)
class TopicModel:
    """The declared topics, ready to judge texts; safe to share between threads."""

    weights: np.ndarray
    """(pieces,): how much a word piece counts."""
    meanings: np.ndarray
    """(examples, 64)."""
    words: np.ndarray
    """(buckets, examples): which examples hold a word piece, and how much it counts there."""
    embeddings: np.ndarray | None
    """(examples, 384), unit rows; None where ``fit`` got none."""
    scale: tuple[float, float]
    """Median of the examples' own nearness, and its spread, by words."""
    embedding_scale: tuple[float, float]
    """The same by embeddings."""

    @classmethod
    def fit(cls, examples: Sequence[str], embeddings: np.ndarray | None = None) -> Self:
        """Learn what is on topic from a policy's examples.

        Args:
            examples: at least one text; a few dozen for each topic are better.
            embeddings: (examples, dimensions) of the same texts; then ``score`` takes an embedding too.

        Raises:
            ValueError: no examples, or not as many embeddings.
        """
        if not examples:
            raise ValueError("A topic model needs at least one example of a question on topic.")
        if embeddings is not None and len(embeddings) != len(examples):
            raise ValueError(f"{len(examples)} examples came with {len(embeddings)} embeddings: give one for each.")
        rows = [encoder.pieces(plain(text)) for text in examples]
        counts = Counter(piece for row in rows for piece in set(row))
        weights = np.ones(len(table()), dtype=np.float32)
        for piece, count in counts.items():
            weights[piece] = 1 / (1 + 20 * count / (len(rows) + 20))
        meanings = np.stack([_meaning(row, weights) for row in rows])
        words = np.zeros((BUCKETS, len(rows)), dtype=np.float32)
        for i, row in enumerate(rows):
            ids, counted = _words(row, weights)
            words[ids, i] = counted
        units = None if embeddings is None else _unit(np.asarray(embeddings, dtype=np.float32))
        own = [_alike(row, weights, meanings, words) for row in (rows[i] for i in _spread(len(rows)))]
        other = (0.5, 0.15) if units is None else _own_scale([units[i] @ units.T for i in _spread(len(rows))])
        return cls(weights, meanings, words, units, _own_scale(own), other)

    def score(self, text: str, embedding: np.ndarray | None = None) -> float:
        """Off-topic-ness in [0, 1]; ``embedding`` (384,) is used where ``fit`` got the examples' too."""
        if embedding is not None and self.embeddings is not None:
            near = _nearness(self.embeddings @ _unit(np.asarray(embedding, dtype=np.float32)[None])[0])
            return _off(near, self.embedding_scale)
        alike = _alike(encoder.pieces(plain(text)), self.weights, self.meanings, self.words)
        return _off(_nearness(alike), self.scale)


def _alike(row: Sequence[int], weights: np.ndarray, meanings: np.ndarray, words: np.ndarray) -> np.ndarray:
    """(examples,): half the cosine of meanings plus half that of the word pieces themselves."""
    ids, counted = _words(row, weights)
    result: np.ndarray = (meanings @ _meaning(row, weights) + counted @ words[ids]) / 2
    return result


def _meaning(row: Sequence[int], weights: np.ndarray) -> np.ndarray:
    ids = np.asarray(row, dtype=np.int64)
    found = (table()[ids] * weights[ids, None]).sum(axis=0)
    result: np.ndarray = found / max(float(np.linalg.norm(found)), 1e-6)
    return result


def _words(row: Sequence[int], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Buckets of a row's word pieces, and their weights as a vector of length 1."""
    ids = np.asarray(row, dtype=np.int64)
    buckets, where = np.unique(ids % BUCKETS, return_inverse=True)
    found = np.bincount(where, weights=weights[ids], minlength=len(buckets)).astype(np.float32)
    return buckets, found / max(float(np.linalg.norm(found)), 1e-6)


def _spread(count: int) -> list[int]:
    """At most 500 indices, evenly spread."""
    return [int(i) for i in np.linspace(0, count - 1, min(500, count))]


def _unit(vectors: np.ndarray) -> np.ndarray:
    result: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return result


def _nearness(similarities: np.ndarray) -> float:
    count = min(NEIGHBOURS, len(similarities))
    return float(np.partition(similarities, -count)[-count:].mean())


def _own_scale(similarities: Sequence[np.ndarray]) -> tuple[float, float]:
    """Median and spread of examples' nearness to the other examples; each row holds the example itself too."""
    if len(similarities) < 3:
        return 0.6, 0.15
    near = np.array([_nearness(np.delete(row, int(row.argmax()))) for row in similarities])
    low, middle = np.quantile(near, [0.05, 0.5])
    return float(middle), max(float(middle - low), 0.05)


def _off(nearness: float, scale: tuple[float, float]) -> float:
    """0.5 where a text is as far from the examples as the farthest twentieth of the examples themselves."""
    middle, spread = scale
    return encoder.sigmoid(4 * ((middle - nearness) / spread - 1))
