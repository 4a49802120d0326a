"""What a sentence of an answer is read beside: the sentences of the passages that hold most of its word pieces."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from serin.core.grounding.words import _NUMBER_WORDS, _VAGUE_NUMBERS, PASSAGE_CHARS_LIMIT, _stem
from serin.core.pieces import tokenizer

CAPITAL = 1 << 16
"""Added to the id of a word piece that is capitalised inside a sentence."""
SENTENCE_PIECES = 60
"""A longer sentence is read in several parts."""
EVIDENCE_PIECES = 128
EVIDENCE_SENTENCES = 8
CACHED_CONTEXTS = 64

SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_STOPS_TEXT = (
    "the a an of to in and is are was were it that this for on with as by at from or be have has had you your i we "
    "they he she which can will not do does"
)
_COVERED = 0.3
"""What is left of a piece's weight once a chosen sentence holds it."""
_RARE, _LENGTH = 0.2, 12

Pieces = tuple[int, ...]
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Context:
    """The sentences of an answer's passages."""

    sentences: tuple[Pieces, ...]
    forms: tuple[frozenset[int], ...]
    """Canonical forms of each sentence's pieces."""
    frequency: Counter[int]
    """In how many sentences each form stands."""


def marked_pieces(text: str) -> tuple[Pieces, Spans]:
    """A text's word pieces, ``CAPITAL`` added where that tells, and the characters of each."""
    encoded = tokenizer().encode(text, add_special_tokens=False)
    found, opening = [], True
    for piece, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
        found.append(piece | CAPITAL if text[start : start + 1].isupper() and not opening else piece)
        opening = text[start:end] in ".!?" or (opening and not text[start:end].strip("\"'`*-( "))
    return tuple(found), tuple(encoded.offsets)


def sentences_with_spans(text: str) -> list[tuple[Pieces, Spans]]:
    """The sentences of a text, long ones in parts, each with the characters of its pieces in the text."""
    found, first = [], 0
    for end, after in [*(match.span() for match in SENTENCE.finditer(text)), (len(text), len(text))]:
        pieces, spans = marked_pieces(text[first:end])
        parts = math.ceil(len(pieces) / SENTENCE_PIECES)
        step = math.ceil(len(pieces) / parts) if parts else 1
        for at in range(0, len(pieces), step):
            placed = tuple((first + start, first + stop) for start, stop in spans[at : at + step])
            found.append((pieces[at : at + step], placed))
        first = after
    return found


@lru_cache(maxsize=256)
def _sentences(passage: str) -> tuple[Pieces, ...]:
    return tuple(pieces for pieces, _ in sentences_with_spans(passage[:PASSAGE_CHARS_LIMIT]))


@lru_cache(maxsize=CACHED_CONTEXTS)
def context_of(passages: tuple[str, ...]) -> Context:
    """The passages' sentences, read once and remembered."""
    sentences = tuple(sentence for passage in passages for sentence in _sentences(passage))
    forms = tuple(frozenset(forms_of(sentence)) for sentence in sentences)
    return Context(sentences, forms, Counter(form for sentence in forms for form in sentence))


def evidence_for(claim: Pieces, context: Context) -> Pieces:
    """Up to ``EVIDENCE_PIECES`` pieces of the passages, in their order.

    Sentences are taken greedily by the rarity of the claim's pieces that no earlier one holds; those on both sides of
    the first come with it.
    """
    count, frequency = len(context.sentences), context.frequency
    wanted = set(forms_of(claim)) - stop_forms()
    left = {form: math.log(1 + count / frequency[form]) + _RARE for form in wanted if form in frequency}
    chosen: set[int] = set()
    room = EVIDENCE_PIECES
    for turn in range(EVIDENCE_SENTENCES):
        best, most = -1, 0.0
        for at, forms in enumerate(context.forms):
            if at in chosen or len(context.sentences[at]) > room:
                continue
            gain = sum(left[form] for form in forms & left.keys()) / math.sqrt(_LENGTH + len(context.sentences[at]))
            if gain > most:
                best, most = at, gain
        if best < 0:
            break
        for at in (best, best + 1, best - 1) if turn == 0 else (best,):
            if 0 <= at < count and at not in chosen and len(context.sentences[at]) <= room:
                chosen.add(at)
                room -= len(context.sentences[at])
                for form in context.forms[at] & left.keys():
                    left[form] *= _COVERED
    return tuple(piece for at in sorted(chosen) for piece in context.sentences[at])


def forms_of(pieces: Sequence[int]) -> list[int]:
    """Canonical form of each piece: words by stem, numbers by value."""
    found: list[int] = canonical_forms()[np.asarray(pieces, dtype=np.int64) & (CAPITAL - 1)].tolist()
    return found


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every word piece, by id."""
    ids = tokenizer().get_vocab()
    return tuple(sorted(ids, key=ids.__getitem__))


@lru_cache(maxsize=1)
def canonical_forms() -> np.ndarray:
    """(pieces,): the number of each piece's canonical form."""
    numbered: dict[tuple[str, str], int] = {}
    return np.array([numbered.setdefault(_form(piece), len(numbered)) for piece in vocabulary()], dtype=np.int64)


@lru_cache(maxsize=1)
def stop_forms() -> frozenset[int]:
    """Forms that do not count when evidence is chosen: common words and marks."""
    ids, forms = tokenizer().get_vocab(), canonical_forms()
    marks = [at for at, piece in enumerate(vocabulary()) if not any(char.isalnum() for char in piece)]
    return frozenset(int(forms[at]) for at in [*marks, *(ids[word] for word in _STOPS_TEXT.split())])


def _form(piece: str) -> tuple[str, str]:
    if piece.startswith("##"):
        return "inside", piece
    if piece in _NUMBER_WORDS and piece not in _VAGUE_NUMBERS:
        return "number", _NUMBER_WORDS[piece]
    if piece.isdigit():
        return "number", piece.lstrip("0") or "0"
    return ("word", _stem(piece)) if piece.isalpha() and len(piece) > 3 else ("piece", piece)
