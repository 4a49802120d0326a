"""Which held-out conversations are asked."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from serin.core.artifacts import Artifact
from serin.core.digests import digest_of, digest_of_text
from serin.core.errors import InputError
from serin.core.records import Conversation, Message, iter_jsonl, read_jsonl
from serin.core.text import words
from serin.evaluate.config import EvaluateConfig

TEST, TRAIN = "test.jsonl", "train.jsonl"
MAX_LABEL_CHARS = 64
"""Longer metadata is content, not a label."""


def held_out(config: EvaluateConfig, dataset: Artifact) -> list[Conversation]:
    """The conversations to ask; live retrieval takes the first of them.

    Raises:
        InputError: the dataset holds out fewer than two.
    """
    conversations = read_jsonl(dataset.path / TEST, Conversation)
    if len(conversations) < 2:
        raise InputError(
            f"The dataset {dataset.uri} holds out {len(conversations)} conversations for testing: give data "
            "preparation more conversations or a larger test share."
        )
    return choose(conversations, config.num_conversations, config.seed)


class Grouped(Protocol):
    """What is chosen from: conversations, or items of a suite."""

    @property
    def id(self) -> str:
        """Its own."""

    @property
    def group(self) -> str:
        """That of those which are not independent of it; empty: on its own."""


G = TypeVar("G", bound=Grouped)


def choose(items: Sequence[G], number: int, seed: int) -> list[G]:
    """A repeatable choice that takes as many groups as it can before any group twice.

    The choice of fewer is the beginning of the choice of more.
    """
    seen: dict[str, int] = {}
    ranked = []
    for item in sorted(items, key=lambda one: digest_of_text(f"{seed}:{one.id}")):
        group = item.group or item.id
        seen[group] = seen.get(group, 0) + 1
        ranked.append((seen[group], item))
    return [item for _, item in sorted(ranked, key=lambda pair: pair[0])[:number]]


def labels_of(conversation: Conversation) -> dict[str, str]:
    """What a conversation is sliced by: its language, and short metadata (channel, region, ...)."""
    metadata = {name: value for name, value in conversation.metadata.items() if 0 < len(value) <= MAX_LABEL_CHARS}
    return {**metadata, "language": conversation.language}


def suite_digest(items: Sequence[Conversation]) -> str:
    """Digest of a suite's items, whatever their order: a changed word in one of them changes it."""
    return digest_of({item.id: digest_of(item.model_dump(mode="json")) for item in items})


def num_held_out(dataset: Artifact) -> int:
    """Conversations that the dataset holds out."""
    with (dataset.path / TEST).open("rb") as stream:
        return sum(bool(line.strip()) for line in stream)


def seen_in_training(items: Mapping[str, Sequence[Message]], dataset: Artifact) -> tuple[str, ...]:
    """Ids of the items whose dialogue and answer occur in the training data word for word; sorted.

    Punctuation, case and the passages aside.  Near-duplicates are data preparation's to keep apart.

    Args:
        items: id to turns, the right answer last.
        dataset: with the training data.
    """
    path = dataset.path / TRAIN
    if not path.is_file():
        return ()
    known = {_words(conversation.messages) for conversation in iter_jsonl(path, Conversation)}
    return tuple(sorted(name for name, turns in items.items() if _words(turns) in known))


def _words(turns: Sequence[Message]) -> str:
    return digest_of([[turn.role, words(turn.content)] for turn in turns if turn.role != "system"])
