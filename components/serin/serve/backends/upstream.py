"""One OpenAI-compatible server over pooled HTTP connections, always streamed."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from serin.core.bodies import read_body
from serin.serve.backends.wire import DONE, Answer, Events, body_of, refusal
from serin.serve.engine_client import EngineError, EnginePiece, EngineRequest

CHAT = "/v1/chat/completions"
MAX_BODY_BYTES = 8 << 20
DRAIN_S = 0.1
"""How long the end of a finished answer is waited for, so that its connection can be used again."""
PROBE_S = 2.0


@dataclass(frozen=True)
class Timeouts:
    """Seconds; none of them counts the time that the gateway's own client takes."""

    connect_s: float = 2.0
    """Longest wait for a connection."""
    first_token_s: float = 60.0
    """Longest wait for the first piece of an answer, from sending the request on."""
    silence_s: float = 30.0
    """Longest wait between two pieces."""
    total_s: float = 600.0
    """Longest time for one answer."""


def no_headers() -> dict[str, str]:
    """For servers that ask for no key."""
    return {}


class Upstream:
    """Asks one server.

    Args:
        session: shared by all of the gateway's upstreams.
        url: the server's, without ``/v1``.
        timeouts: how long it may take.
        headers: the headers of a request, with the key; called for each.
        tls: what certificates are checked against; None: the machine's authorities.
        health_path: answers 200 while the server works.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        timeouts: Timeouts,
        headers: Callable[[], Mapping[str, str]] = no_headers,
        tls: ssl.SSLContext | None = None,
        health_path: str = "/health",
    ) -> None:
        self._session, self.url, self._timeouts = session, url, timeouts
        self._headers, self._tls, self._health_path = headers, tls if tls is not None else True, health_path
        self._limits = aiohttp.ClientTimeout(total=None, connect=timeouts.connect_s, sock_connect=timeouts.connect_s)

    async def stream(
        self, request: EngineRequest, model: str | None = None, extra: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[EnginePiece, None]:
        """The answer's pieces; closing the generator closes the connection, which stops the decoding.

        Raises:
            EngineError: at any point.
        """
        started = asyncio.get_running_loop().time()
        end = started + self._timeouts.total_s
        response = await self._opened(body_of(request, model, extra or {}), started)
        try:
            answer = Answer(request)
            async for event in self._events(response, answer, started, end):
                for piece in answer.pieces(event):
                    yield piece
                if event is DONE:
                    break
            yield answer.last()
            await _drained(response)
        finally:
            response.close()  # a connection that was read to its end has gone back to the pool before this

    async def healthy(self) -> bool:
        """Whether the server answers; one without a health route counts by answering at all."""
        try:
            async with self._get(self._health_path) as response:
                return response.status < 400 or response.status in (401, 403, 404, 405)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def models(self) -> list[str] | None:
        """The names of the models that the server says it has; None: it does not say.

        Raises:
            EngineError: it cannot be reached, or refuses the key.
        """
        try:
            async with self._get("/v1/models") as response:
                if response.status in (401, 403):
                    raise EngineError(502, f"The backend at {self.url} refuses the key (status {response.status}).")
                if response.status != 200:
                    return None
                body = await response.json(content_type=None)
                return [str(one["id"]) for one in body["data"]]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(error) from error
        except (ValueError, KeyError, TypeError):
            return None

    def _get(self, path: str) -> "aiohttp.client._RequestContextManager":
        limits = aiohttp.ClientTimeout(total=PROBE_S + self._timeouts.connect_s, sock_connect=self._timeouts.connect_s)
        headers = dict(self._headers())
        return self._session.get(self.url + path, headers=headers, timeout=limits, ssl=self._tls, allow_redirects=False)

    async def _opened(self, body: dict[str, Any], started: float) -> aiohttp.ClientResponse:
        limit = started + min(self._timeouts.first_token_s, self._timeouts.total_s)
        try:
            async with asyncio.timeout_at(limit):
                try:
                    response = await self._post(body)
                except aiohttp.ServerDisconnectedError:  # most often an idle connection that the server just closed
                    response = await self._post(body)
                if response.status == 200:
                    return response
                async with response:
                    data = await read_body(response, MAX_BODY_BYTES)
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
                raise _silent() from error
            raise _unreachable(error) from error
        raise refusal(response.status, data, response.headers)

    async def _post(self, body: dict[str, Any]) -> aiohttp.ClientResponse:
        return await self._session.post(
            self.url + CHAT,
            json=body,
            headers=dict(self._headers()),
            timeout=self._limits,
            ssl=self._tls,
            allow_redirects=False,
        )

    async def _events(
        self, response: aiohttp.ClientResponse, answer: Answer, started: float, end: float
    ) -> AsyncGenerator[Any, None]:
        if not response.headers.get("content-type", "").startswith("application/json"):
            events, content = Events(), response.content
            while not content.at_eof():
                for event in events.feed(await self._read(content, started, end, answer.begun)):
                    yield event
            for event in events.end():
                yield event
            return
        data = b""  # a server that does not stream
        while not response.content.at_eof() and len(data) <= MAX_BODY_BYTES:
            data += await self._read(response.content, started, end, answer.begun)
        for event in (*Events().feed(b"data: " + b"".join(data.splitlines()) + b"\n"), DONE):
            yield event

    async def _read(self, content: aiohttp.StreamReader, started: float, end: float, begun: bool) -> bytes:
        """What has come, or what comes next."""
        try:
            if data := content.read_nowait():
                return data
            now = asyncio.get_running_loop().time()
            limit = now + self._timeouts.silence_s if begun else started + self._timeouts.first_token_s
            async with asyncio.timeout_at(min(limit, end)):
                return await content.readany()
        except TimeoutError as error:
            raise _silent() from error
        except (aiohttp.ClientError, OSError) as error:
            raise EngineError(502, "The backend broke off in the middle of an answer.", retryable=True) from error


async def _drained(response: aiohttp.ClientResponse) -> None:
    try:
        async with asyncio.timeout(DRAIN_S):
            while not response.content.at_eof():
                await response.content.readany()
    except (TimeoutError, aiohttp.ClientError, OSError):
        return


def _unreachable(error: Exception) -> EngineError:
    return EngineError(502, f"The backend cannot be reached ({type(error).__name__}).", retryable=True)


def _silent() -> EngineError:
    return EngineError(504, "The backend was silent for too long.")
