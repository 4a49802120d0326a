"""The prompt of a release: how a question and its passages become messages.

Training, evaluation and serving render through here, so that a model is served the way it was trained.
"""

from collections.abc import Sequence

from serin.core.config import Section
from serin.core.digests import digest_of
from serin.core.records import Message

DEFAULT_SYSTEM = "Answer the customer from the passages. If they do not say, offer a colleague's help."


class Prompt(Section):
    """A versioned prompt; its version is its digest, so that it cannot change unnoticed."""

    system: str = DEFAULT_SYSTEM
    """The instruction that opens every conversation."""
    passage: str = "- {text}"
    """How one retrieved passage is written; ``{text}`` is replaced."""
    max_context_chars: int = 1600
    """Passages beyond this many characters in total are left out; the first is cut to fit."""

    @property
    def version(self) -> str:
        """The first 16 hex digits of the prompt's digest."""
        return digest_of(self.dump())[:16]


def render(prompt: Prompt, messages: Sequence[Message], passages: Sequence[str]) -> list[dict[str, str]]:
    """Messages for a chat template: system with the passages, then the dialogue.

    System turns of the dialogue are dropped: the release's own instruction stands alone.

    Args:
        prompt: the release's prompt.
        messages: the dialogue up to and including the user's question (or its answer, for training).
        passages: retrieved texts, best first.

    Returns:
        ``[{"role": ..., "content": ...}, ...]`` as ``tokenizer.apply_chat_template`` takes it.
    """
    system = prompt.system
    if context := within_budget(passages, prompt.max_context_chars):
        system += "\n" + "\n".join(prompt.passage.replace("{text}", text) for text in context)
    turns = [{"role": turn.role, "content": turn.content} for turn in messages if turn.role != "system"]
    return [{"role": "system", "content": system}, *turns]


def within_budget(passages: Sequence[str], max_chars: int) -> list[str]:
    """The leading passages whose characters fit; a first one that is too long is cut."""
    kept: list[str] = []
    left = max_chars
    for passage in passages:
        text = " ".join(passage.split())
        if len(text) > left:
            if not kept:
                kept.append(text[:left])
            break
        kept.append(text)
        left -= len(text)
    return kept
