"""How the gateway listens: TLS, limits on headers and bodies, and no patience with clients that hold a connection.

The limits are kept where bytes arrive, in uvicorn's HTTP protocol: a client that sends its headers or its body too
slowly or too large, or that does not read its answer, loses the connection without ever costing a handler.
"""

import asyncio
import fcntl
import json
import logging
import secrets
import ssl
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, model_validator
from starlette.types import ASGIApp, Receive, Scope, Send

from serin.core.config import Section
from serin.core.errors import ConfigError, UnavailableError
from serin.serve.access import Access

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger(__name__)

STALL_LOOK_S = 1.0
"""Shortest time between two looks at a client that does not read."""
BEGINNING_WRITES = 3
"""Of a streamed answer: its head, its opening, its first piece."""
MAX_HELD_BYTES = 64 << 10
"""More is sent at once, so that a client that does not read is noticed."""
LINGER_S, LINGER_BYTES = 2.0, 8 << 20
"""How long, and how much, a refused client may go on sending before it is cut off."""
_REASONS = {
    408: ("Request Timeout", "The request took too long to arrive: send it faster."),
    413: ("Content Too Large", "The request is larger than {limit} bytes: send less."),
    431: ("Request Header Fields Too Large", "The request's headers are larger than {limit} bytes: send less."),
}


class TlsConfig(Section):
    """TLS of the gateway itself; empty files: plain HTTP, for a proxy or mesh that does it."""

    cert_file: str = ""
    """Certificate chain, PEM."""
    key_file: str = ""
    """Its key, PEM, without a password."""
    client_ca_file: str = ""
    """Clients must show a certificate of this authority, PEM; empty: none is asked for."""

    @model_validator(mode="after")
    def _both_or_none(self) -> "TlsConfig":
        if bool(self.cert_file) != bool(self.key_file) or (self.client_ca_file and not self.cert_file):
            raise ValueError("needs both cert_file and key_file")
        return self


class ConnectionLimits(Section):
    """What a client may take of the gateway's time and memory."""

    max_header_bytes: int = Field(default=32 << 10, ge=1024)
    """Request line and headers, bytes."""
    max_body_bytes: int = Field(default=1 << 20, ge=1024, le=1 << 20)
    """Body, bytes; the API reads no more than 1 MiB."""
    header_timeout_s: float = Field(default=10.0, gt=0)
    """From the connection, or the request's first byte, to the end of its headers, seconds."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """From there to the end of the body, seconds."""
    stall_timeout_s: float = Field(default=30.0, gt=0)
    """How long a client may read nothing of an answer that waits for it, seconds."""
    keep_alive_s: int = Field(default=30, ge=1)
    """How long a connection may be idle between requests, seconds."""
    max_connections: int = Field(default=4096, ge=1)
    """Open connections; beyond it new requests get 503."""


def server_options(limits: ConnectionLimits, tls: TlsConfig) -> dict[str, Any]:
    """Settings of uvicorn.

    Raises:
        ConfigError: the certificate or its key cannot be used.
        UnavailableError: httptools is missing.
    """
    options: dict[str, Any] = {
        "http": _protocol(limits),
        "ws": "none",
        "proxy_headers": False,
        "server_header": False,
        "timeout_keep_alive": limits.keep_alive_s,
        "limit_concurrency": limits.max_connections,
    }
    if tls.cert_file:
        _check_certificate(tls)
        options |= {
            "ssl_certfile": tls.cert_file,
            "ssl_keyfile": tls.key_file,
            "ssl_context_factory": _only_modern,
        }
        if tls.client_ca_file:
            options |= {"ssl_ca_certs": tls.client_ca_file, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return options


class PreparedAccess:
    """ASGI layer: lets the identity provider's keys be fetched in a thread before an admin route needs them."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/admin"):
            authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            await asyncio.to_thread(self._access.prepare, authorization)
        await self._app(scope, receive, send)


def _protocol(limits: ConnectionLimits) -> "type[HttpToolsProtocol]":
    """uvicorn's protocol with limits of our own."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError as error:
        raise UnavailableError("The gateway needs httptools: pip install httptools.") from error

    class Protocol(_Limits, HttpToolsProtocol):
        pass

    Protocol.limits = limits
    return Protocol


if TYPE_CHECKING:
    _Base = HttpToolsProtocol
else:
    _Base = object


class _Gathered:
    """A transport on which writes that follow each other in one turn of the loop go out as one.

    Every write is a system call that wakes the client.  An answer's beginning (its head, its opening, its first piece)
    waits for no turn's end.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []
        self._held_bytes = self._left = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def begin(self) -> None:
        """An answer is about to begin."""
        self._left = BEGINNING_WRITES

    def write(self, data: bytes) -> None:
        """Send, now or soon."""
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)
        self._held_bytes += len(data)
        self._left -= 1
        if self._left == 0 or self._held_bytes > MAX_HELD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what is held."""
        if self._held:
            data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
            self._held.clear()
            self._held_bytes = 0
            self._transport.write(data)

    def write_eof(self) -> None:
        """Send what is held, and nothing after it."""
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Send what is held, and hang up."""
        self.flush()
        self._transport.close()


class _Limits(_Base):
    """The limits, as a layer over ``HttpToolsProtocol``."""

    limits: ConnectionLimits
    _deadline: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _unread = 0
    _head_bytes = 0
    _in_head = True
    _refused = False
    _discarded = 0
    _gathered: _Gathered

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._gathered = _Gathered(transport, self.loop)
        super().connection_made(cast(asyncio.Transport, self._gathered))
        self._expect_within(self.limits.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_within(None)
        self._watch_reader(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self.transport.close()
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self.limits.max_header_bytes:
            self._refuse(431, self.limits.max_header_bytes)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        if self._stall is not None and not self.flow.write_paused:  # new answers would look like unread ones
            self._watch_reader(None)
        if self._deadline is None:
            self._expect_within(self.limits.header_timeout_s)

    def on_headers_complete(self) -> None:
        if self._refused:
            return
        self._in_head, self._head_bytes = False, 0
        self._expect_within(self.limits.body_timeout_s)
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.max_header_bytes:
            self._refuse(431, self.limits.max_header_bytes)
            return
        length = next((value for name, value in self.headers if name == b"content-length"), b"0")
        if length.isdigit() and int(length) > self.limits.max_body_bytes:
            self._refuse(413, self.limits.max_body_bytes)
            return
        self._gathered.begin()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            self._expect_within(None)
            self._in_head, self._head_bytes = True, 0
            super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(self.limits.stall_timeout_s)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch_reader(None)

    def on_response_complete(self) -> None:
        self._gathered.flush()
        super().on_response_complete()
        if self._stall is None and self.transport.get_write_buffer_size():
            self._watch_reader(self.limits.stall_timeout_s)

    def _expect_within(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self.flow.read_paused:  # it is us who do not read
            self._expect_within(self.limits.body_timeout_s)
        elif self._in_head and not self._head_bytes:  # a connection without a request: nobody waits for an answer
            self.transport.close()
        else:
            self._refuse(408, 0)

    def _watch_reader(self, seconds: float | None) -> None:
        if self._stall is not None:
            self._stall.cancel()
        self._unread = self._unread_bytes() if seconds is not None else 0
        self._stall = None if seconds is None else self.loop.call_later(seconds, self._stalled)

    def _stalled(self) -> None:
        self._stall = None
        left = self._unread_bytes()
        if 0 < left < self._unread:
            self._watch_reader(self.limits.stall_timeout_s)
        elif left:
            logger.info("A client that did not read its answer was cut off.")
            self.transport.abort()

    def _unread_bytes(self) -> int:
        """Bytes of answers that the client has not taken: ours, and the kernel's, which may be megabytes."""
        kernel = bytearray(4)
        with suppress(OSError, AttributeError, ValueError):  # a connection that is gone
            fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, kernel)
        return self.transport.get_write_buffer_size() + int.from_bytes(kernel, sys.byteorder)

    def _refuse(self, status: int, limit: int) -> None:
        """Answer without a handler, and hang up."""
        self._refused = True
        self._expect_within(None)
        started = self.cycle is not None and not self.cycle.response_complete and self.cycle.response_started
        if not started and not self.transport.is_closing():
            reason, message = _REASONS[status]
            error = {
                "message": message.format(limit=limit), "type": "invalid_request_error", "param": None, "code": None,
            }  # fmt: skip
            body = json.dumps({"error": error}).encode()
            head = (
                f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
                f"x-serin-trace-id: {secrets.token_hex(16)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True  # its handler must not answer too
                self.cycle.message_event.set()
        if status == 408:
            self.transport.close()  # it had its time
        else:
            self._linger()

    def _linger(self) -> None:
        """Take what is still on its way and throw it away, for a moment.

        Closing at once would reset the connection, and a client that is still sending would not see why (RFC 9112,
        section 9.6).
        """
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.transport.resume_reading()
        self._deadline = self.loop.call_later(LINGER_S, self.transport.close)


def _check_certificate(tls: TlsConfig) -> None:
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.cert_file, tls.key_file, password=lambda: "")
        if tls.client_ca_file:
            context.load_verify_locations(tls.client_ca_file)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"The certificate {tls.cert_file} with the key {tls.key_file} cannot be used ({error}): check both files."
        ) from error
    if Path(tls.key_file).stat().st_mode & 0o004:
        logger.warning("Everyone on this machine can read %s: chmod o-r it.", tls.key_file)


def _only_modern(_: Any, default: Any) -> ssl.SSLContext:
    context: ssl.SSLContext = default()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
