"""The guardrail policy of a release: which rails there are and what each does.

The policy travels whole inside the release, so its digest is part of the release's id: changing a rail makes a new
release, which a gate judges and a canary tries like any other.
"""

import re
from typing import Literal

from pydantic import Field, field_validator

from serin.core.config import Section
from serin.core.digests import digest_of

Action = Literal["off", "flag", "mask", "block"]
"""``flag`` only records; ``mask`` replaces what was found; ``block`` refuses the text (or drops the passage)."""

INJECTION_PATTERNS = (
    r"\b(?:ignore|disregard|forget|override)\b.{0,30}\b(?:previous|prior|above|earlier|all|your)\b.{0,30}"
    r"\b(?:instructions?|rules?|prompts?|guidelines?|directions?)\b",
    r"\b(?:reveal|show|print|repeat|output|tell me)\b.{0,30}\b(?:system|hidden|initial|secret)\s+"
    r"(?:prompt|message|instructions?)\b",
    r"\byou are now\b.{0,40}\b(?:unrestricted|jailbroken|developer mode|"
    r"without (?:any )?(?:rules|limits|restrictions))",
    r"\b(?:ignore[zr]?|oublie[zr]?|ne tiens pas compte)\b.{0,40}\b(?:instructions?|consignes?|règles?)\b",
    r"<\|?(?:im_start|im_end|system|user|assistant|end|pad|endoftext)\|?>",
)


class PiiRail(Section):
    """What happens to personal data at each stage."""

    input: Action = "mask"
    """In what the user writes; masked means that the model never sees it."""
    retrieval: Action = "off"
    """In passages; off by default, because a shop's own address and phone number belong in its answers."""
    output: Action = "mask"
    """In answers; what the passages or the user's own turns say is let through."""


class InjectionRail(Section):
    """What happens to text that tries to instruct the model."""

    input: Literal["off", "flag", "block"] = "block"
    """In what the user writes."""
    retrieval: Literal["off", "flag", "block"] = "block"
    """In passages; block leaves the passage out."""
    patterns: tuple[str, ...] = INJECTION_PATTERNS
    """Regular expressions, searched without regard to case."""

    @field_validator("patterns")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from error
        return patterns


class BannedRail(Section):
    """Phrases that an answer must not contain."""

    phrases: tuple[str, ...] = ()
    """Compared as whole words, without regard to case."""
    action: Action = "block"
    """What happens to an answer with one of them."""


class GuardrailPolicy(Section):
    """All rails of a release."""

    version: str = "1"
    """Named by whoever writes the policy; the digest is what identifies it."""
    max_input_chars: int = Field(default=4000, ge=1)
    """Longest user turn, characters; longer ones are refused."""
    pii: PiiRail = PiiRail()
    """Personal data."""
    secrets: Action = "mask"
    """Keys, tokens and passwords in answers."""
    banned: BannedRail = BannedRail()
    """Phrases that answers must not contain."""
    injection: InjectionRail = InjectionRail()
    """Attempts to instruct the model through the user's text or a passage."""
    hold_back_chars: int = Field(default=64, ge=1)
    """When streaming, at least this much of the answer is held back until it is checked."""
    keep_text: Literal["full", "redacted", "none"] = "redacted"
    """How questions and answers are stored in endpoint events."""

    @property
    def digest(self) -> str:
        """Digest of the policy: equals ``Release.guardrails_digest`` of a release that carries it."""
        return digest_of(self.dump())


def default_policy() -> GuardrailPolicy:
    """The policy of a release that names none."""
    return GuardrailPolicy()
