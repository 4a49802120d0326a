"""Which held-out conversations are asked."""

from collections.abc import Sequence

from serin.core.artifacts import Artifact
from serin.core.digests import digest_of_text
from serin.core.errors import InputError
from serin.core.records import Conversation, read_jsonl
from serin.evaluate.config import EvaluateConfig

TEST = "test.jsonl"


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
