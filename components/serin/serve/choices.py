"""One choice of an answer on its way out: the engine's pieces go in, what the output rails let through comes out."""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from serin.serve.guardrails import Guardrails, OutputGuard

Entry = dict[str, Any]
"""OpenAI's entry of ``choice.logprobs.content``."""


class Part(NamedTuple):
    """What may be given out of a choice now."""

    choice: int
    text: str
    logprobs: Sequence[Entry] = ()
    """Of the tokens that begin in the text, where no rail changed anything before their end."""
    finish_reason: str | None = None
    """Set with the choice's last part."""


class Choice:
    """One of n answers to a request.

    Args:
        index: its number.
        guardrails: the release's.
        context: what the answer may repeat.
        with_logprobs: whether log-probabilities are wanted.
    """

    def __init__(self, index: int, guardrails: Guardrails, context: Sequence[str], *, with_logprobs: bool) -> None:
        self.index = index
        self.guard = OutputGuard(guardrails, context)
        self.finish_reason = ""
        self.begun = self.ended = False
        self.replaced = False
        """Whether a rail put another text in the answer's place."""
        self.text = ""
        """What was let out so far."""
        self.logprobs: list[Entry] = []
        """Of what was let out."""
        self._raw = ""
        self._spans: deque[tuple[int, int, Entry]] = deque()  # (first and last byte + 1, entry), not let out yet
        self._known_bytes = 0
        self._with_logprobs = with_logprobs
        self._changed = False

    def take(self, text: str, entries: Sequence[Entry] = ()) -> Part | None:
        """A piece from the engine; returns what may be given out."""
        if self._with_logprobs:
            self._raw += text
            self._note(entries)
        if text and (released := self.guard.push(text)):
            return self._let_out(released)
        return None

    def end(self, finish_reason: str = "") -> Part:
        """The engine is done with this choice: its last part."""
        self.ended = True
        self.finish_reason = finish_reason or self.finish_reason or "stop"
        rest = self.guard.finish()
        part = self._let_out(rest, last=True)
        if self.guard.blocked:
            self.finish_reason = "content_filter"
        elif self.guard.rewritten:
            self.finish_reason = "stop"
        return part._replace(finish_reason=self.finish_reason)

    @property
    def stopped(self) -> bool:
        """Whether a rail has had the last word: nothing more of the engine's is wanted."""
        return self.guard.blocked or self.guard.rewritten

    def withhold(self) -> None:
        """Give nothing of it out."""
        self.text, self.logprobs = "", []

    def replace(self, text: str) -> None:
        """Another text stands for the answer; only the log-probabilities of a common beginning are kept."""
        if text != self.text:
            self.replaced = True
            limit, kept, count = len(_common(text, self.text).encode()), list[Entry](), 0
            for entry in self.logprobs:
                count += _length(entry)
                if count > limit:
                    break
                kept.append(entry)
            self.text, self.logprobs = text, kept

    def _let_out(self, text: str, *, last: bool = False) -> Part:
        begun = len(self.text)
        self.text += text
        if not self._with_logprobs:
            return Part(self.index, text)
        came = self._raw[begun : begun + len(text)]
        if self._changed or came == text:
            entries = self._ripe(self.text, last=last)
        else:
            entries = self._ripe(self._raw[:begun] + _common(came, text))
            self._changed = True
            self._spans.clear()
        self.logprobs += entries
        return Part(self.index, text, entries)

    def _note(self, entries: Iterable[Entry]) -> None:
        for entry in () if self._changed else entries:
            start, self._known_bytes = self._known_bytes, self._known_bytes + _length(entry)
            self._spans.append((start, self._known_bytes, entry))

    def _ripe(self, text: str, *, last: bool = False) -> list[Entry]:
        """Entries of the text's tokens; of the last one, which a stop sequence may cut, the beginning is enough."""
        found, out_bytes = [], len(text.encode())
        while self._spans and (self._spans[0][1] <= out_bytes or (last and self._spans[0][0] < out_bytes)):
            found.append(self._spans.popleft()[2])
        return found


def choices_of(count: int, guardrails: Guardrails, context: Sequence[str], *, with_logprobs: bool) -> list[Choice]:
    """The choices of a request, in order."""
    return [Choice(index, guardrails, context, with_logprobs=with_logprobs) for index in range(count)]


def _common(one: str, other: str) -> str:
    """What both begin with."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(letter for letter, _ in same)


def _length(entry: Entry) -> int:
    """Bytes of a token."""
    octets = entry.get("bytes")
    return len(octets) if octets is not None else len(str(entry["token"]).encode())
