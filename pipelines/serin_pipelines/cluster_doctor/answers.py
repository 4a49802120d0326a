"""Requests of the preflight and what their answers mean: short time limits, no retries, no redirects, no secrets."""

import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import urllib3

from serin_pipelines.doctor import Check

CONNECT_S, READ_S = 3.0, 5.0
"""Time limits of one request."""
UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 401, 403, 404
T = TypeVar("T")
Probe = Callable[[], Iterator[Check]]
"""Looks at one thing and gives its lines."""


class RefusedError(Exception):
    """A server answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status


def started(function: Callable[[], T]) -> "queue.SimpleQueue[T]":
    """Where a function's result will be; it runs in a thread that no hanging server can keep alive at the end."""
    result: queue.SimpleQueue[T] = queue.SimpleQueue()
    threading.Thread(target=lambda: result.put(function()), daemon=True).start()
    return result


def new_pool() -> urllib3.PoolManager:
    """Connections to a server that no other client of ours speaks to; use it in a ``with`` statement."""
    return urllib3.PoolManager(timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S), retries=False)


def request(
    pool: Any, method: str, url: str, headers: Mapping[str, str], body: Mapping[str, Any] | None
) -> dict[str, Any]:
    """One request without retries or redirects; RefusedError when the answer is no JSON object of a success."""
    response = pool.request(
        method,
        url,
        headers={**headers, **({"Content-Type": "application/json"} if body is not None else {})},
        body=json.dumps(body) if body is not None else None,
        timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S),
        retries=False,
        redirect=False,
    )
    try:
        answer = json.loads(response.data)
    except ValueError:
        answer = None
    if not 200 <= response.status < 300:
        text = answer.get("message") or answer.get("error") if isinstance(answer, dict) else ""
        raise RefusedError(response.status, short(str(text or response.reason or "no reason given")))
    if not isinstance(answer, dict):
        raise RefusedError(response.status, "the answer is a page, not an API's")
    return answer


def mend(error: RefusedError, server: str = "") -> str:
    """What a refusal asks for; the server names where its client looks for credentials."""
    login = {
        "kfp": "KFP_TOKEN or KFP_TOKEN_FILE",
        "mlflow": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    }.get(server, "the credentials")
    if error.status == UNAUTHORIZED or 300 <= error.status < 400:
        return f"Log in: set {login} to ones that the server takes."
    if error.status == FORBIDDEN:
        return "Ask for access of this identity to this namespace or server."
    if error.status >= 500:
        return "The server is in trouble: look at its pods and logs, and try again."
    return "Check that the address is the API's, with its path."


def fail(name: str, found: str, fix: str) -> Check:
    """A line that says no."""
    return Check(name=name, status="fail", found=found, fix=fix)


def cause(error: Exception) -> str:
    """Why there was no answer."""
    if isinstance(error, urllib3.exceptions.SSLError):
        return "its certificate is not trusted"
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return "connection refused or name unknown"
    return "timed out" if isinstance(error, urllib3.exceptions.TimeoutError) else "connection lost"


def shown(url: str) -> str:
    """An address without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def short(text: str, max_chars: int = 160) -> str:
    """One line of a text, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= max_chars else f"{text[: max_chars - 3]}..."
