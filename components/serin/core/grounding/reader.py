"""A small network that reads each sentence of an answer beside its evidence, and says which of its words are false.

Two transformer layers over MiniLM's word pieces (``core.pieces``), in numpy; trained by ``training.reader`` on claims
made from public texts.  What it says of a word becomes six more features of the place (``sites``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from serin.core.grounding.evidence import (
    CAPITAL,
    EVIDENCE_PIECES,
    Pieces,
    Spans,
    canonical_forms,
    context_of,
    evidence_for,
    sentences_with_spans,
    vocabulary,
)
from serin.core.grounding.model import Reading
from serin.core.grounding.sites import Site
from serin.core.grounding.words import NEGATIONS, Word
from serin.core.pieces import table
from serin.core.transformer import apply_layers, load_weights

WEIGHTS = Path(__file__).parent / "reader.safetensors"

CLAIM_PIECES = 64
POSITIONS = CLAIM_PIECES + EVIDENCE_PIECES
NUM_FEATURES = 11
AROUND = 2
"""Word pieces on each side that are read together with one."""
SEPARATOR = 102
LABELS = ("supported", "unsupported", "false")
BATCH = 8

_LIMIT = 8.0
_SEARCHED_CHARS = 60
_UNREAD = (-4.0, -4.0, -4.0)
"""Neighbour of the first and the last word."""

Array = np.ndarray
Logits = tuple[float, float, float]


@dataclass(frozen=True)
class Row:
    """A sentence, a separator and its evidence as the network reads them."""

    ids: Array
    """(pieces,)"""
    features: Array
    """(pieces, NUM_FEATURES)"""
    positions: Array
    """(pieces,)"""


def deepened(reading: Reading, answer: str, context: Sequence[str]) -> Reading:
    """The reading with ``sites.READER_FEATURES`` added to each of its places."""
    words = word_logits(reading.words, answer, tuple(context))
    return replace(reading, sites=tuple(deepened_site(site, words) for site in reading.sites))


def deepened_site(site: Site, words: Sequence[Logits]) -> Site:
    """One place with ``sites.READER_FEATURES`` added; ``words`` is what ``word_logits`` says of the answer."""
    own = words[site.place]
    left = words[site.place - 1] if site.place else _UNREAD
    right = words[site.place + 1] if site.place + 1 < len(words) else _UNREAD
    added = (*own, left[0], right[0], own[0] * site.features[0])
    return replace(site, features=(*site.features, *(value / 4 for value in added)))


def word_logits(words: Sequence[Word], answer: str, context: tuple[str, ...]) -> list[Logits]:
    """For each word the logits that it is false, that it is unsupported, and that it is either; at most 8 in size."""
    claims = sentences_with_spans(answer)
    found = read_claims([pieces for pieces, _ in claims], context)
    spans = [span for _, spans in claims for span in spans]
    return _by_word(words, answer, tuple(spans), np.concatenate(found) if found else np.zeros((0, 3)))


def read_claims(claims: Sequence[Pieces], context: tuple[str, ...]) -> list[Array]:
    """For each claim (pieces, 3): log of the chance of each of ``LABELS``."""
    read = context_of(context)
    rows = [row_of(claim, evidence_for(claim, read)) for claim in claims]
    found: list[Array] = [np.zeros((0, 3))] * len(rows)
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].ids))
    for first in range(0, len(order), BATCH):
        batch = order[first : first + BATCH]
        for at, logits in zip(batch, _network([rows[at] for at in batch]), strict=True):
            found[at] = logits[: len(claims[at])]
    return found


def row_of(claim: Pieces, evidence: Pieces) -> Row:
    """What the network reads of a claim of at most ``CLAIM_PIECES`` pieces and its evidence."""
    one, two = np.array(claim, dtype=np.int64), np.array(evidence, dtype=np.int64)
    own, other = one & (CAPITAL - 1), two & (CAPITAL - 1)
    vectors = _directions()
    alike = vectors[own] @ vectors[other].T if len(two) else np.zeros((len(one), 1), dtype=np.float32)
    features = np.concatenate(
        [
            _features(one, two, alike.max(axis=1), is_claim=True),
            np.zeros((1, NUM_FEATURES), dtype=np.float32),
            _features(two, one, alike.max(axis=0)[: len(two)], is_claim=False),
        ]
    )
    positions = np.concatenate([np.arange(len(one)), [0], np.arange(len(two)) + CLAIM_PIECES])
    return Row(np.concatenate([own, [SEPARATOR], other]), features, positions)


def _features(marked: Array, others: Array, alike: Array, is_claim: bool) -> Array:
    """(pieces, NUM_FEATURES): whether the other side holds the piece, its form, its form with a neighbour; its kind."""
    ids, forms = marked & (CAPITAL - 1), canonical_forms()
    mine, theirs = forms[ids], forms[others & (CAPITAL - 1)]
    found = np.zeros((len(ids), NUM_FEATURES), dtype=np.float32)
    found[:, 0] = np.isin(ids, others & (CAPITAL - 1))
    found[:, 1] = np.isin(mine, theirs)
    size = len(forms)
    found[1:, 2] = np.isin(mine[:-1] * size + mine[1:], theirs[:-1] * size + theirs[1:])
    found[:-1, 3] = found[1:, 2]
    found[:, 4], found[:, 5:6] = alike, _kinds()[ids, :1]
    found[:, 6] = (marked & CAPITAL) > 0
    found[:, 7:9], found[:, 9], found[:, 10] = _kinds()[ids, 1:3], is_claim, _kinds()[ids, 3]
    return found


@lru_cache(maxsize=1)
def _kinds() -> Array:
    """(pieces, 4): how rare a piece is by its rank, whether it has a digit, goes on a word, negates."""
    rank = np.minimum(1, np.log(np.maximum(1, np.arange(len(vocabulary())) - 990)) / 10.5)
    rows = [
        (rare, any(char.isdigit() for char in piece), piece.startswith("##"), piece in NEGATIONS)
        for rare, piece in zip(rank, vocabulary(), strict=True)
    ]
    return np.array(rows, dtype=np.float32)


@lru_cache(maxsize=1)
def _directions() -> Array:
    vectors = table()
    found: Array = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return found


@lru_cache(maxsize=1)
def _weights() -> dict[str, Array]:
    return load_weights(WEIGHTS)


def _network(rows: Sequence[Row]) -> Array:
    """(rows, longest, 3): log of the chance of each label, by the shipped weights."""
    return apply_network(*padded_rows(rows), _weights())


def padded_rows(rows: Sequence[Row]) -> tuple[Array, Array, Array, Array]:
    """ids (rows, pieces), features (rows, pieces, NUM_FEATURES), positions and mask like ids."""
    length = max(len(row.ids) for row in rows)
    ids, positions = np.zeros((2, len(rows), length), dtype=np.int64)
    features = np.zeros((len(rows), length, NUM_FEATURES), dtype=np.float32)
    mask = np.zeros((len(rows), length), dtype=np.float32)
    for at, row in enumerate(rows):
        count = len(row.ids)
        ids[at, :count], features[at, :count], positions[at, :count] = row.ids, row.features, row.positions
        mask[at, :count] = 1
    return ids, features, positions, mask


def apply_network(ids: Array, features: Array, positions: Array, mask: Array, weights: Mapping[str, Array]) -> Array:
    """(rows, pieces, 3): log of the chance of each of ``LABELS``; see ``padded_rows`` for the arguments."""
    vectors = table()[ids] * mask[:, :, None]
    hidden = _beside(vectors, AROUND) @ weights["in.w"] + _beside(features, 1) @ weights["feature.w"]
    hidden = hidden + weights["feature.b"] + weights["position"][positions]
    logits: Array = apply_layers(hidden, mask, weights) @ weights["head.w"] + weights["head.b"]
    logits = logits - logits.max(axis=-1, keepdims=True)
    result: Array = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return result


def _beside(values: Array, reach: int) -> Array:
    """(rows, pieces, n) -> (rows, pieces, (2 * reach + 1) * n): each piece with those around it."""
    length = values.shape[1]
    wide = np.pad(values, ((0, 0), (reach, reach), (0, 0)))
    return np.concatenate([wide[:, at : at + length] for at in range(2 * reach + 1)], axis=-1)


def _by_word(words: Sequence[Word], answer: str, spans: Spans, found: Array) -> list[Logits]:
    """The greatest logits of each word's pieces; zeros for a word that the answer does not hold as written."""
    logits: list[Logits] = []
    at = first = 0
    each = np.clip(
        np.stack([_logit_of(found, (2,)), _logit_of(found, (1,)), _logit_of(found, (1, 2))], 1), -_LIMIT, _LIMIT
    )
    for word in words:
        start = answer.find(word.text, at, at + _SEARCHED_CHARS + len(word.text))
        if start < 0:
            logits.append((0.0, 0.0, 0.0))
            continue
        at = start + len(word.text)
        while first < len(spans) and spans[first][1] <= start:
            first += 1
        last = first
        while last < len(spans) and spans[last][0] < at:
            last += 1
        false, unsupported, doubtful = each[first:last].max(axis=0) if last > first else np.zeros(3)
        logits.append((float(false), float(unsupported), float(doubtful)))
        first = last
    return logits


def _logit_of(logs: Array, labels: tuple[int, ...]) -> Array:
    """(pieces, 3) -> (pieces,): logit of one of some labels against the others."""
    others = [label for label in range(3) if label not in labels]
    result: Array = np.logaddexp.reduce(logs[:, labels], axis=1) - np.logaddexp.reduce(logs[:, others], axis=1)
    return result
