"""Streams as they really are: cut anywhere, ended by CRLF, with comments, without usage."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serin.serve.backends.wire import DONE, Answer, Events, body_of, refusal, told_in_stream
from serin.serve.engine_client import EngineError, EngineRequest

REQUEST = EngineRequest(({"role": "user", "content": "What does the kettle cost?"},), 16, 0.0, None, ())
TWO = EngineRequest(REQUEST.messages, 16, 0.0, None, (), n=2)
EVENTS = [{"a": 1}, {"text": "é\u2028 \r\n data: x"}, {"b": [1, 2]}]


def fed(*parts: bytes) -> list[object]:
    events = Events()
    return [*(event for part in parts for event in events.feed(part)), *events.end()]


@settings(max_examples=150, deadline=None)
@given(end=st.sampled_from(["\n", "\r\n", "\r"]), cuts=st.lists(st.integers(0, 200), max_size=8), ascii_=st.booleans())
def test_events_are_the_same_wherever_the_bytes_are_cut(end: str, cuts: list[int], ascii_: bool) -> None:
    lines = [f": comment{end}", f"event: x{end}id: 1{end}"]
    lines += [f"data: {json.dumps(event, ensure_ascii=ascii_)}{end}{end}" for event in EVENTS]
    data = "".join([*lines, f"data: [DONE]{end}{end}"]).encode()
    places = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    assert fed(*(data[a:b] for a, b in itertools.pairwise(places))) == [*EVENTS, DONE]


@pytest.mark.parametrize(
    "data",
    [
        b'data: {"a": 1}\n\ndata: [DONE]\n\n',
        b'data:{"a": 1}\n\ndata:[DONE]',
        b'data: {"a": 1}\ndata: [DONE]\n',
        b'data: {"a":\ndata:  1}\n\ndata: [DONE]\n\n',
        b'retry: 3\ndata:\n\ndata: {"a": 1}\n\n\n\n: ping\n\ndata: [DONE]\n\n',
    ],
)
def test_half_broken_events_are_understood(data: bytes) -> None:
    assert fed(data) == [{"a": 1}, DONE]


@pytest.mark.parametrize("data", [b"data: {oops}\n\n", b'data: {"a": 1\n\n', b'data: {"a": '])
def test_what_is_no_event_is_an_error(data: bytes) -> None:
    with pytest.raises(EngineError, match="not JSON"):
        fed(data)


def test_an_event_without_end_is_an_error() -> None:
    with pytest.raises(EngineError, match="more than"):
        fed(*[b"data: " + b"x" * 65536] * 100)


def choice(text: str, index: int = 0, reason: str | None = None) -> dict[str, object]:
    return {"index": index, "delta": {"content": text}, "finish_reason": reason}


def test_choices_in_one_chunk_keep_their_index() -> None:
    answer = Answer(TWO)
    pieces = answer.pieces({"choices": [choice("a"), choice("b", 1, "stop")]})
    assert [(piece.text, piece.index, piece.finish_reason) for piece in pieces] == [("a", 0, None), ("b", 1, "stop")]
    with pytest.raises(EngineError, match="broke off"):
        answer.last()
    answer.pieces({"choices": [choice("", 0, "length")]})
    assert answer.last().completion_tokens == 2


def test_tokens_are_the_servers_or_else_counted() -> None:
    counted = Answer(REQUEST)
    for word in ("a", "b", ""):
        counted.pieces({"choices": [choice(word)], "usage": None})
    entries = [{"token": "c"}, {"token": "d"}]
    counted.pieces({"choices": [{**choice("cd", 0, "stop"), "logprobs": {"content": entries}}]})
    assert (counted.last().prompt_tokens, counted.last().completion_tokens) == (7, 4)
    told = Answer(REQUEST)
    told.pieces({"choices": [choice("a", 0, "stop")], "usage": {"prompt_tokens": 3, "completion_tokens": 9}})
    assert (told.last().prompt_tokens, told.last().completion_tokens) == (3, 9)


@pytest.mark.parametrize("event", [[1], "x", {"choices": 3}, {"choices": [{"delta": 1}]}, {"usage": {"x": 1}}])
def test_an_event_that_is_no_chunk_is_a_502(event: object) -> None:
    with pytest.raises(EngineError, match="no chunk") as caught:
        Answer(REQUEST).pieces(event)
    assert caught.value.status == 502


@pytest.mark.parametrize(
    ("status", "body", "shown", "code", "text"),
    [
        (400, '{"object":"error","message":"context length is 8","code":400}', 400, "context_length_exceeded", "is 8"),
        (400, '{"error":{"message":"bad","type":"BadRequestError","param":null,"code":400}}', 400, None, "bad"),
        (400, '{"error":{"message":"bad","code":"invalid_json_schema"}}', 400, "invalid_json_schema", "bad"),
        (422, '{"detail":[{"loc":["body"],"msg":"field required"}]}', 400, None, "field required"),
        (429, '{"error":"too many"}', 429, None, "too many"),
        (401, '{"error":{"message":"Incorrect API key sk-123"}}', 502, None, "refuses the gateway"),
        (404, '{"object":"error","message":"The model `x` does not exist"}', 502, None, "refuses the gateway"),
        (500, "<html>oops", 502, None, "status 500"),
        (503, "", 503, None, "status 503"),
        (302, "", 502, None, "status 302"),
        (504, "[1]", 504, None, "status 504"),
    ],
)  # fmt: skip
def test_refusals_of_all_servers_are_understood(
    status: int, body: str, shown: int, code: str | None, text: str
) -> None:
    error = refusal(status, body.encode(), {})
    assert (error.status, error.code) == (shown, code)
    assert text in str(error)
    assert "sk-123" not in str(error)
    assert error.retryable == (status in (429, 502, 503, 504))


@pytest.mark.parametrize(
    ("value", "seconds"), [("3", 3.0), ("0.5", 0.5), ("-1", None), ("nan", None), ("Wed, 1", None)]
)
def test_retry_after_is_a_number_of_seconds(value: str, seconds: float | None) -> None:
    assert refusal(429, b"", {"retry-after": value}).retry_after_s == seconds


def test_an_error_inside_a_stream_has_its_status() -> None:
    assert told_in_stream({"error": {"message": "too long: context length", "code": 400}}).status == 400
    assert told_in_stream({"error": {"message": "engine died", "code": 500}}).status == 502
    assert told_in_stream({"object": "error", "message": "x"}).status == 502


def test_only_what_is_asked_for_is_in_the_body() -> None:
    plain = body_of(REQUEST, None, {})
    assert set(plain) == {"messages", "max_tokens", "temperature", "stream", "stream_options"}
    assert plain["stream_options"] == {"include_usage": True}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    full = EngineRequest(REQUEST.messages, 16, 0.5, 3, ("a",), top_p=0.9, n=2, logprobs=0, response_format=schema)
    body = body_of(full, "m", {"chat_template_kwargs": {"enable_thinking": False}, "n": 7})
    assert (body["model"], body["n"], body["top_p"], body["seed"], body["stop"]) == ("m", 2, 0.9, 3, ["a"])
    assert (body["logprobs"], body["top_logprobs"], body["response_format"]) == (True, 0, schema)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
