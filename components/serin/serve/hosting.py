"""What the gateway and the engine share as HTTP servers."""

import asyncio
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive

from serin.core.errors import SerinError, ServingError

BACKLOG = 1024
SHUTDOWN_S = 5
"""How long a server that was told to end waits for the answers under way."""


def bound_socket(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ServingError: the port is taken, or the host is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small writes at once only on sockets that name TCP; otherwise each answer waits 40 ms for an ACK
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise ServingError(f"Port {port} is in use: choose another with --port.") from error
        raise ServingError(f"Cannot listen on {host} port {port} ({error}): choose another address or port.") from error
    return listener


async def serve_on(app: ASGIApp, listener: socket.socket, ready: Callable[[], Awaitable[None]], **options: Any) -> None:
    """Serve until SIGINT or SIGTERM; ``ready`` is awaited once the server answers, and its error ends the server.

    ``options`` are more of uvicorn's settings.
    """
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=SHUTDOWN_S, backlog=BACKLOG,
        **options,
    )  # fmt: skip
    server = _Server(config)
    server.end_on_signals()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        preparing = asyncio.create_task(_coroutine(ready()))
        await asyncio.wait({preparing, serving}, return_when=asyncio.FIRST_COMPLETED)
        if preparing.done():
            preparing.result()
        preparing.cancel()
    finally:
        if sys.exc_info()[0] is not None:
            server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    """uvicorn's own handling sends the signal to the process again, which would end it before it has cleaned up."""

    def end_on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def write_ready(path: Path, listener: socket.socket) -> None:
    """Say where a server listens, in one atomic step."""
    host, port = listener.getsockname()[:2]
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps({"host": host, "port": port, "pid": os.getpid()}), encoding="utf-8")
    aside.replace(path)


class Departure:
    """Cancels the task that makes it when the client goes away, without another task or a poll in the answer's way.

    Whoever catches the cancellation asks ``ended_task``; ``close`` ends the watch, and no cancellation comes after it.

    Args:
        receive: the request's, whose body has been read.
    """

    def __init__(self, receive: Receive) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling, self._gone = task, task.cancelling(), False
        self._watching = asyncio.create_task(self._watch(receive))

    def ended_task(self) -> bool:
        """Whether the task was cancelled because the client is gone, and for no other reason; to be asked once."""
        return self._gone and self._task.uncancel() <= self._cancelling

    def close(self) -> None:
        """The client may go."""
        self._watching.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._task.cancel()


def run_on_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run a server's main coroutine on uvicorn's choice of event loop: uvloop, which halves what a chunk costs."""
    with asyncio.Runner(loop_factory=uvicorn.Config(app="").get_loop_factory()) as runner:
        runner.run(work)


def exit_with(error: SerinError) -> int:
    """Say in one sentence why a server process ends; returns its exit code."""
    sys.stderr.write(f"Error: {error}\n")
    return error.exit_code


async def _coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable
