"""HTTP below the SDK's client: time limits, bounded retries with jitter, ``Retry-After``, tokens that rotate.

What is sent again: anything on 429 (the server has not done it) and, once, on 401 with a renewed token; GET, DELETE
and the verbs ``:enable``, ``:disable``, ``:terminate`` also on 5xx and lost connections, because doing them twice is
doing them once.  A creation is never sent again from here: whoever creates looks first whether it is there already.
"""

import email.utils
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import kfp_server_api  # type: ignore[import-untyped]
import urllib3
from kfp_server_api.rest import RESTClientObject  # type: ignore[import-untyped]

from serin_pipelines.kubeflow.tokens import TokenSource

logger = logging.getLogger(__name__)

TRANSIENT = (500, 502, 503, 504)
TOO_MANY = 429
UNAUTHORIZED = 401


class NotTheApiError(Exception):
    """A web page came back, which the SDK would take for an empty answer."""


class TlsError(Exception):
    """The server's certificate is not taken; the text says why."""


@dataclass(frozen=True)
class Patience:
    """How long to try again.  Delays double from ``first_delay_s`` to ``max_delay_s``, each with up to 50% jitter."""

    tries: int = 5
    first_delay_s: float = 0.5
    max_delay_s: float = 20.0
    max_retry_after_s: float = 120.0
    """A server that asks for more than this is taken to be down."""
    connect_s: float = 10.0
    read_s: float = 60.0

    def delays(self) -> Iterator[float]:
        """The waits between tries, in seconds: one fewer than tries."""
        delay = self.first_delay_s
        for _ in range(self.tries - 1):
            yield delay * random.uniform(1.0, 1.5)  # noqa: S311 - jitter, no secret
            delay = min(2 * delay, self.max_delay_s)


class PatientRest(RESTClientObject):
    """The SDK's REST client, made patient.

    Args:
        configuration: the SDK's.
        patience: how long to try again.
        source: of tokens; None without authentication.
    """

    def __init__(self, configuration: Any, patience: Patience, source: TokenSource | None) -> None:
        super().__init__(configuration)
        # urllib3's own retries know neither our bounds nor which POST may be sent twice
        self.pool_manager.connection_pool_kw["retries"] = False
        self._patience, self._source = patience, source

    def request(self, method: str, url: str, headers: dict[str, str] | None = None, **options: Any) -> Any:
        """Perform a request.

        Raises:
            kfp_server_api.ApiException: the server's last answer, when it is an error.
            TlsError: its certificate is not taken.
            urllib3.exceptions.HTTPError: the connection is refused or lost.
            NotTheApiError: a web page came back.
        """
        headers, renewed = dict(headers or {}), False
        delays = self._patience.delays()
        options["_request_timeout"] = options.get("_request_timeout") or (
            self._patience.connect_s,
            self._patience.read_s,
        )
        while True:
            try:
                return _require_api(super().request(method, url, headers=dict(headers), **options))
            except kfp_server_api.ApiException as error:
                if not error.status:  # the SDK's way to report TLS, on whose missing body it then stumbles itself
                    raise TlsError(" ".join(str(error.reason).split())) from error
                if error.status == UNAUTHORIZED and not renewed and self._renew(headers):
                    renewed = True
                    continue
                delay = self._delay_after(error, method, url, delays)
                if delay is None:
                    raise
            except urllib3.exceptions.HTTPError:
                delay = next(delays, None) if repeatable(method, url) else None
                if delay is None:
                    raise
            logger.debug("Trying %s %s again in %.1f s.", method, url, delay)
            time.sleep(delay)

    def _renew(self, headers: dict[str, str]) -> bool:
        if self._source is None or not self._source.renew():
            return False
        names = [name for name in headers if name.lower() == "authorization"] or ["authorization"]
        headers[names[0]] = f"Bearer {self._source.token()}"
        return True

    def _delay_after(self, error: Any, method: str, url: str, delays: Iterator[float]) -> float | None:
        if error.status == TOO_MANY or (error.status in TRANSIENT and repeatable(method, url)):
            delay = next(delays, None)
            asked = retry_after_s(error.headers)
            if delay is not None and asked is not None:
                return asked if asked <= self._patience.max_retry_after_s else None
            return delay
        return None


def _require_api(response: Any) -> Any:
    if "html" in (response.getheader("content-type") or ""):
        raise NotTheApiError
    return response


def repeatable(method: str, url: str) -> bool:
    """Whether sending a request twice does what sending it once does."""
    verb = url.split("?")[0].rsplit("/", 1)[-1]
    return method.upper() in ("GET", "HEAD", "DELETE") or ":" in verb


def retry_after_s(headers: Any) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (a number or an HTTP date); None without one."""
    text = (headers or {}).get("Retry-After", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
