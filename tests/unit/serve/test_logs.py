import io
import json
import logging
from collections.abc import Iterator

import pytest
from test_tracing import observed

from serin.serve.logs import LogFormat, configure_logging, log_request


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    yield stream
    root.handlers[:], root.level = handlers, level


def last(lines: io.StringIO) -> dict[str, object]:
    found: dict[str, object] = json.loads(lines.getvalue().splitlines()[-1])
    return found


def test_a_request_is_one_line_with_its_trace_and_without_its_texts(lines: io.StringIO):
    observation, event = observed(keep_text="full", key_id="k1")
    log_request(observation, event)
    line = last(lines)
    assert line["trace_id"] == event.trace_id
    assert (line["release"], line["track"], line["status"], line["key_id"]) == ("f" * 12, "champion", 200, "k1")
    assert line["completion_tokens"] == 9
    assert "Where is it" not in lines.getvalue()
    assert "jo@mail.example" not in lines.getvalue()


def test_secrets_are_masked_wherever_they_stand(lines: io.StringIO):
    logger = logging.getLogger("serin.test")
    key = "serin_0123456789ab_" + "x" * 43
    logger.info("Header Authorization: Bearer %s", "abcdef123456789")
    logger.info("key %s", key, extra={"url": "https://h/?api_key=abcdef123"})
    try:
        raise ValueError(f"bad token={key}")
    except ValueError:
        logger.exception("It failed with sk-abcdefghijklmnop1234.")
    text = lines.getvalue()
    for secret in ("abcdef123456789", key, "abcdef123", "sk-abcdefghijklmnop1234"):
        assert secret not in text
    assert "ValueError" in str(last(lines)["exception"])
    assert len(text.splitlines()) == 3


def test_a_trace_named_in_a_message_becomes_a_field(lines: io.StringIO):
    logging.getLogger("serin.test").error("A request failed (trace %s).", "a" * 32)
    assert last(lines)["trace_id"] == "a" * 32
    assert last(lines)["level"] == "error"


def test_text_lines_carry_the_same_fields():
    text = logged("text")
    assert "serin.requests: request trace_id=" in text
    assert "status=200" in text


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_a_library_adds_to_every_record_stays_out(log_format: LogFormat):
    def factory(*arguments: object, **named: object) -> logging.LogRecord:
        record = plain(*arguments, **named)
        vars(record)["_library_timestamp_ns"] = 1795501829446619019
        return record

    plain = logging.getLogRecordFactory()
    logging.setLogRecordFactory(factory)
    try:
        text = logged(log_format)
    finally:
        logging.setLogRecordFactory(plain)
    assert "trace_id" in text
    assert "_library" not in text


def logged(log_format: LogFormat) -> str:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging(log_format, stream=stream)
    try:
        log_request(*observed())
    finally:
        root.handlers[:], root.level = handlers, level
    return stream.getvalue()
