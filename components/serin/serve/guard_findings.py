"""What output rails find by form: secrets, banned phrases, competitors, the release's own instruction."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from serin.core.policy import Action

Stage = Literal["input", "retrieval", "output"]

SECRETS = re.compile(
    "|".join(
        (
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----|[\s\S]*)",
            r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
            r"\bgh[pousr]_[A-Za-z0-9]{30,}\b|\bgithub_pat_\w{30,}\b",
            r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
            r"\bsk-[A-Za-z0-9_-]{20,}|\bsk_live_[A-Za-z0-9]{16,}",
            r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
            r"\bAIza[\w-]{35}\b",
            r"(?i:\b(?:password|passwd|mot de passe|api[_ -]?key|secret[_ -]?key|access[_ -]?token)\b"
            r"(?: (?:is|est))? ?[:=]\s?)(?=\S*[\d\W_])\S{6,}",
        )
    )
)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Finding:
    """What a rail found: ``text[start:end]``."""

    rail: str
    action: Action
    start: int
    end: int
    replacement: str


class Leak:
    """Finds stretches of a text that a protected text holds word by word.

    Args:
        protected: what must not get out, such as the release's instruction.
        words: so many words in a row count; a protected text of fewer counts whole.
    """

    def __init__(self, protected: str, words: int) -> None:
        known = [word.casefold() for word in _WORD.findall(protected)]
        self._size = min(words, len(known))
        self._runs = {tuple(known[at : at + self._size]) for at in range(len(known) - self._size + 1)}
        self.longest_chars = max((len(" ".join(run)) for run in self._runs), default=0) + 2 * self._size
        """Characters that a run takes, with punctuation between its words."""
        if self._size < min(words, 4):  # a phrase as short as this says nothing of where it came from
            self._runs, self.longest_chars = set(), 0

    def find(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each stretch."""
        if not self._runs:
            return []
        words = list(_WORD.finditer(text))
        lower = [word[0].casefold() for word in words]
        found: list[tuple[int, int]] = []
        for at in range(len(words) - self._size + 1):
            if tuple(lower[at : at + self._size]) in self._runs:
                start, end = words[at].start(), words[at + self._size - 1].end()
                if found and start <= found[-1][1]:
                    start = found.pop()[0]
                found.append((start, end))
        return found


def masked(text: str, findings: Sequence[Finding]) -> str:
    """The text with every finding to be masked replaced; the first of two that overlap counts."""
    parts, last = [], 0
    for finding in findings:
        if finding.action == "mask" and finding.start >= last:
            parts += [text[last : finding.start], finding.replacement]
            last = finding.end
    return "".join([*parts, text[last:]])


def actions_of(stage: Stage, findings: Sequence[Finding]) -> tuple[str, ...]:
    """'stage:rail:action' of each finding, each once."""
    return tuple(dict.fromkeys(f"{stage}:{finding.rail}:{finding.action}" for finding in findings))


def matches(rail: str, action: Action, pattern: re.Pattern[str] | None, text: str, replacement: str) -> list[Finding]:
    """A finding for each match."""
    if action == "off" or pattern is None:
        return []
    return [Finding(rail, action, m.start(), m.end(), replacement) for m in pattern.finditer(text) if m.group()]


def any_of(patterns: Sequence[str]) -> re.Pattern[str] | None:
    """One pattern for several, without regard to case; None for none."""
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE) if patterns else None


def any_phrase(phrases: Sequence[str]) -> re.Pattern[str] | None:
    """Phrases as whole words; None for none."""
    return any_of([rf"(?<!\w){re.escape(phrase)}(?!\w)" for phrase in phrases])


def repeats(value: str, context: Sequence[str]) -> bool:
    """Whether a text of the context holds the value, however it is spaced."""
    wanted = squeezed(value)
    return any(wanted in squeezed(text) for text in context)


@lru_cache(maxsize=64)
def squeezed(text: str) -> str:
    """Without spaces, points, brackets and hyphens, in lower case."""
    return re.sub(r"[\s.()-]", "", text).casefold()
