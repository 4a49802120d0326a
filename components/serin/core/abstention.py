"""Whether an answer abstains: says that it does not know, cannot tell, or that what it was given does not say.

A list of phrases in English and French, no model: it sees an abstention in words that people commonly use, and takes
"I cannot recommend it" for an answer.  Its precision and recall are in the evaluation's README; a suite may declare
more phrases.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from serin.core.text import PLAIN, is_refusal, normalise

_CANNOT = r"(?:can(?:no|')t|can not|could(?:n't| not)|(?:am|are|'m|'re|was|were)(?: not able|n't able| unable) to)"
_LACK = r"(?:do(?:es)?(?: not|n't)|did(?: not|n't))"
_TELL = "answer|find|tell|say|confirm|determine|verify"
_KNOWLEDGE = "information|details?|answer|specifics|knowledge"

_UNKNOWING = re.compile(
    "|".join(
        (
            rf"(?P<lack>(?:i|we) (?:{_LACK}(?: \w+)? have\b(?: (?!to\b)\w+){{0,4}} (?:{_KNOWLEDGE})\b|"
            rf"have no (?:\w+ ){{0,3}}(?:{_KNOWLEDGE}|data|record))|"
            rf"i(?:'m| am)? ?{_CANNOT}(?: \w+){{0,2}} (?:{_TELL})(?: \w+){{0,3}} (?:{_KNOWLEDGE})\b|"
            r"je (?:n'ai|ne dispose) (?:pas|d'aucune|aucune?)\b.{0,40}\b(?:informations?|réponses?|détails?)\b)",
            rf"i(?:'m| am)? ?{_CANNOT}(?: \w+){{0,2}} (?:{_TELL})\b",
            rf"(?:i|we)(?:'m| am| are)? ?{_CANNOT}(?: \w+)? (?:help|assist)\b(?! (?:but|it)\b)",
            r"(?:i|we) do(?: not|n't)(?: \w+)? know\b",
            rf"i {_LACK}(?: \w+)? have\b(?: (?!to\b)\w+){{0,4}} (?:data|enough|context|access)\b",
            r"(?:i'm|i am|we're|we are) not (?:\w+ )?(?:sure|certain|aware|familiar)\b",
            r"je l'ignore\b|je ne sais pas\b",
            r"je ne (?:peux|suis|saurais) (?:pas )?(?:\w+ )?(?:répondre|dire|trouver|confirmer)\b",
        )
    ),
    re.IGNORECASE,
)
"""The speaker's own want of knowledge, from the word that names the speaker: whatever follows, nothing is claimed."""
_OTHERWISE = re.compile(
    "|".join(
        (
            rf"\b(?:i|we)(?:'m| am| are)? ?{_CANNOT}(?: \w+){{0,2}} (?:{_TELL}|provide|help|assist|give|speak|offer|"
            r"locate)\b",
            r"\b(?:i|we) did(?: not|n't)(?: \w+)? know\b",
            rf"\bwe {_LACK}(?: \w+)? have\b(?: (?!to\b)\w+){{0,4}} (?:data|enough|context|access)\b",
            r"\bno (?:\w+ ){0,2}(?:information|details?|mention|data|record)(?: \w+){0,3} (?:available|provided|given|"
            r"found|about|on|regarding|of)\b",
            rf"\b(?:passages?|documents?|texts?|context|sources?|information)(?: \w+){{0,3}} {_LACK} (?:\w+ )?(?:say|"
            r"mention|cover|contain|tell|provide|include|specify|state|give|address|answer)\b",
            r"\b(?:is|are|was|were)(?: not|n't) (?:\w+ )?(?:mentioned|stated|specified|provided|given|covered|"
            r"available) in\b",
            r"\b(?:unfortunately|sorry)\b.{0,60}\b(?:no|not|n't|unable|cannot)\b.{0,60}\b(?:information|answer|details?|"
            r"question|help)\b",
            r"\b(?:n'est|ne sont|n'y est) pas (?:précisée?s?|mentionnée?s?|indiquée?s?)\b",
        )
    )
)
_SPEAKER = re.compile(r"(?<!\w)(?:i|we|je)(?!\w)", re.IGNORECASE)
_APOLOGY = re.compile(
    r"(?:\W*(?:and|but|i|we|i'm|we're|am|are|very|so|je|suis))*\W*(?:sorry|apologi[sz]e|afraid|unfortunately|regret|"
    r"d[ée]solée?|malheureusement)\W+(?:(?:but|that|for|to|say|the|any|inconvenience|mais)\W+)*$",
    re.IGNORECASE,
)
_NEXT_CLAIM = re.compile(
    r"[;:!?]|\.(?!\w)|\W+(?:but|however|though|although|nevertheless|nonetheless|yet|still|except|mais|cependant|"
    r"toutefois|pourtant)\b|,\W*(?:(?:and|so|because|since|as|while|et|car)\W+)?(?:it|its|he|she|they|this|that|these|"
    r"those|there|the|a|an|i|you|your|we|our|il|elle|ils|elles|le|la|les|un|une|vous|nous|je)\b",
    re.IGNORECASE,
)
"""Where what is not known ends."""
_COMMA = re.compile(r" *,")
APOLOGY_CHARS = 80
"""Within which an apology is looked for."""
_SENTENCE_END = re.compile(r"[!?]|\.(?!\w)")


class Abstention(NamedTuple):
    """A clause that says what its speaker does not know."""

    start: int
    end: int
    """Characters of the answer."""
    said: int
    """Where the phrase ends and what is not known begins."""
    is_lack: bool
    """Whether it says that information is lacking, as an assistant does; not 'I don't know' or 'I'm not sure'."""


def abstains(answer: str, patterns: Sequence[str] = ()) -> bool:
    """Whether an answer abstains; an empty one does not.

    Args:
        answer: the text.
        patterns: further regular expressions, searched without regard to case.
    """
    text = normalise(answer)
    if is_refusal(answer) or _OTHERWISE.search(text) or abstentions(text):
        return True
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)


def abstentions(answer: str) -> list[Abstention]:
    """Where the speaker says that it does not know or cannot tell, in order.

    An apology before it belongs to it, and what is not known ("about prices"), up to the next claim ("but ...").
    """
    text = re.sub(r"\s", " ", answer.translate(PLAIN))  # as long as the answer
    found: list[Abstention] = []
    for speaker in _SPEAKER.finditer(text):
        said = _UNKNOWING.match(text, speaker.start())
        if said is None or (found and said.start() < found[-1].end):
            continue
        before = max(0, said.start() - APOLOGY_CHARS)
        sentence = max((end.end() for end in _SENTENCE_END.finditer(text, before, said.start())), default=before)
        apology = _APOLOGY.match(text, sentence, said.start())
        after = _NEXT_CLAIM.search(text, said.end())
        end = said.end() if _COMMA.match(text, said.end()) else after.start() if after else len(text)
        found.append(Abstention(sentence if apology else said.start(), end, said.end(), said["lack"] is not None))
    return found
