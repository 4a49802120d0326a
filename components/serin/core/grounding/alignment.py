"""Where in the passages each sentence of an answer has its best match."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from serin.core.grounding.words import Passage, Word

LEAST_WINDOW_WORDS = 24
MOST_PLACES = 64
"""Occurrences of one word that are looked at in one passage."""


@dataclass(frozen=True, slots=True)
class Window:
    """The stretch of one passage that holds most of a sentence's content words."""

    passage: int
    """Which passage; -1 when no passage holds any word of the sentence."""
    start: int
    end: int
    """Places of the first word and after the last."""
    share: float
    """Share of the sentence's distinct content words within (0 to 1)."""


def content_of(sentence: Sequence[Word]) -> list[str]:
    """Distinct stems of the words that carry what a sentence says."""
    return list(dict.fromkeys(word.stem for word in sentence if word.kind in ("word", "name", "number")))


def best_window(sentence: Sequence[Word], passages: Sequence[Passage]) -> Window:
    """The window of about twice the sentence's length with most of its content words; the first of equals."""
    content = content_of(sentence)
    size = max(LEAST_WINDOW_WORDS, 2 * len(sentence))
    best = Window(-1, 0, 0, 0.0 if content else 1.0)
    for number, passage in enumerate(passages):
        hits = sorted((place, stem) for stem in content for place in passage.places.get(stem, ())[:MOST_PLACES])
        found, start, end = _densest(hits, size)
        if found and found / len(content) > best.share:
            best = Window(number, start, end, found / len(content))
    return best


def _densest(hits: Sequence[tuple[int, str]], size: int) -> tuple[int, int, int]:
    """Most distinct stems within ``size`` places: how many, the first place, and after the last."""
    inside: Counter[str] = Counter()
    best, first, left = (0, 0, 0), 0, 0
    for place, stem in hits:
        inside[stem] += 1
        while place - hits[left][0] >= size:
            dropped = hits[left][1]
            inside[dropped] -= 1
            if not inside[dropped]:
                del inside[dropped]
            left += 1
        first = hits[left][0]
        if len(inside) > best[0]:
            best = (len(inside), first, place + 1)
    return best
