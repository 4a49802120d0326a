"""Split conversations by group, the same way every time, and keep the test's questions out of the rest."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence

from serin.core.digests import digest_of_text
from serin.core.records import SPLITS, Conversation
from serin.data_prep.config import DataPrepConfig

_MASKED = re.compile(
    r"<[A-Z]+>"  # personal data that was masked
    r"|\{\{[^{}]*\}\}"
    r"|\"[^\"\n]{1,60}\"|“[^”\n]{1,60}”|« ?[^»\n]{1,60} ?»"
    r"|\b[\w-]*\d[\w-]*\b"
    r"|(?<=[a-zà-öø-ÿ,] )(?!I\b)[A-ZÀ-ÖØ-Þ][\w'’-]*(?: [A-ZÀ-ÖØ-Þ][\w'’-]*)*"  # names: capitals inside a sentence
)
_WORD = re.compile(r"[^\W_]+")


def template_of(question: str) -> str:
    """A question with its numbers, names and quotations masked: equal for questions made from one template."""
    return " ".join(_WORD.findall(_MASKED.sub(" x ", question).lower()))


def split(conversations: Sequence[Conversation], config: DataPrepConfig) -> dict[str, list[Conversation]]:
    """Conversations by split, each in the order given.

    A group's split follows from the hash of its name alone, so a group stays where it is when data is added; only a
    split that would be empty takes the group that lies nearest.
    """
    groups: dict[str, list[Conversation]] = defaultdict(list)
    for conversation in conversations:
        groups[conversation.group].append(conversation)
    places = {group: _place(group) for group in groups}
    bounds = (0.0, config.train_fraction, config.train_fraction + config.validation_fraction, 1.0)
    chosen = {
        group: next(name for name, end in zip(SPLITS, bounds[1:], strict=True) if place < end)
        for group, place in places.items()
    }
    _fill_empty(chosen, places, bounds, config)
    return {name: [c for c in conversations if chosen[c.group] == name] for name in SPLITS}


def leaked(splits: dict[str, list[Conversation]]) -> dict[str, str]:
    """Ids of conversations that ask what a later split asks word for word, with the name of that split.

    The test's questions are kept out of training and validation, the validation's out of training.
    """
    found: dict[str, str] = {}
    asked: dict[str, str] = {}
    for name in reversed(SPLITS):
        for conversation in splits[name]:
            questions = {_plain(turn.content) for turn in conversation.messages if turn.role == "user"}
            if hits := sorted(asked[question] for question in questions if question in asked):
                found[conversation.id] = hits[0]
        kept = [c for c in splits[name] if c.id not in found]
        asked |= {digest: name for c in kept for digest in [_plain(c.question)] if digest not in asked}
    return found


def _place(group: str) -> float:
    """A number in [0, 1) that depends on the group's name only."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:6]) / 2**48


def _fill_empty(
    chosen: dict[str, str], places: dict[str, float], bounds: tuple[float, ...], config: DataPrepConfig
) -> None:
    wanted = [name for name in SPLITS if name != "validation" or config.validation_fraction > 0]
    for name in ("test", "train", "validation"):
        counts = {other: sum(value == other for value in chosen.values()) for other in SPLITS}
        if name not in wanted or counts[name]:
            continue
        movable = [group for group, where in chosen.items() if counts[where] > 1]
        if movable:
            i = SPLITS.index(name)
            middle = (bounds[i] + bounds[i + 1]) / 2
            chosen[min(movable, key=lambda group: (abs(places[group] - middle), group))] = name


def _plain(question: str) -> str:
    return digest_of_text(" ".join(_WORD.findall(question.lower())))
