"""Logs of the endpoint: lines for people, or one JSON object a line for machines; never a text of users, nor a secret.

Each request leaves one line of numbers and names (``log_request``, an observer of the recorder).  What other code logs
passes a filter that masks whatever looks like a key or a token, in messages and tracebacks alike.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from serin.core.events import EndpointEvent
from serin.serve.recorder import Observation

LogFormat = Literal["text", "json"]
REQUESTS = "serin.requests"
"""Logger of the lines about requests."""
MASK = "<SECRET>"
_SECRETS = re.compile(
    r"(?i:\bbearer\s+)[\w.~+/=-]{8,}"
    r"|\bserin_[0-9a-f]{12}_[\w-]{20,}"
    r"|\bsk-[\w-]{16,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|(?i:\b(?:authorization|api[_-]?key|password|secret|token)\b\"?'?\s*[:=]\s*\"?'?(?:bearer\s+|basic\s+)?)[^\s\"',}]{6,}"
)
_TRACE = re.compile(r"\btrace[ =:]+([0-9a-f]{32})\b")
_OURS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""What every record has; anything else is a field that the caller gave."""


def masked(text: str) -> str:
    """The text without what looks like a key or a token."""
    return _SECRETS.sub(MASK, text)


class TextFormatter(logging.Formatter):
    """Time, level, logger, message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        fields = " ".join(f"{name}={value}" for name, value in _fields_of(record).items())
        return masked(f"{text} {fields}" if fields else text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and whatever fields the record has."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": masked(message),
        }
        if trace := _TRACE.search(message):
            line["trace_id"] = trace.group(1)
        line |= {name: masked(value) if isinstance(value, str) else value for name, value in _fields_of(record).items()}
        if record.exc_info:
            line["exception"] = masked(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(log_format: LogFormat = "text", level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Let the whole process log in one format to one stream; what was configured before is replaced."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def log_request(observation: Observation, event: EndpointEvent) -> None:
    """One line about a request: who answered, how it went and what it took."""
    level = logging.WARNING if event.status >= 500 else logging.INFO
    fields = {
        "trace_id": event.trace_id,
        "session_id": event.session_id,
        "key_id": event.key_id,
        "release": event.release_id[:12],
        "track": event.track,
        "status": event.status,
        "finish_reason": event.finish_reason,
        "prompt_tokens": event.prompt_tokens,
        "completion_tokens": event.completion_tokens,
        "ttft_ms": None if event.ttft_ms is None else round(event.ttft_ms, 1),
        "latency_ms": round(event.latency_ms, 1),
        "rails": list(event.guardrail_actions),
        "streamed": event.streamed,
    }
    logging.getLogger(REQUESTS).log(
        level, "request", extra={name: value for name, value in fields.items() if value not in ("", None, [])}
    )


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller gave; a leading underscore marks what a library adds to every record (Ray: _ray_timestamp_ns)."""
    return {name: value for name, value in vars(record).items() if name not in _OURS and not name.startswith("_")}
