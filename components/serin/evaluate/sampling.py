"""Which held-out conversations are asked."""

from collections.abc import Sequence

from serin.core.artifacts import Artifact
from serin.core.digests import digest_of, digest_of_text
from serin.core.errors import InputError
from serin.core.records import Conversation, read_jsonl
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


def choose(conversations: Sequence[Conversation], number: int, seed: int) -> list[Conversation]:
    """A repeatable choice that takes as many groups as it can before any group twice.

    The choice of fewer is the beginning of the choice of more.
    """
    seen: dict[str, int] = {}
    ranked = []
    for conversation in sorted(conversations, key=lambda one: digest_of_text(f"{seed}:{one.id}")):
        group = conversation.group or conversation.id
        seen[group] = seen.get(group, 0) + 1
        ranked.append((seen[group], conversation))
    return [conversation for _, conversation in sorted(ranked, key=lambda item: item[0])[:number]]


def labels_of(conversation: Conversation) -> dict[str, str]:
    """What a conversation is sliced by: its language, and short metadata (channel, region, ...)."""
    metadata = {name: value for name, value in conversation.metadata.items() if 0 < len(value) <= MAX_LABEL_CHARS}
    return {**metadata, "language": conversation.language}


def suite_digest(items: Sequence[Conversation]) -> str:
    """Digest of a suite's items, whatever their order: a changed word in one of them changes it."""
    return digest_of({item.id: digest_of(item.model_dump(mode="json")) for item in items})


def seen_in_training(items: Sequence[Conversation], dataset: Artifact) -> tuple[str, ...]:
    """Ids of the items whose dialogue and answer occur in the training data word for word; sorted.

    Punctuation, case and the passages aside.  Near-duplicates are data preparation's to keep apart.
    """
    path = dataset.path / TRAIN
    if not path.is_file():
        return ()
    known = {_words(conversation) for conversation in read_jsonl(path, Conversation)}
    return tuple(sorted(item.id for item in items if _words(item) in known))


def _words(conversation: Conversation) -> str:
    return digest_of([[turn.role, words(turn.content)] for turn in conversation.messages if turn.role != "system"])
