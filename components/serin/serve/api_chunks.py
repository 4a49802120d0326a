"""Streamed answers: server-sent events put together from bytes made once per answer.

A JSON library sees only the text of each piece: writing whole chunks through it costs several times as much.
"""

from collections.abc import Sequence
from typing import Any

from serin.serve.protocol import dumped, event

Entries = Sequence[dict[str, Any]]
"""OpenAI's entries of ``choice.logprobs.content``."""


class ChatChunks:
    """The events of a streamed chat answer.

    Args:
        answer_id: the answer's id.
        created: seconds since 1970.
        model: the endpoint's name.
        fingerprint: stands for the release.
        with_usage: whether token counts were asked for; then the other chunks say that they have none.
    """

    kind = "chat.completion.chunk"

    def __init__(self, answer_id: str, created: int, model: str, fingerprint: str, *, with_usage: bool) -> None:
        head = {
            "id": answer_id,
            "object": self.kind,
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._head = head
        self._begin = b"data: " + dumped(head)[:-1] + b',"choices":[{"index":'
        self._end = b'}],"usage":null}\n\n' if with_usage else b"}]}\n\n"
        self._text_end = b'},"logprobs":null,"finish_reason":null' + self._end
        self._text_begin: dict[int, bytes] = {}

    def opening(self, index: int, context: dict[str, Any]) -> bytes:
        """The first chunk of a choice: its role, and what it rests on."""
        return self._delta(index, {"role": "assistant", "content": "", "context": context})

    def text(self, index: int, text: str, entries: Entries = ()) -> bytes:
        """A piece of a choice."""
        if entries:
            return self._delta(index, {"content": text}, logprobs={"content": list(entries), "refusal": None})
        begin = self._text_begin.get(index)
        if begin is None:
            begin = self._text_begin[index] = self._begin + b'%d,"delta":{"content":' % index
        return begin + dumped(text) + self._text_end

    def ending(self, index: int, finish_reason: str, context: dict[str, Any] | None = None) -> bytes:
        """The last chunk of a choice; with a context where there is more to say about the whole answer."""
        return self._delta(index, {"context": context} if context else {}, finish_reason)

    def usage(self, usage: dict[str, int]) -> bytes:
        """The token counts, after the last choice's end."""
        return event({**self._head, "choices": [], "usage": usage})

    def _delta(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._begin + b"%d," % index + dumped(choice)[1:-1] + self._end


class CompletionChunks(ChatChunks):
    """The events of a streamed completion."""

    kind = "text_completion"

    def __init__(self, answer_id: str, created: int, model: str, fingerprint: str, *, with_usage: bool) -> None:
        super().__init__(answer_id, created, model, fingerprint, with_usage=with_usage)
        self._text_end = self._text_end[1:]  # no delta to close
        self._offsets: dict[int, int] = {}

    def opening(self, index: int, context: dict[str, Any]) -> bytes:
        """The first chunk of a choice: what it rests on."""
        return self._choice(index, {"text": "", "logprobs": None, "finish_reason": None, "context": context})

    def text(self, index: int, text: str, entries: Entries = ()) -> bytes:
        """A piece of a choice."""
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + len(text)
        if entries:
            logprobs = completion_logprobs(entries, offset)
            return self._choice(index, {"text": text, "logprobs": logprobs, "finish_reason": None})
        begin = self._text_begin.get(index)
        if begin is None:
            begin = self._text_begin[index] = self._begin + b'%d,"text":' % index
        return begin + dumped(text) + self._text_end

    def ending(self, index: int, finish_reason: str, context: dict[str, Any] | None = None) -> bytes:
        """The last chunk of a choice."""
        more = {"context": context} if context else {}
        return self._choice(index, {"text": "", "logprobs": None, "finish_reason": finish_reason, **more})

    def _choice(self, index: int, choice: dict[str, Any]) -> bytes:
        return self._begin + b"%d," % index + dumped(choice)[1:-1] + self._end


def completion_logprobs(entries: Entries, offset: int = 0) -> dict[str, Any]:
    """Log-probabilities in the form of completions.

    Args:
        entries: in the form of chats.
        offset: characters of the answer before the first token.
    """
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry["token"])
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [
            {other["token"]: other["logprob"] for other in entry.get("top_logprobs") or [entry]} for entry in entries
        ],
        "text_offset": offsets,
    }
