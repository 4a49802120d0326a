"""The OpenAI protocol as a client speaks it: request bodies, streamed answers, refusals."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from serin.core.prompts import approximate_tokens
from serin.serve.engine_client import EngineError, EnginePiece, EngineRequest

MAX_BODY_BYTES = 8 << 20
"""Longest answer that comes as a whole."""
MAX_EVENT_BYTES = 4 << 20
"""Longest server-sent event that is taken."""
MAX_ERROR_CHARS = 500
DONE = object()
"""Stands for ``data: [DONE]``."""
_OURS = {401, 402, 403, 404, 405, 407, 410}
"""Refusals that the gateway's configuration causes: the client could do nothing about them."""
RETRIED = {429, 502, 503, 504}
"""Statuses after which another try may do better."""


def body_of(request: EngineRequest, model: str | None, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a chat request; what is at its neutral value is left out.

    Args:
        request: what is asked.
        model: the server's name for the model, unless the request names another.
        extra: fields that the server's configuration adds.
    """
    name = request.model or model
    body: dict[str, Any] = {
        **extra,
        **({} if name is None else {"model": name}),
        "messages": list(request.messages),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.stop:
        body["stop"] = list(request.stop)
    if request.seed is not None:
        body["seed"] = request.seed
    if request.top_p != 1.0:
        body["top_p"] = request.top_p
    if request.n != 1:
        body["n"] = request.n
    if request.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.logprobs}
    if request.response_format is not None:
        body["response_format"] = request.response_format
    return body


class Events:
    """Server-sent events out of the bytes of a stream, as JSON values; ``DONE`` for the end mark.

    Lines may end in LF, CRLF or CR and be split anywhere; comments and other fields are passed over; data over several
    lines is joined, and events that no blank line parts are told apart all the same.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, data: bytes) -> Iterator[Any]:
        """The events that these bytes complete, in order: those before a broken one are given out.

        Raises:
            EngineError: 502, an event is not JSON, or has no end.
        """
        data = self._tail + data if self._tail else data
        carriage = b""
        if b"\r" in data:
            if data.endswith(b"\r"):  # half of a CRLF, perhaps
                data, carriage = data[:-1], b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, tail = data.split(b"\n")
        self._tail = tail + carriage
        if len(self._tail) + self._held > MAX_EVENT_BYTES:
            raise EngineError(502, f"The backend sent an event of more than {MAX_EVENT_BYTES} bytes.")
        for line in lines:
            if (event := self._line(line)) is not None:
                yield event

    def end(self) -> Iterator[Any]:
        """The events that were complete but for their end of line, when the stream ends.

        Raises:
            EngineError: 502, half an event is left.
        """
        line, self._tail = self._tail.rstrip(b"\r"), b""
        for part in (line, b""):
            if (event := self._line(part)) is not None:
                yield event

    def _line(self, line: bytes) -> Any:
        if not line:
            if self._data:
                raise EngineError(502, "The backend sent an event that is not JSON.", retryable=True)
            return None
        if not line.startswith(b"data:"):
            return None
        value = line[5:].strip()
        if value == b"[DONE]":
            return DONE
        if self._data:
            value = b"\n".join([*self._data, value])
        try:
            event = _loaded(value)
        except ValueError:  # the rest may be on the next line
            self._data = [value] if value else self._data
            self._held = len(value)
            return None
        self._data, self._held = [], 0
        return event


class WholeBody:
    """The one event of a server that does not stream: its JSON body, read like ``Events``."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> Iterator[Any]:
        """Nothing yet.

        Raises:
            EngineError: 502, the body is too long.
        """
        self._data += data
        if len(self._data) > MAX_BODY_BYTES:
            raise EngineError(502, f"The backend sent an answer of more than {MAX_BODY_BYTES} bytes.")
        return iter(())

    def end(self) -> Iterator[Any]:
        """The body.

        Raises:
            EngineError: 502, it is no JSON.
        """
        yield from Events().feed(b"data: " + b"".join(self._data.splitlines()) + b"\n")
        yield DONE


class Answer:
    """Pieces out of the chunks of one streamed answer, or out of a whole one."""

    def __init__(self, request: EngineRequest) -> None:
        self._request = request
        self._finished: set[int] = set()
        self._usage: tuple[int, int] | None = None
        self._tokens = 0
        self.begun = self.complete = False

    def pieces(self, event: Any) -> list[EnginePiece]:
        """What one event adds.

        Raises:
            EngineError: it says that something failed, or is no chunk.
        """
        if event is DONE:
            self.complete = True
            return []
        try:
            if event.get("error") or event.get("object") == "error":
                raise told_in_stream(event)
            if usage := event.get("usage"):
                self._usage = (int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
            return [piece for choice in event.get("choices") or () for piece in self._of(choice)]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EngineError(502, "The backend sent what is no chunk of an answer.") from error

    def last(self) -> EnginePiece:
        """The piece with the token counts: the server's, or else our own count.

        Raises:
            EngineError: 502, the answer is not complete.
        """
        if not self.complete and len(self._finished) < self._request.n:
            raise EngineError(502, "The backend broke off in the middle of an answer.", retryable=True)
        if self._usage is None:
            text = "".join(message["content"] for message in self._request.messages)
            self._usage = (approximate_tokens(text), self._tokens)
        return EnginePiece("", None, *self._usage)

    def _of(self, choice: dict[str, Any]) -> list[EnginePiece]:
        index = int(choice.get("index") or 0)
        said = choice.get("delta") or choice.get("message") or {}
        text = said.get("content") or ""
        entries = tuple((choice.get("logprobs") or {}).get("content") or ())
        reason = choice.get("finish_reason")
        if reason:
            self._finished.add(index)
        if not (text or entries or reason):
            return []
        self.begun = True
        self._tokens += len(entries) or bool(text)
        return [EnginePiece(text, reason, index=index, logprobs=entries)]


def _loaded(value: bytes) -> Any:
    """JSON, and what Python takes for it: NaN, and half a surrogate pair."""
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return json.loads(value)


@dataclass(frozen=True)
class _Told:
    """What an error's body says."""

    message: str = ""
    code: str | None = None
    status: int | None = None
    param: str | None = None


def told_in_stream(event: dict[str, Any]) -> EngineError:
    """The error that an event of a stream stands for."""
    told = _told(event)
    status = told.status if told.status is not None and 400 <= told.status < 600 else 502
    return _refusal(status, told, None)


def refusal(status: int, data: bytes, headers: Mapping[str, str]) -> EngineError:
    """The error that an answer with another status than 200 stands for.

    OpenAI's, vLLM's (old and new), FastAPI's and plain bodies are understood.
    """
    try:
        told = _told(json.loads(data))
    except (ValueError, AttributeError, TypeError):
        told = _Told()
    return _refusal(status, told, _retry_after(headers.get("retry-after")))


def _told(body: Any) -> _Told:
    error = body.get("error")
    if isinstance(error, str):
        return _Told(error)
    fields = error if isinstance(error, dict) else body
    code, param = fields.get("code"), fields.get("param")
    status = int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdigit()) else None
    message = _sentence(fields.get("message") or fields.get("detail") or "")
    named = None if status is not None or code is None else str(code)
    return _Told(message, named, status, param if isinstance(param, str) else None)


def _refusal(status: int, told: _Told, retry_after_s: float | None) -> EngineError:
    message, code = told.message, told.code
    if status in _OURS:
        return EngineError(502, f"The backend refuses the gateway's requests (status {status}): see the gateway's log.")
    if status in (400, 422):
        if "context length" in message or "context window" in message or "context_length" in (code or ""):
            code = "context_length_exceeded"
        return EngineError(400, message or "The backend refuses the request.", code, param=told.param)
    if status == 413:
        return EngineError(413, message or "The request is too large for the backend.", code)
    if status == 429:
        return EngineError(429, message or "The backend is busy.", code, retry_after_s=retry_after_s, retryable=True)
    shown = status if status in RETRIED else 502
    text = message or f"The backend answered with status {status}."
    return EngineError(shown, text, code, retry_after_s=retry_after_s, retryable=status in RETRIED)


def _retry_after(value: str | None) -> float | None:
    """Seconds; dates are not taken, because two machines' clocks differ."""
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _sentence(detail: str | Sequence[Any]) -> str:
    text = detail if isinstance(detail, str) else json.dumps(detail, default=str)
    return " ".join(text.split())[:MAX_ERROR_CHARS]
