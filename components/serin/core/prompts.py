"""The prompt of a release: how a question and its passages become messages.

Training, evaluation and serving render through here, so that a model is served the way it was trained.

Passages are what somebody else wrote.  Each is put on one line of its own and kept there: it can neither begin
another line nor close the fence that ``Prompt.passage`` puts around it, nor hold a control token of a chat template or
the mark of a turn (``core.untrusted``).  Turns of the dialogue hold no control token either.
"""

import bisect
import math
import re
from collections.abc import Sequence

from serin.core.config import Section
from serin.core.digests import digest_of
from serin.core.records import Message
from serin.core.untrusted import inside, one_line, without_tokens

DEFAULT_SYSTEM = "Answer the customer from the passages. If they do not say, offer a colleague's help."
PLACE = "{text}"
_MARKS = re.compile(r"[^\w\s]|\d")


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
        system += "\n" + "\n".join(_fenced(prompt.passage, text) for text in context)
    turns = [{"role": turn.role, "content": without_tokens(turn.content)} for turn in messages if turn.role != "system"]
    return [{"role": "system", "content": system}, *turns]


def within_budget(passages: Sequence[str], max_chars: int, max_tokens: int | None = None) -> list[str]:
    """The leading passages that fit, each as one harmless line; a first one that is too long is cut.

    Args:
        passages: best first.
        max_chars: characters in total.
        max_tokens: tokens in total, as ``approximate_tokens`` counts them; None: any number.
    """
    kept: list[str] = []
    chars, tokens = max_chars, math.inf if max_tokens is None else max_tokens
    for passage in passages:
        text = one_line(passage)
        if len(text) > chars or approximate_tokens(text) > tokens:
            if not kept and (cut := _cut(text[:chars], tokens)):
                kept.append(cut)
            break
        kept.append(text)
        chars -= len(text)
        tokens -= approximate_tokens(text)
    return kept


def approximate_tokens(text: str) -> int:
    """About how many tokens a text takes, without its tokenizer: one for 4 bytes of UTF-8, a digit or a mark as two.

    On MTRAG's 1,200 passages 1.25 times (median; 5th to 95th percentile 0.98 to 1.45) what MiniLM's tokenizer counts.
    """
    return math.ceil((len(text.encode("utf-8", "replace")) + len(_MARKS.findall(text))) / 4)


def _cut(text: str, max_tokens: float) -> str:
    lengths = range(len(text) + 1)
    return text[: bisect.bisect_right(lengths, max_tokens, key=lambda end: approximate_tokens(text[:end])) - 1]


def _fenced(template: str, text: str) -> str:
    before, _, after = template.partition(PLACE)
    return template.replace(PLACE, inside(inside(text, before), after))
