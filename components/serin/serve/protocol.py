"""The part of the OpenAI chat API that the endpoint speaks: what a request may hold, how answers and errors look.

A field that we know neither how to apply nor how to leave out without effect is refused by name.
"""

import json
import math
import time
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

MAX_BODY_BYTES = 1 << 20
MAX_STOPS = 4
MAX_TOKENS = 1 << 20
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "store": (False,),
}
"""Fields of the API that are not supported, with the values that change nothing: clients send those unasked."""


class RequestError(Exception):
    """A request that is answered with an error in OpenAI's form."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(retry_after_s)

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self, headers: dict[str, str] | None = None) -> JSONResponse:
        """The HTTP answer."""
        return JSONResponse(self.body(), self.status, {**(headers or {}), **self.headers})


@dataclass(frozen=True)
class ChatRequest:
    """A request whose every field was understood."""

    messages: tuple[dict[str, str], ...]
    model: str | None = None
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    user: str | None = None
    top_p: float | None = None
    n: int = 1
    logprobs: int | None = None
    """Alternatives per token that are wanted with the log-probabilities; None: no log-probabilities."""
    response_format: dict[str, Any] | None = None
    """None for plain text; else OpenAI's ``{"type": "json_object"}`` or ``{"type": "json_schema", ...}``."""


async def read_json(request: Request) -> dict[str, Any]:
    """The request's body as a JSON object.

    Raises:
        RequestError: 413 beyond 1 MiB, 400 for anything that is no JSON object.
    """
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise RequestError(413, f"The request is larger than {MAX_BODY_BYTES} bytes: send less.")
    try:
        body = json.loads(bytes(data))
    except ValueError as error:
        raise RequestError(400, f"The request's body is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise RequestError(400, "The request's body must be a JSON object.")
    return body


def parse_chat(body: dict[str, Any], roles: tuple[str, ...]) -> ChatRequest:
    """Check a chat request field by field.

    Args:
        body: the JSON object.
        roles: which roles messages may have.

    Raises:
        RequestError: 400, naming the first field that is unknown, unsupported or wrong.
    """
    _refuse_unknown(body)
    limits = [name for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    if len(limits) > 1:
        raise _wrong("max_tokens", "give either max_tokens or max_completion_tokens, not both")
    stream = _flag(body, "stream")
    return ChatRequest(
        messages=_messages(body.get("messages"), roles),
        model=_text(body, "model"),
        stream=stream,
        include_usage=_include_usage(body.get("stream_options"), stream),
        max_tokens=_integer(body, limits[0], 1, MAX_TOKENS) if limits else None,
        temperature=_temperature(body.get("temperature")),
        seed=_integer(body, "seed", 0, 2**63 - 1),
        stop=_stop(body.get("stop")),
        user=_text(body, "user"),
    )


def completion(
    completion_id: str, model: str, message: dict[str, Any], finish_reason: str, usage: dict[str, int]
) -> dict[str, Any]:
    """A whole answer."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason, "logprobs": None}
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": usage,
    }


class ChunkWriter:
    """Writes the server-sent events of one streamed answer."""

    def __init__(self, completion_id: str, model: str) -> None:
        self._head = {
            "id": completion_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }

    def delta(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        """A piece of the answer."""
        return event({**self._head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

    def usage(self, usage: dict[str, int]) -> bytes:
        """The token counts, after the last piece."""
        return event({**self._head, "choices": [], "usage": usage})


DONE = b"data: [DONE]\n\n"


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Token counts in OpenAI's form."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _refuse_unknown(body: dict[str, Any]) -> None:
    known = {
        "messages", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "seed",
        "stop", "user",
    }  # fmt: skip
    for name, value in body.items():
        if name in known or (value is None and name in NEUTRAL):
            continue
        if name not in NEUTRAL:
            raise _wrong(name, "is not a field of this endpoint: leave it out")
        if value not in NEUTRAL[name]:
            raise _wrong(name, "is not supported by this endpoint: leave it out")


def _messages(value: Any, roles: tuple[str, ...]) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise _wrong("messages", "must be a list with at least one message")
    messages = tuple(_message(message, f"messages.{number}", roles) for number, message in enumerate(value))
    if messages[-1]["role"] != "user":
        raise _wrong("messages", "must end with a user's message")
    return messages


def _message(value: Any, where: str, roles: tuple[str, ...]) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _wrong(where, "must be an object with role and content")
    for name in value:
        if name not in ("role", "content"):
            raise _wrong(f"{where}.{name}", "is not supported by this endpoint: leave it out")
    role = value.get("role")
    if role not in roles:
        extra = " (the release brings its own instruction)" if role in ("system", "developer") else ""
        raise _wrong(f"{where}.role", f"is {role!r}: this endpoint takes {' and '.join(roles)}{extra}")
    return {"role": role, "content": _content(value.get("content"), f"{where}.content")}


def _content(value: Any, where: str) -> str:
    if isinstance(value, list):
        parts = [part for part in value if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) != len(value) or not all(isinstance(part.get("text"), str) for part in parts):
            raise _wrong(where, "may hold text parts only")
        value = "".join(part["text"] for part in parts)
    if not isinstance(value, str) or not value.strip():
        raise _wrong(where, "must be text, and not empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _wrong(where, "holds half of a surrogate pair: send whole characters") from error
    return value


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(name, "must be true or false")
    return bool(value)


def _text(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and (not isinstance(value, str) or not value or len(value) > 256):
        raise _wrong(name, "must be text of 1 to 256 characters")
    return value


def _integer(body: dict[str, Any], name: str, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _wrong(name, f"must be a whole number from {low} to {high}")
    return value


def _temperature(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 2:
        raise _wrong("temperature", "must be a number from 0 to 2")
    return float(value)


def _stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(text, str) and text for text in stops)
    ):
        raise _wrong("stop", f"must be text, or a list of at most {MAX_STOPS} texts, none of them empty")
    return tuple(stops)


def _include_usage(value: Any, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        raise _wrong("stream_options", "goes with stream only")
    if not isinstance(value, dict) or set(value) - {"include_usage"}:
        raise _wrong("stream_options", "may hold include_usage only")
    return _flag(value, "include_usage")


def _wrong(param: str, problem: str) -> RequestError:
    return RequestError(400, f"'{param}' {problem}.", param=param)
