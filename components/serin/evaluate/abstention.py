"""Whether an answer abstains: says that it does not know, cannot tell, or that what it was given does not say.

A list of phrases in English and French, no model: it sees an abstention in words that people commonly use, and takes
"I cannot recommend it" for an answer.  Its own precision and recall are in the README; a suite may declare more.
"""

import re
from collections.abc import Sequence

from serin.core.text import is_refusal, normalise

_CANNOT = r"(?:can(?:no|')t|can not|could(?:n't| not)|(?:am|are|'m|'re|was|were)(?: not able|n't able| unable) to)"
_LACK = r"(?:do(?:es)?(?: not|n't)|did(?: not|n't))"
_PHRASES = re.compile(
    "|".join(
        (
            rf"\b(?:i|we)(?:'m| am| are)? ?{_CANNOT}(?: \w+){{0,2}} (?:answer|provide|help|assist|find|tell|say|"
            r"confirm|determine|verify|give|speak|offer|locate)\b",
            rf"\b(?:i|we) {_LACK}(?: \w+)? (?:know|have)\b(?: (?!to\b)\w+){{0,4}} (?:information|details?|data|answer|"
            r"specifics|knowledge|enough|context|access)\b",
            rf"\b(?:i|we) {_LACK}(?: \w+)? know\b",
            r"\b(?:i|we) have no (?:\w+ ){0,3}(?:information|details?|data|answer|knowledge|record)",
            r"\b(?:i'm|i am|we're|we are) not (?:\w+ )?(?:sure|certain|aware|familiar)\b",
            r"\bno (?:\w+ ){0,2}(?:information|details?|mention|data|record)(?: \w+){0,3} (?:available|provided|given|"
            r"found|about|on|regarding|of)\b",
            rf"\b(?:passages?|documents?|texts?|context|sources?|information)(?: \w+){{0,3}} {_LACK} (?:\w+ )?(?:say|"
            r"mention|cover|contain|tell|provide|include|specify|state|give|address|answer)\b",
            r"\b(?:is|are|was|were)(?: not|n't) (?:\w+ )?(?:mentioned|stated|specified|provided|given|covered|"
            r"available) in\b",
            r"\b(?:unfortunately|sorry)\b.{0,60}\b(?:no|not|n't|unable|cannot)\b.{0,60}\b(?:information|answer|details?|"
            r"question|help)\b",
            r"\bje (?:n'ai|ne dispose) (?:pas|d'aucune|aucune?)\b.{0,40}\b(?:informations?|réponses?|détails?)\b",
            r"\b(?:n'est|ne sont|n'y est) pas (?:précisée?s?|mentionnée?s?|indiquée?s?)\b",
            r"\bje l'ignore\b|\bje ne (?:peux|suis|saurais) (?:pas )?(?:\w+ )?(?:répondre|dire|trouver|confirmer)\b",
        )
    )
)


def abstains(answer: str, patterns: Sequence[str] = ()) -> bool:
    """Whether an answer abstains; an empty one does not.

    Args:
        answer: the text.
        patterns: further regular expressions, searched without regard to case.
    """
    text = normalise(answer)
    if is_refusal(answer) or _PHRASES.search(text):
        return True
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)
