"""A two-layer transformer over a fixed word table, in numpy: the shared body of the rails' classifiers.

A text is cut into MiniLM's word pieces; each piece is a row of the table (64 dimensions, int8).  Windows of up to 64
pieces pass through the layers together, and their mean and maximum go to a small head.  Weights come from
``serin.serve.rails.training``; RAILS.md says how they were made.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from serin.core.blas import hold_to_one_thread
from serin.core.pieces import table, tokenizer
from serin.core.transformer import Array, Weights, apply_layers, load_weights
from serin.serve.rails.normal import readings

WEIGHTS = Path(__file__).with_name("weights")
WINDOW = 64
"""Word pieces that one window holds."""
MAX_WINDOWS = 512
"""Windows of one text that are judged; a longer text is judged in evenly spaced ones."""
BATCH = 16
NOTHING = -30.0
"""Logit of a text without a word."""


@lru_cache(maxsize=8)
def load(name: str) -> dict[str, Array]:
    """Weights by name; half precision becomes float32."""
    hold_to_one_thread()
    return load_weights(WEIGHTS / f"{name}.safetensors")


@lru_cache(maxsize=8)
def pieces(text: str) -> tuple[int, ...]:
    """Ids of a text's word pieces; the last few texts' are kept for the next rail."""
    return tuple(tokenizer().encode(text, add_special_tokens=False).ids)


def windows(ids: Sequence[int]) -> list[Sequence[int]]:
    """Cut ids into overlapping windows that together hold each piece; too many are thinned out evenly."""
    begins = starts(len(ids))
    if len(begins) > MAX_WINDOWS:
        begins = [begins[i] for i in np.linspace(0, len(begins) - 1, MAX_WINDOWS).astype(int)]
    return [ids[start : start + WINDOW] for start in begins]


def starts(length: int, stride: int = WINDOW * 3 // 4) -> list[int]:
    """Where the windows begin that together hold a row of word pieces."""
    return [*range(0, length - WINDOW, stride), max(0, length - WINDOW)]


@lru_cache(maxsize=4)
def rows_of(text: str) -> tuple[Sequence[int], ...]:
    """Windows of all readings of a text (``rails.normal``); kept for the next rail that judges the same text."""
    return tuple(row for reading in readings(text) for row in windows(pieces(reading)) if row)


def highest(text: str, weights: Weights) -> float:
    """The highest logit of any window of a text, by a head with one output; ``NOTHING`` for a text without a word."""
    rows = rows_of(text)[: 2 * MAX_WINDOWS]
    if not rows:
        return NOTHING
    return float((encode(rows, weights) @ weights["head.w"][0] + weights["head.b"][0]).max())


def encode(rows: Sequence[Sequence[int]], weights: Weights) -> Array:
    """Pool each row of ids: (rows, 2 * width), the mean and the maximum of the last layer's outputs."""
    found = np.empty((len(rows), 2 * weights["in.w"].shape[1]), dtype=np.float32)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for first in range(0, len(rows), BATCH):
        batch = order[first : first + BATCH]
        found[batch] = _encode_batch([rows[i] for i in batch], weights)
    return found


def _encode_batch(rows: Sequence[Sequence[int]], weights: Weights) -> Array:
    length = max(1, *map(len, rows))
    ids = np.zeros((len(rows), length), dtype=np.int64)  # (windows, pieces)
    mask = np.zeros((len(rows), length), dtype=np.float32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row[:length]
        mask[i, : len(row)] = 1
    mask[:, 0] = 1  # an empty text is one piece of padding
    hidden = table()[ids] @ weights["in.w"] + weights["position"][:length]  # (windows, pieces, width)
    hidden = apply_layers(hidden, mask, weights)
    mean = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    most = (hidden + ((mask - 1) * 1e4)[:, :, None]).max(axis=1)
    return np.concatenate([mean, most], axis=1)


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), without overflow."""
    return float(1 / (1 + np.exp(-np.clip(logit, -40, 40))))
