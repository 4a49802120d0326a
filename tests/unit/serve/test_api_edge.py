"""The outermost layer: trace ids, and answers to errors that nobody foresaw."""

import asyncio
import json
from typing import Any

import pytest

from serin.serve.api_edge import Edge, trace_of
from serin.serve.api_outcome import failure_of
from serin.serve.api_routes import OPERATIONS
from serin.serve.api_schema import document
from serin.serve.attempt import BlockedInputError
from serin.serve.engine_client import EngineError

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def sent_by(app: Any, headers: list[tuple[bytes, bytes]] = []) -> list[dict[str, Any]]:  # noqa: B006 - read only
    """The messages that an app sends through the edge."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(Edge(app)({"type": "http", "method": "GET", "path": "/", "headers": headers}, receive, send))
    return sent


async def broken(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("with a password in it")


async def breaks_off(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("too late")


def test_an_error_that_nobody_foresaw_is_a_500_with_a_trace_id_and_without_its_text():
    start, body = sent_by(broken)
    assert start["status"] == 500
    assert len(dict(start["headers"])[b"x-serin-trace-id"]) == 32
    error = json.loads(body["body"])["error"]
    assert error["type"] == "server_error"
    assert "password" not in error["message"]


def test_an_answer_that_has_begun_is_not_answered_twice():
    with pytest.raises(RuntimeError, match="too late"):
        sent_by(breaks_off)


def test_a_callers_trace_is_taken_with_its_span():
    trace = trace_of(PARENT)
    assert trace.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert trace.parent_span_id == "00f067aa0ba902b7"
    assert trace.request_id.startswith(trace.trace_id)
    assert trace.request_id != trace_of(PARENT).request_id
    start, _ = sent_by(broken, [(b"traceparent", PARENT.encode())])
    assert dict(start["headers"])[b"x-serin-trace-id"] == trace.trace_id.encode()


@pytest.mark.parametrize(
    ("error", "status", "code", "param", "retry_after"),
    [
        (BlockedInputError("No."), 400, "content_filter", None, None),
        (EngineError(400, "'response_format' cannot be kept to: none."), 400, None, "response_format", None),
        (EngineError(400, "'secret' is odd."), 400, None, None, None),
        (EngineError(429, "Busy.", "queue_full", retry_after_s=2.5), 429, "queue_full", None, "3"),
        (EngineError(404, "No such model."), 502, None, None, "1"),
        (EngineError(504, "Silent."), 504, None, None, "1"),
        (RuntimeError("with a password in it"), 500, None, None, None),
    ],
)
def test_an_error_becomes_the_refusal_that_callers_can_use(error, status, code, param, retry_after):
    failure = failure_of(error, {"x-serin-track": "champion"})
    assert (failure.status, failure.code, failure.param) == (status, code, param)
    assert failure.headers.get("retry-after") == retry_after
    assert failure.headers["x-serin-track"] == "champion"
    assert "password" not in failure.message


def test_the_document_says_which_key_is_needed():
    paths = document([operation for _, operation in OPERATIONS], "assistant", with_keys=True)["paths"]
    for methods in paths.values():
        for operation in methods.values():
            assert ("401" in operation["responses"]) == ("security" in operation)
            assert {} not in operation.get("security", [])
