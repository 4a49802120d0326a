"""HTTP/1.1 to backends: connections that are used again, and answers that are read as they come.

A general client spends as much time before an answer's first piece as everything else that the gateway does with a
request.  This one does only what a backend needs: no redirects, cookies, proxies or compression.
"""

import asyncio
import socket
import ssl
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote, urlsplit

import httptools

IDLE_S = 15.0
"""How long a connection is kept for the next request."""
MAX_HEAD_BYTES = 64 << 10
"""Longest head of an answer that is taken."""
MAX_AHEAD_BYTES = 256 << 10
"""A server that sends faster than its answer is read is left waiting from here on."""
_PATH_CHARS = "/%:@!$&'()*+,;=~"


class BrokenError(ConnectionError):
    """There is no connection, or no (more) answer over it."""


class _StaleError(BrokenError):
    """A connection that was used before ended without a byte: most often the server just closed it, being idle."""


@dataclass(frozen=True)
class Place:
    """Where a server is."""

    host: str
    port: int
    tls: ssl.SSLContext | None = field(default=None, hash=False)
    """What its certificate is checked against; None: plain HTTP."""
    name: str = ""
    """What it is called in requests."""
    prefix: str = ""
    """What all its paths begin with."""

    @classmethod
    def of(cls, url: str, tls: ssl.SSLContext | None = None) -> Self:
        """The place that a URL names.

        Args:
            url: http or https.
            tls: what certificates are checked against; None: the machine's authorities.
        """
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        name = f"[{host}]" if ":" in host else host
        name += f":{parts.port}" if parts.port else ""
        is_tls = parts.scheme == "https"
        context = (tls or ssl.create_default_context()) if is_tls else None
        prefix = quote(parts.path.rstrip("/"), safe=_PATH_CHARS)
        return cls(host, parts.port or (443 if is_tls else 80), context, name, prefix)

    def head(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        """A request's head without its end, to which a content-length may be added.

        Raises:
            ValueError: a header's value would be more than one line.
        """
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", f"host: {self.name}", "accept-encoding: identity"]
        for name, value in headers.items():
            if not value.isprintable():
                raise ValueError(f"The value of the header {name} has characters that no header may have.")
            lines.append(f"{name}: {value}")
        return "\r\n".join(lines).encode() + b"\r\n"


class Reply:
    """A server's answer; ``close`` it, which ends the connection unless it was read to its end."""

    def __init__(self, connection: "_Connection") -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        """By names in small letters."""
        self._connection: _Connection | None = connection
        self._parts: list[bytes] = []
        self._held = 0
        self._error: BrokenError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def at_end(self) -> bool:
        """Whether the body was read to its end."""
        return self._connection is None and self._error is None and not self._parts

    def read_now(self) -> bytes:
        """What has come of the body since the last call; nothing where nothing has.

        Raises:
            BrokenError: the connection broke, and all that had come before was read.
        """
        if self._parts:
            data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts.clear()
            self._held = 0
            if self._connection is not None:
                self._connection.resume()
            return data
        if self._error is not None:
            raise self._error
        return b""

    async def read(self, until: float) -> bytes:
        """What comes next of the body; nothing at its end.

        Args:
            until: how long to wait, in the loop's time.

        Raises:
            BrokenError: the connection broke.
            TimeoutError: nothing came in time.
        """
        data = self.read_now()
        while not data and self._connection is not None:
            await self._wait(until)
            data = self.read_now()
        return data

    async def read_all(self, most: int, until: float) -> bytes:
        """The body, or its first ``most`` bytes.

        Raises:
            BrokenError: the connection broke.
            TimeoutError: it did not end in time.
        """
        data = bytearray()
        while len(data) < most and (part := await self.read(until)):
            data += part
        return bytes(data[:most])

    def close(self) -> None:
        """Nothing more of it is wanted."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.end()

    async def begun(self, until: float) -> None:
        """Wait for the head of the answer."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._wait(until)

    async def _wait(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_at(until, _expire, self._waiter)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def take(self, data: bytes) -> bool:
        """Some of the body; whether the server should wait now."""
        self._parts.append(data)
        self._held += len(data)
        return self._held > MAX_AHEAD_BYTES

    def wake(self) -> None:
        """Something has come."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def ended(self, error: BrokenError | None = None) -> None:
        """Nothing more comes."""
        self._connection, self._error = None, error
        self.wake()


class Connections:
    """Connections to any number of servers; use it in an ``async with`` statement, which closes them."""

    def __init__(self) -> None:
        self._idle: defaultdict[Place, list[_Connection]] = defaultdict(list)
        self._all: set[_Connection] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lost = [connection.lost for connection in self._all]
        for connection in list(self._all):
            connection.end()
        if lost:
            await asyncio.wait(lost)

    async def ask(self, place: Place, request: bytes, *, connect_s: float, until: float) -> Reply:
        """Send a request, and wait for the head of its answer.

        Args:
            place: the server.
            request: head and body.
            connect_s: longest wait for a connection.
            until: longest wait for the answer's head, in the loop's time.

        Raises:
            BrokenError: there is no connection, or it breaks.
            TimeoutError: the server is silent.
        """
        if idle := self._idle[place]:
            try:
                return await _asked(idle.pop(), request, until)
            except _StaleError:
                pass  # a new connection tells whether the server is there
        return await _asked(await self._connected(place, connect_s, until), request, until)

    async def _connected(self, place: Place, connect_s: float, until: float) -> "_Connection":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(min(loop.time() + connect_s, until)):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, place, loop), place.host, place.port, ssl=place.tls
                )
        except (OSError, UnicodeError) as error:  # a TimeoutError is one too
            raise BrokenError(f"There is no connection to {place.name} ({type(error).__name__}).") from error
        return connection

    def opened(self, connection: "_Connection") -> None:
        """There is one more."""
        self._all.add(connection)

    def freed(self, connection: "_Connection") -> None:
        """It can be used again; the one that was used last is used next."""
        self._idle[connection.place].append(connection)

    def gone(self, connection: "_Connection") -> None:
        """It cannot be used any more."""
        self._all.discard(connection)
        idle = self._idle.get(connection.place, [])
        if connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(connection.place, None)


async def _asked(connection: "_Connection", request: bytes, until: float) -> Reply:
    reply = connection.ask(request)
    try:
        await reply.begun(until)
    except BaseException:
        reply.close()
        raise
    return reply


class _Connection(asyncio.Protocol):
    """One connection: it has one answer under way, or waits for the next request."""

    def __init__(self, owner: Connections, place: Place, loop: asyncio.AbstractEventLoop) -> None:
        self.place, self._owner, self._loop = place, owner, loop
        self.lost: asyncio.Future[None] = loop.create_future()
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._reply: Reply | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._status = 0
        self._is_used = self._is_silent = self._is_paused = False

    def ask(self, request: bytes) -> Reply:
        """Send a request."""
        if self._closing is not None:
            self._closing.cancel()
        self._reply = reply = Reply(self)
        self._is_silent = True
        if self._transport is None or self._transport.is_closing():
            self._fail(_StaleError("The connection was closed."))
        else:
            self._transport.write(request)
        return reply

    def end(self) -> None:
        """Hang up at once."""
        self._reply = None
        if self._transport is not None:
            self._transport.abort()

    def resume(self) -> None:
        """The server may go on sending."""
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        self._is_silent = False
        reply = self._reply
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(BrokenError(f"The server's answer is no HTTP ({error})."))
            self.end()
        if reply is not None:
            reply.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = None
        if self._closing is not None:
            self._closing.cancel()
        self._owner.gone(self)
        if self._reply is not None and self._status and self._lasts_till_the_end() and exc is None:
            self._finish()
        elif self._is_used and self._is_silent:
            self._fail(_StaleError("The server closed an idle connection."))
        else:
            self._fail(BrokenError("The connection broke."))
        self._parser = None
        self.lost.set_result(None)

    def on_message_begin(self) -> None:
        """See httptools."""
        if self._reply is None:
            raise ValueError("nothing was asked")

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError(f"a head of more than {MAX_HEAD_BYTES} bytes")
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._status = self._parser.get_status_code()
        if self._status >= 200 and self._reply is not None:
            self._reply.status, self._reply.headers = self._status, self._headers
        self._headers, self._head_bytes = ({} if self._status < 200 else self._headers), 0

    def on_body(self, data: bytes) -> None:
        """See httptools."""
        if self._reply is not None and self._reply.take(data) and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._status < 200:  # the answer itself follows
            return
        keeps = self._parser.should_keep_alive()
        self._finish()
        if self._transport is None:
            return
        if keeps:
            self._is_used = True
            self.resume()
            self._closing = self._loop.call_later(IDLE_S, self.end)
            self._owner.freed(self)
        else:
            self._transport.close()

    def _lasts_till_the_end(self) -> bool:
        """Whether the body ends with the connection, saying nothing of its length."""
        return "content-length" not in self._headers and "transfer-encoding" not in self._headers

    def _finish(self) -> None:
        reply, self._reply, self._status, self._headers = self._reply, None, 0, {}
        if reply is not None:
            reply.ended()

    def _fail(self, error: BrokenError) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.ended(error)


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
