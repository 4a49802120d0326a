"""Serving settings that are part of a release, so that evaluation sees what users will see."""

from collections.abc import Sequence

from serin.core.config import Section
from serin.core.records import Message


class ServingConfig(Section):
    """How a release retrieves and decodes."""

    max_new_tokens: int = 64
    """Longest answer, tokens."""
    temperature: float = 0.0
    """0 is greedy decoding."""
    max_passages: int = 2
    """Passages put before the question."""
    min_score: float = 0.2
    """Passages whose dense cosine similarity is below this are left out."""
    history_turns: int = 1
    """User turns of the dialogue that form the search query, counted from the last."""


def search_query(messages: Sequence[Message], history_turns: int) -> str:
    """What is searched for: the last user turns of a dialogue, oldest first, in one line."""
    turns = [turn.content for turn in messages if turn.role == "user"]
    return " ".join(turns[-history_turns:])
