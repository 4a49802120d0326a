"""One OpenAI-compatible server over pooled HTTP connections, always streamed."""

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serin.serve.backends.connections import BrokenError, Connections, Place, Reply
from serin.serve.backends.wire import DONE, MAX_BODY_BYTES, Answer, Events, WholeBody, body_of, refusal
from serin.serve.engine_client import EngineError, EnginePiece, EngineRequest
from serin.serve.protocol import dumped

CHAT = "/v1/chat/completions"
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
        connections: shared by all of the gateway's upstreams.
        url: the server's, without ``/v1``.
        timeouts: how long it may take.
        headers: the headers of a request, with the key; called for each.
        tls: what certificates are checked against; None: the machine's authorities.
        health_path: answers 200 while the server works.
    """

    def __init__(
        self,
        connections: Connections,
        url: str,
        timeouts: Timeouts,
        headers: Callable[[], Mapping[str, str]] = no_headers,
        tls: ssl.SSLContext | None = None,
        health_path: str = "/health",
    ) -> None:
        self._connections, self.url, self._timeouts = connections, url, timeouts
        self._place, self._headers, self._health_path = Place.of(url, tls), headers, health_path
        self._head: tuple[Mapping[str, str], bytes] | None = None

    async def stream(
        self, request: EngineRequest, model: str | None = None, extra: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[EnginePiece, None]:
        """The answer's pieces; closing the generator closes the connection, which stops the decoding.

        Raises:
            EngineError: at any point.
        """
        started = asyncio.get_running_loop().time()
        end = started + self._timeouts.total_s
        reply = await self._opened(dumped(body_of(request, model, extra or {})), started)
        try:
            answer = Answer(request)
            events = WholeBody() if reply.headers.get("content-type", "").startswith("application/json") else Events()
            while not (answer.complete or reply.at_end):
                for event in events.feed(await self._read(reply, started, end, answer.begun)):
                    for piece in answer.pieces(event):
                        yield piece
                    if event is DONE:
                        break
            for event in () if answer.complete else events.end():
                for piece in answer.pieces(event):
                    yield piece
            yield answer.last()
            await _drained(reply)
        finally:
            reply.close()  # a connection that was read to its end is free before this

    async def healthy(self) -> bool:
        """Whether the server answers; one without a health route counts by answering at all."""
        try:
            status, _ = await self._get(self._health_path)
        except (OSError, ValueError):
            return False
        return status < 400 or status in (401, 403, 404, 405)

    async def models(self) -> list[str] | None:
        """The names of the models that the server says it has; None: it does not say.

        Raises:
            EngineError: it cannot be reached, or refuses the key.
        """
        try:
            status, data = await self._get("/v1/models")
        except (OSError, ValueError) as error:
            raise _unreachable(error) from error
        if status in (401, 403):
            raise EngineError(502, f"The backend at {self.url} refuses the key (status {status}).")
        if status != 200:
            return None
        try:
            return [str(one["id"]) for one in json.loads(data)["data"]]
        except (ValueError, KeyError, TypeError):
            return None

    async def _get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        until = asyncio.get_running_loop().time() + PROBE_S + self._timeouts.connect_s
        request = self._place.head("GET", path, self._headers()) + b"\r\n"
        reply = await self._connections.ask(self._place, request, connect_s=self._timeouts.connect_s, until=until)
        try:
            return reply.status, await reply.read_all(MAX_BODY_BYTES, until)
        finally:
            reply.close()

    async def _opened(self, body: bytes, started: float) -> Reply:
        until = started + min(self._timeouts.first_token_s, self._timeouts.total_s)
        request = b"%scontent-length: %d\r\n\r\n%s" % (self._chat_head(), len(body), body)
        try:
            reply = await self._connections.ask(self._place, request, connect_s=self._timeouts.connect_s, until=until)
            if reply.status == 200:
                return reply
            try:
                data = await reply.read_all(MAX_BODY_BYTES, until)
            finally:
                reply.close()
        except BrokenError as error:
            raise _unreachable(error) from error
        except TimeoutError as error:
            raise _silent() from error
        raise refusal(reply.status, data, reply.headers)

    def _chat_head(self) -> bytes:
        """Made anew when the key changes."""
        headers = self._headers()
        if self._head is None or self._head[0] != headers:
            head = self._place.head("POST", CHAT, {**headers, "content-type": "application/json"})
            self._head = (dict(headers), head)
        return self._head[1]

    async def _read(self, reply: Reply, started: float, end: float, begun: bool) -> bytes:
        """What has come, or what comes next."""
        try:
            if data := reply.read_now():
                return data
            if begun:
                limit = asyncio.get_running_loop().time() + self._timeouts.silence_s
            else:
                limit = started + self._timeouts.first_token_s
            return await reply.read(min(limit, end))
        except TimeoutError as error:
            raise _silent() from error
        except BrokenError as error:
            raise EngineError(502, "The backend broke off in the middle of an answer.", retryable=True) from error


async def _drained(reply: Reply) -> None:
    until = asyncio.get_running_loop().time() + DRAIN_S
    try:
        while not reply.at_end:
            await reply.read(until)
    except OSError:  # broken, or too slow
        return


def _unreachable(error: Exception) -> EngineError:
    cause = error.__cause__ or error
    return EngineError(502, f"The backend cannot be reached ({type(cause).__name__}).", retryable=True)


def _silent() -> EngineError:
    return EngineError(504, "The backend was silent for too long.")
