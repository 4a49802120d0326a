"""How far an answer is supported by its passages, in a few milliseconds on a CPU and without a language model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from serin.core.grounding.claims import claims_of
from serin.core.grounding.model import GroundingModel, Reading, read_answer, shipped_model
from serin.core.grounding.words import Passage, passage_of, read

FLAGS = ("number_mismatch", "price_mismatch", "name_mismatch", "negation_mismatch", "unsupported")

ANSWER_CHARS_LIMIT = 8_000
"""What is read of an answer."""
REMEMBERED_ANSWERS = 64

_FLAG_OF = {
    "number": "number_mismatch",
    "name": "name_mismatch",
    "negation": "negation_mismatch",
    "removal": "negation_mismatch",
}
_MONEY_WORDS = frozenset(["eur", "euro", "usd", "dollar", "gbp", "pound", "chf", "franc", "cent", "pence"])
_QUESTION = re.compile(r"\?(?=\s|$)")


@dataclass(frozen=True)
class Grounding:
    """What the passages say for an answer."""

    support_score: float
    """0 (nothing supports it) to 1 (its words, numbers, names and negations are the passages')."""
    flags: tuple[str, ...] = ()
    """Some of ``FLAGS``, in their order."""


def ground(answer: str, context: Sequence[str]) -> Grounding:
    """``ground_afresh``, remembered for the last answers: the rails and the endpoint's events ask for the same ones."""
    return _remembered(answer, tuple(context))


def ground_afresh(answer: str, context: Sequence[str]) -> Grounding:
    """Compare an answer with the passages that it should rest on.

    Words, runs of words, numbers by value, names, and negations at the places that correspond; it sees invented and
    swapped facts, and not a false statement made of right words in another order.  An empty answer, and one without
    passages, scores 0; one of conversation ("Yes.") or of not knowing only scores 1.
    """
    answer = answer[:ANSWER_CHARS_LIMIT]
    words = read(answer)
    passages = [passage for passage in map(passage_of, context) if passage.stems]
    if not words or not passages:
        return Grounding(0.0, ("unsupported",) if words else ())
    claims = claims_of(answer, passages)
    if not claims:
        return Grounding(1.0)
    reading = reading_of(claims, passages)
    model = shipped_model()
    logits = model.place_logits(reading)
    score = round(model.score(model.margin(reading, logits)), 4)
    found = mismatches(model, reading, logits)
    if score < model.thresholds["unsupported"]:
        found.add("unsupported")
    return Grounding(score, tuple(flag for flag in FLAGS if flag in found))


@lru_cache(maxsize=REMEMBERED_ANSWERS)
def _remembered(answer: str, context: tuple[str, ...]) -> Grounding:
    return ground_afresh(answer, context)


def mismatches(model: GroundingModel, reading: Reading, logits: Sequence[float]) -> set[str]:
    """Flags of the places that are held to be changed."""
    found: set[str] = set()
    for site, logit in zip(reading.sites, logits, strict=True):
        if logit < model.thresholds[site.kind]:
            continue
        found.add(_FLAG_OF[site.kind])
        around = reading.words[max(0, site.place - 1) : site.place + 2]
        if site.kind == "number" and (
            reading.words[site.place].money or any(word.stem in _MONEY_WORDS for word in around)
        ):
            found.add("price_mismatch")
    return found


def reading_of(text: str, passages: Sequence[Passage]) -> Reading:
    """A text of at least one word, read against passages."""
    words = read(text)
    questions = min(1.0, len(_QUESTION.findall(text)) / (words[-1].sentence + 1))
    return read_answer(words, passages, questions)
