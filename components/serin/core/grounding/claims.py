"""What an answer claims: not that its speaker does not know, not a question about what was meant, not "Yes."."""

import re
from collections.abc import Iterator, Sequence

from serin.core.abstention import abstentions
from serin.core.grounding.alignment import content_of
from serin.core.grounding.words import Passage, read

_MEANING = r"(?:referring to|talking about|asking about|thinking of)"
_ASKS_BACK = re.compile(
    "|".join(
        (
            rf"\b(?:are|were) you {_MEANING}\b|\byou(?:'re| are| were) {_MEANING}\b|\b(?:do|did) you mean\b",
            r"\b(?:can|could|would|will) you (?:please )?(?:clarify|specify|rephrase|be more specific)\b",
            r"\b(?:pouvez-vous|pourriez-vous) (?:préciser|clarifier|reformuler)\b|\bvoulez-vous (?:dire|parler)\b",
            r"\b(?:parlez-vous|faites-vous référence|vous parlez|vous faites référence)\b",
        )
    ),
    re.IGNORECASE,
)
_QUESTION = re.compile(r"(?:^|(?<=[.!?\n]))(?:[^.!?\n]|[.!?](?=[^\s.!?]))*\?(?=\s|$)")

FEW_WORDS = 2
"""Most content words that 'I don't know' may be followed by: with more, it makes conversation."""

Span = tuple[int, int]


def claims_of(answer: str, passages: Sequence[Passage]) -> str:
    """An answer, as long as before, without where it says that information is lacking or asks back what was meant.

    Nothing when it claims nothing: conversation only ("Yes."), or beside that only what its speaker does not know, in
    few words.  A clause with a number that no passage holds, or one more negation, stays: it may be a claim.
    """
    asked = [span for span in _asked_back(answer) if _is_plain(answer[slice(*span)], passages, 0)]
    unknown = [one for one in abstentions(answer) if _is_plain(answer[one.start : one.end], passages, 1)]
    lacking = [*asked, *((one.start, one.end) for one in unknown if one.is_lack)]
    brief = [(one.start, one.end) for one in unknown if len(content_of(read(answer[one.said : one.end]))) <= FEW_WORDS]
    idle = ("chat", "self", "stop") if lacking or brief else ("chat",)
    if all(word.kind in idle for word in read(_blanked(answer, [*lacking, *brief]))):
        return ""
    return _blanked(answer, lacking)


def _asked_back(answer: str) -> Iterator[Span]:
    """Where a question asks what was meant ("Which year are you referring to?")."""
    return (match.span() for match in _QUESTION.finditer(answer) if _ASKS_BACK.search(match[0]))


def _is_plain(clause: str, passages: Sequence[Passage], negations: int) -> bool:
    words = read(clause)
    numbers = [word.stem for word in words if word.kind == "number"]
    is_held = all(any(number in passage.places for passage in passages) for number in numbers)
    return is_held and sum(word.kind == "negation" for word in words) <= negations


def _blanked(answer: str, spans: Sequence[Span]) -> str:
    for start, end in spans:
        answer = answer[:start] + " " * (end - start) + answer[end:]
    return answer
