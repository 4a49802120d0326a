"""The outermost layer of the API: every answer has a trace id, and every refusal OpenAI's form.

The trace id is the caller's where the request comes with a W3C ``traceparent``, else a new one.  The answer's id is
unique either way: one trace of a caller may hold many requests.
"""

import logging
import re
import secrets
import time
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serin.serve.errors import RequestError

logger = logging.getLogger(__name__)

TRACE_HEADER = "x-serin-trace-id"
_TRACE_BYTES, _REQUEST_ID = TRACE_HEADER.encode(), b"x-request-id"
_SCOPE_KEY = "serin.trace"
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_MESSAGES = {
    404: "There is no {path}: /openapi.json lists what there is.",
    405: "{method} is not possible on {path}: use {allow}.",
}


@dataclass(frozen=True)
class Trace:
    """Which trace a request belongs to."""

    trace_id: str
    """32 hex digits."""
    request_id: str
    """The trace id where it is our own; else with 16 hex digits more, so that it stands for this request alone."""
    parent_span_id: str = ""
    """The caller's span, 16 hex digits; empty: the trace begins here."""
    started: float = field(default_factory=time.perf_counter)
    """``time.perf_counter`` when the request came in."""


def trace_of(traceparent: str) -> Trace:
    """The trace that a request continues, or a new one; a ``traceparent`` that is none counts as absent."""
    match = _TRACEPARENT.fullmatch(traceparent.strip()) if traceparent else None
    if match:
        version, trace_id, span_id, more = match.groups()
        known = version != "ff" and not (version == "00" and more)
        if known and trace_id.strip("0") and span_id.strip("0"):
            return Trace(trace_id, trace_id + secrets.token_hex(8), span_id)
    trace_id = secrets.token_hex(16)
    return Trace(trace_id, trace_id)


def current_trace(request: Request) -> Trace:
    """The trace that the edge gave to a request."""
    trace: Trace = request.scope[_SCOPE_KEY]
    return trace


class Edge:
    """ASGI middleware: gives each request its trace and each answer the trace's id; no error passes it unanswered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"traceparent"), b"")
        trace = trace_of(given.decode("latin-1"))
        scope[_SCOPE_KEY] = trace
        begun = False

        async def marked(message: Message) -> None:
            nonlocal begun
            if not begun and message["type"] == "http.response.start":
                begun = True
                headers = [*message.get("headers", ())]
                if not any(name == _TRACE_BYTES for name, _ in headers):
                    headers.append((_TRACE_BYTES, trace.trace_id.encode()))
                message = {**message, "headers": [*headers, (_REQUEST_ID, trace.request_id.encode())]}
            await send(message)

        try:
            await self._app(scope, receive, marked)
        except ClientDisconnect:
            logger.info("A client went away before its request was whole (trace %s).", trace.trace_id)
        except Exception as error:
            logger.exception("A request failed (trace %s).", trace.trace_id)
            if begun:
                raise
            message = f"The request failed ({type(error).__name__}): see the gateway's log."
            await RequestError(500, message).response()(scope, receive, marked)


async def answer_refusal(_: Request, error: Exception) -> Response:
    """The answer that a ``RequestError`` stands for."""
    assert isinstance(error, RequestError)
    return error.response()


async def answer_http_error(request: Request, error: Exception) -> Response:
    """The framework's own refusals (no such page, no such method) in OpenAI's form."""
    assert isinstance(error, HTTPException)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    message = error.detail + "."
    if (text := _MESSAGES.get(error.status_code)) is not None:
        message = text.format(path=request.url.path, method=request.method, allow=headers.get("allow", "another"))
    return RequestError(error.status_code, message, headers=headers).response()
