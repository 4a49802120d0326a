"""How far an answer's words follow its passages: shares, runs and what is new, as features of one answer."""

import math
from collections.abc import Sequence

from serin.core.grounding.alignment import MOST_PLACES
from serin.core.grounding.sites import Sentence
from serin.core.grounding.words import Passage, Word

OVERLAP_FEATURES = (
    "all", "distinct", "content", "weighted", "pairs", "triples", "chunks", "fragments", "window_mean", "window_least",
    "new_content", "new_stop", "new_self", "self", "chat", "question", "longest_new", "length", "pronouns_new",
    "new_content_count", "order",
)  # fmt: skip
LONGEST_RUN = 200
_PRONOUNS_TEXT = "he she it they them his her their its this that these those him"
_PRONOUNS = frozenset(_PRONOUNS_TEXT.split())


def overlap_features(
    words: Sequence[Word], sentences: Sequence[Sentence], passages: Sequence[Passage], questions: float
) -> tuple[float, ...]:
    """Features of a whole answer, all in 0 to 1.

    Args:
        words: of the answer, at least one.
        sentences: the answer's, aligned.
        passages: what it may rest on.
        questions: share of its sentences that ask.
    """
    known = [any(word.stem in passage.places for passage in passages) for word in words]
    claims = [place for place, word in enumerate(words) if word.kind != "chat"] or list(range(len(words)))
    content = [place for place in claims if words[place].kind in ("word", "name", "number")]
    distinct = {words[place].stem: known[place] for place in claims}
    weights = {words[place].stem: math.log(2 + len(words[place].stem)) for place in content}
    held = {words[place].stem for place in content if known[place]}
    runs = _runs(words, passages)
    new = [place for place in claims if not known[place]]
    total, least = len(claims), min((s.window.share for s in sentences if len(s.words) > 2), default=1.0)
    mean = sum(s.window.share * len(s.words) for s in sentences) / len(words)

    def share(kinds: tuple[str, ...], places: Sequence[int]) -> float:
        return sum(words[place].kind in kinds for place in places) / total

    return (
        sum(known[place] for place in claims) / total,
        sum(distinct.values()) / len(distinct),
        len(held) / len(weights) if weights else 1.0,
        sum(weights[stem] for stem in held) / sum(weights.values()) if weights else 1.0,
        sum(run - 1 for run in runs) / max(1, len(words) - 1),
        sum(max(0, run - 2) for run in runs) / max(1, len(words) - 2),
        sum(run for run in runs if run >= 4) / len(words),
        len(runs) / len(words),
        mean,
        least,
        share(("word", "name", "number"), new),
        share(("stop", "negation"), new),
        share(("self",), new),
        share(("self",), claims),
        sum(word.kind == "chat" for word in words) / len(words),
        questions,
        min(1.0, _longest(known) / 10),
        min(1.0, math.log(len(words)) / 6),
        sum(words[place].stem in _PRONOUNS for place in new) / total,
        min(1.0, math.log1p(sum(words[place].kind in ("word", "name", "number") for place in new)) / 4),
        max(runs, default=0) / len(words),
    )  # fmt: skip


def _runs(words: Sequence[Word], passages: Sequence[Passage]) -> list[int]:
    """Lengths of the stretches that the answer shares with a passage word by word, longest first match, greedily."""
    runs: list[int] = []
    at = 0
    while at < len(words):
        length = max((_run_from(words, at, passage) for passage in passages), default=0)
        if length:
            runs.append(length)
        at += max(1, length)
    return runs


def _run_from(words: Sequence[Word], at: int, passage: Passage) -> int:
    best, left = 0, min(LONGEST_RUN, len(words) - at)
    for place in passage.places.get(words[at].stem, ())[:MOST_PLACES]:
        length, most = 1, min(left, len(passage.stems) - place)
        while length < most and words[at + length].stem == passage.stems[place + length]:
            length += 1
        best = max(best, length)
    return best


def _longest(known: Sequence[bool]) -> int:
    best = run = 0
    for held in known:
        run = 0 if held else run + 1
        best = max(best, run)
    return best
