"""Cutting a passage into sentences, the same in training and at the endpoint."""

import re

MAX_SENTENCES = 400
"""Sentences of one passage that are judged."""
_END = re.compile(r"(?<=[.!?。！？])\s+|\n+")
_WORD = re.compile(r"\w")


def sentences(text: str) -> list[str]:
    """Sentences and lines of a text that hold a word."""
    return [part.strip() for part in _END.split(text) if _WORD.search(part)]
