"""What goes wrong in real logs, put into the sample conversations for data preparation to find."""

import random
from collections.abc import Callable

from serin.core.records import Conversation, Message

NUM_EACH = {"exact-duplicate": 40, "near-duplicate": 30, "empty-answer": 12, "mojibake": 20, "personal-data": 24}
"""Flawed copies per 3,000 conversations."""
PERSONAL = (
    " Write to me at camille.durand{n}@example.org.",
    " My number is +33 6 39 98 {n:02d} 41.",
    " I paid with card 4111 1111 1111 1111.",
    " Please call me on +33 1 99 00 {n:02d} 27.",
)


def add_flaws(conversations: list[Conversation], rng: random.Random) -> tuple[list[Conversation], dict[str, int]]:
    """The conversations with flawed copies mixed in, and how many of each kind."""
    makers: dict[str, Callable[[Conversation, int], Conversation | None]] = {
        "exact-duplicate": lambda row, number: row,
        "near-duplicate": _near_duplicate,
        "empty-answer": lambda row, number: _with_answer(row, ""),
        "mojibake": _mojibake,
        "personal-data": _personal_data,
    }
    flawed: list[Conversation] = []
    counts: dict[str, int] = {}
    for kind, make in makers.items():
        wanted = max(1, NUM_EACH[kind] * len(conversations) // 3000)
        rows = rng.sample(conversations, len(conversations))
        made: list[Conversation] = []
        for row in rows:
            if len(made) < wanted and (copy := make(row, len(made))) is not None:
                made.append(copy)
        flawed += made
        counts[kind] = len(made)
    copies = [row.model_copy(update={"id": f"{row.id}-{number}"}) for number, row in enumerate(flawed)]
    return sorted([*conversations, *copies], key=lambda row: (row.metadata["date"], row.id)), counts


def _near_duplicate(row: Conversation, number: int) -> Conversation | None:
    question = row.messages[0].content
    if len(question) < 60 or len(row.messages) > 2:
        return None
    return _with_question(row, question.rstrip(".?!") + (" ??" if number % 2 else " ..."))


def _mojibake(row: Conversation, number: int) -> Conversation | None:
    """UTF-8 that was read as Latin-1 on its way into the log."""
    if row.messages[0].content.isascii() and row.answer.isascii():
        return None
    turns = tuple(Message(role=m.role, content=m.content.encode().decode("latin-1")) for m in row.messages)
    return row.model_copy(update={"messages": turns})


def _personal_data(row: Conversation, number: int) -> Conversation | None:
    if len(row.messages) > 2 or row.metadata["intent"] in ("greeting", "thanks"):
        return None
    return _with_question(row, row.messages[0].content + PERSONAL[number % len(PERSONAL)].format(n=number % 100))


def _with_question(row: Conversation, question: str) -> Conversation:
    return row.model_copy(update={"messages": (Message(role="user", content=question), *row.messages[1:])})


def _with_answer(row: Conversation, answer: str) -> Conversation:
    return row.model_copy(update={"messages": (*row.messages[:-1], Message(role="assistant", content=answer))})
