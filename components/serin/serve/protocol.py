"""The OpenAI API on the wire: how bodies are read, and how answers and server-sent events look.

What a request may hold is in ``requests``; the chat and completion routes of gateway and engine share both.
"""

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from serin.serve.errors import RequestError as RequestError
from serin.serve.requests import ChatRequest as ChatRequest
from serin.serve.requests import CompletionRequest as CompletionRequest
from serin.serve.requests import parse_chat as parse_chat
from serin.serve.requests import parse_completion as parse_completion

MAX_BODY_BYTES = 1 << 20
JSON = "application/json"
UNDECLARED = ("", "application/x-www-form-urlencoded")
"""What clients send that do not say what a body is (curl -d); taken as JSON unless a web page sends it."""
DONE = b"data: [DONE]\n\n"
_DATA, _END = b"data: ", b"\n\n"


async def read_json(request: Request) -> dict[str, Any]:
    """The request's body as a JSON object.

    Raises:
        RequestError: 415 for a body that is declared as something else, 413 beyond 1 MiB, 400 for anything that is no
            JSON object.
    """
    _require_json(request)
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise RequestError(413, f"The request is larger than {MAX_BODY_BYTES} bytes: send less.")
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"The request's body is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise RequestError(400, "The request's body must be a JSON object.")
    return body


def _require_json(request: Request) -> None:
    """A web page may post forms and plain text to any address without asking first; JSON it may not."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == JSON or (kind.startswith("application/") and kind.endswith("+json")):
        return
    if kind in UNDECLARED and not {"origin", "sec-fetch-site"}.intersection(request.headers):
        return
    raise RequestError(415, f"The request's body is {kind or 'of no type'}: send it as content-type {JSON}.")


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(dumped(body), status, headers, media_type=JSON)


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return _DATA + dumped(body) + _END


def dumped(value: Any) -> bytes:
    """JSON in UTF-8; half a surrogate pair, which UTF-8 cannot hold, becomes a question mark."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(_whole(value))


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list | tuple) else value


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Token counts in OpenAI's form."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
