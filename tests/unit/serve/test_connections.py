"""Connections to backends, against servers that write their answers byte by byte as the test says."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serin.serve.backends.connections import MAX_HEAD_BYTES, BrokenError, Connections, Place, Reply

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
HELLO = HEAD + b"content-length: 5\r\n\r\nhello"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"


class Server:
    """Sends one script after each request: bytes are written, numbers are waited, None hangs up."""

    def __init__(self, *scripts: Sequence[bytes | float | None]) -> None:
        self.scripts, self.num_connections, self.written = list(scripts), 0, 0
        self.place = Place("127.0.0.1", 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while self.scripts:
                await reader.readuntil(b"\r\n\r\n")
                for step in self.scripts.pop(0):
                    if step is None:
                        return
                    if isinstance(step, bytes):
                        writer.write(step)
                        await writer.drain()
                        self.written += len(step)
                    else:
                        await asyncio.sleep(step)
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def connected(*scripts: Sequence[bytes | float | None]) -> AsyncIterator[tuple[Server, Connections]]:
    server = Server(*scripts)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.place = Place.of(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    async with listening, Connections() as connections:
        yield server, connections


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


async def ask(server: Server, connections: Connections, wait_s: float = 5.0) -> Reply:
    until = asyncio.get_running_loop().time() + wait_s
    return await connections.ask(server.place, REQUEST, connect_s=5.0, until=until)


async def body_of(server: Server, connections: Connections, wait_s: float = 5.0) -> bytes:
    reply = await ask(server, connections, wait_s)
    try:
        return await reply.read_all(1 << 30, asyncio.get_running_loop().time() + wait_s)
    finally:
        reply.close()


@pytest.mark.parametrize(
    ("script", "num_connections"),
    [
        ([HELLO], 1),
        ([CHUNKED], 1),
        ([CHUNKED[number : number + 1] for number in range(len(CHUNKED))], 1),
        ([b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", HELLO], 1),
        ([HEAD + b"connection: close\r\ncontent-length: 5\r\n\r\nhello"], 2),
        ([HEAD + b"\r\nhel", 0.02, b"lo", None], 2),
        ([b"HTTP/1.0 200 OK\r\n\r\nhello", None], 2),
    ],
)
def test_an_answer_is_read_to_its_end_and_its_connection_used_again_where_it_may_be(
    script: Sequence[bytes | float | None], num_connections: int
) -> None:
    async def test() -> None:
        async with connected(script, [HELLO]) as (server, connections):
            assert [await body_of(server, connections) for _ in range(2)] == [b"hello"] * 2
            assert server.num_connections == num_connections

    run(test())


def test_an_idle_connection_that_the_server_closed_is_replaced_by_a_new_one_once() -> None:
    async def test() -> None:
        async with connected([HELLO], [None], [HELLO], [None], [None], [HELLO]) as (server, connections):
            assert await body_of(server, connections) == b"hello"
            assert await body_of(server, connections) == b"hello", "the second script hangs up without a byte"
            assert server.num_connections == 2
            with pytest.raises(BrokenError):
                await body_of(server, connections)

    run(test())


@pytest.mark.parametrize(
    "script",
    [
        [None],
        [HELLO[:-2], None],
        [CHUNKED[:-5], None],
        [b"SSH-2.0-OpenSSH_9.2\r\n"],
        [b"HTTP/1.1 200 OK\r\nx: " + b"y" * (MAX_HEAD_BYTES + 1) + b"\r\n\r\n"],
    ],
)
def test_an_answer_that_breaks_off_is_never_taken_for_whole(script: Sequence[bytes | float | None]) -> None:
    async def test() -> None:
        async with connected(script) as (server, connections):
            with pytest.raises(BrokenError):
                await body_of(server, connections)

    run(test())


def test_what_came_before_a_connection_broke_is_read_first() -> None:
    async def test() -> None:
        async with connected([CHUNKED[:-12], None]) as (server, connections):
            reply = await ask(server, connections)
            await asyncio.sleep(0.05)
            assert reply.read_now() == b"hel"
            assert not reply.at_end
            with pytest.raises(BrokenError):
                reply.read_now()

    run(test())


def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    async def test() -> None:
        async with connected([HELLO, 0.05, HELLO], [HELLO]) as (server, connections):
            assert await body_of(server, connections) == b"hello"
            await asyncio.sleep(0.15)
            assert await body_of(server, connections) == b"hello"
            assert server.num_connections == 2

    run(test())


def test_a_silent_server_is_left_in_time() -> None:
    async def test() -> None:
        async with connected([9.0], [HELLO[:-2], 9.0]) as (server, connections):
            started = time.monotonic()
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    await body_of(server, connections, 0.1)
            assert time.monotonic() - started < 2
            assert server.num_connections == 2, "what was under way is not used again"

    run(test())


def test_a_server_waits_while_its_answer_is_not_read() -> None:
    size = 32 << 20

    async def test() -> None:
        parts = [b"x" * (1 << 20)] * 32
        async with connected([HEAD + b"content-length: %d\r\n\r\n" % size, *parts]) as (server, connections):
            reply = await ask(server, connections)
            await asyncio.sleep(0.2)
            assert server.written < size, "held back by the reader"
            assert len(await reply.read_all(1 << 30, asyncio.get_running_loop().time() + 10)) == size
            assert reply.at_end

    run(test())


def test_a_place_is_what_its_url_says() -> None:
    place = Place.of("http://Bücher.example:8000/base path/")
    assert (place.host, place.port, place.tls) == ("xn--bcher-kva.example", 8000, None)
    head = place.head("GET", "/health", {"authorization": "Bearer k"})
    assert head.startswith(b"GET /base%20path/health HTTP/1.1\r\nhost: xn--bcher-kva.example:8000\r\n")
    assert head.endswith(b"authorization: Bearer k\r\n")
    assert Place.of("http://[::1]").head("GET", "/", {}).startswith(b"GET / HTTP/1.1\r\nhost: [::1]\r\n")
    assert Place.of("https://models.example").port == 443
    with pytest.raises(ValueError, match="header authorization"):
        place.head("GET", "/", {"authorization": "Bearer k\r\nx: y"})
