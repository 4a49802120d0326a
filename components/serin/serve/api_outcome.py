"""What an attempt means for the HTTP answer: its headers, and the refusal that stands for an error."""

import asyncio
import logging
import math
import re

from serin.serve.api_edge import TRACE_HEADER
from serin.serve.attempt import Attempt, BlockedInputError
from serin.serve.engine_client import EngineError
from serin.serve.errors import RequestError
from serin.serve.requests import ChatBody
from serin.serve.runtime import Runtime

logger = logging.getLogger(__name__)

CLIENT_GONE = 499
RETRY_AFTER_S = 1
PASSED_ON = frozenset({400, 413, 429, 503, 504})
"""An engine's refusals that say something to users; any other is the endpoint's own trouble, a 502."""


def headers_of(attempt: Attempt) -> dict[str, str]:
    """The headers that every routed answer has."""
    return {
        TRACE_HEADER: attempt.arrival.trace_id,
        **release_headers(attempt.runtime, attempt.track),
        "x-session-id": attempt.arrival.session_id,
    }


def release_headers(runtime: Runtime, track: str) -> dict[str, str]:
    """Which release answers."""
    return {"x-serin-release": runtime.release.id, "x-serin-track": track}


def failure_of(error: BaseException, headers: dict[str, str]) -> RequestError:
    """The answer that stands for an error."""
    if isinstance(error, BlockedInputError):
        return RequestError(400, str(error), code="content_filter", headers=headers)
    if isinstance(error, EngineError):
        status = error.status if error.status in PASSED_ON else 502
        retry = _retry_after(error) if status in (429, 502, 503, 504) else None
        param = _param(str(error)) if status == 400 else None
        return RequestError(status, str(error), param=param, code=error.code, retry_after_s=retry, headers=headers)
    if isinstance(error, asyncio.CancelledError):
        return RequestError(CLIENT_GONE, "The client went away.", headers=headers)
    logger.error("A request failed.", exc_info=error)
    return RequestError(500, f"The request failed ({type(error).__name__}): see the gateway's log.", headers=headers)


def _param(message: str) -> str | None:
    """The field that an engine's refusal begins with, as ours do."""
    named = re.match(r"'([a-z_]+)(?:[.\w]*)' ", message)
    return named[1] if named and named[1] in ChatBody.model_fields else None


def _retry_after(error: EngineError) -> int:
    """Whole seconds."""
    return RETRY_AFTER_S if error.retry_after_s is None else max(RETRY_AFTER_S, math.ceil(error.retry_after_s))
