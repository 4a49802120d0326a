"""Serving settings that are part of a release, so that evaluation sees what users will see."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from pydantic import Field

from serin.core.config import Section
from serin.core.prompts import Prompt, within_budget
from serin.core.query import Query
from serin.core.records import Message

if TYPE_CHECKING:
    from serin.core.retrieval import Hit, IndexReader


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
    history_turns: int = Field(3, ge=1)
    """User turns of the dialogue that shape the search query: the last one leads, each earlier one counts for a
    fraction (``core.query``); 1 searches for the last one alone."""
    check_dates: bool = True
    """Leave out documents that are not valid today (``valid_from`` and ``valid_until``, UTC)."""
    max_context_tokens: int = Field(600, ge=0)
    """Passages beyond this many tokens in total are left out, the first is cut to fit; counted without the model's
    tokenizer (``core.prompts.approximate_tokens``), so that the same passages fit whatever serves the model.  The
    prompt's ``max_context_chars`` holds as well."""


def search_query(messages: Sequence[Message], history_turns: int) -> Query:
    """What is searched for: the last user turn, and what the turns before it add."""
    turns = [turn.content for turn in messages if turn.role == "user" and turn.content.strip()]
    if not turns:
        return Query("")
    return Query(turns[-1], tuple(turns[-history_turns:-1][::-1]))


def search(
    reader: "IndexReader",
    serving: ServingConfig,
    query: str | Query,
    *,
    at: date | None = None,
    labels: AbstractSet[str] = frozenset(),
) -> "list[Hit]":
    """The passages of a release for a query: what the endpoint and the evaluation both call.

    Args:
        reader: of the release's index.
        serving: the release's settings.
        query: what is searched for.
        at: the day on which documents must be valid; None: today.  Nothing where the release checks no dates.
        labels: the caller's access labels.
    """
    day = (at or today()) if serving.check_dates else None
    return reader.search(query, max_passages=serving.max_passages, min_score=serving.min_score, at=day, labels=labels)


def fitting(passages: Sequence[str], prompt: Prompt, serving: ServingConfig) -> list[str]:
    """The leading passages that the prompt has room for, as the model will see them."""
    return within_budget(passages, prompt.max_context_chars, serving.max_context_tokens)


def today() -> date:
    """The day, UTC."""
    return datetime.now(UTC).date()
