"""A backend of one or more OpenAI-compatible servers that serve the same model."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from serin.core.errors import ServingError
from serin.serve.backends.breaker import Breaker
from serin.serve.backends.config import BackendConfig
from serin.serve.backends.connections import Connections
from serin.serve.backends.upstream import Upstream
from serin.serve.engine_client import EngineError, EnginePiece, EngineRequest

logger = logging.getLogger(__name__)

READY_POLL_S = 0.25
MAX_BACKOFF_S = 2.0
HANDED_ON_S = 1.0
"""What a client is told to wait where no server said how long."""


@dataclass(eq=False)
class _Server:
    """One server and what is known of it."""

    upstream: Upstream
    breaker: Breaker
    in_flight: int = 0
    healthy: bool = True
    paused_until: float = 0.0
    """It asked to be left alone until then (Retry-After)."""


class Pool:
    """Asks the server with the fewest requests under way; make one with ``open``.

    Args:
        servers: at least one.
        config: how they are asked.
        model: what they call the release's model.
        clock: seconds.
    """

    def __init__(
        self,
        servers: Sequence[_Server],
        config: BackendConfig,
        model: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._servers, self._config, self.model, self._clock = tuple(servers), config, model, clock
        self._watching: asyncio.Task[None] | None = None
        self.closed = False

    @classmethod
    async def open(cls, connections: Connections, config: BackendConfig, model: str) -> "Pool":
        """Wait until a server answers, and see that it has the model.

        Raises:
            ConfigError: the key or the certificates are not where the configuration says.
            ServingError: none answers in time, or one that does has no such model.
        """
        headers, tls = config.headers(), config.tls()
        servers = [
            _Server(
                Upstream(connections, url, config.timeouts, headers, tls, config.health_path),
                Breaker(config.breaker_failures, config.breaker_open_s),
            )
            for url in config.urls
        ]
        pool = cls(servers, config, model)
        await pool._ready()
        pool._watching = asyncio.create_task(pool._watch())
        return pool

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EnginePiece, None]:
        """The answer's pieces; tries again, and elsewhere, until the first of them.

        Raises:
            EngineError: at any point.
        """
        end = self._clock() + self._config.first_token_s
        tried: list[_Server] = []
        while True:
            server, begun = self._pick(tried), False
            tried.append(server)
            try:
                with self._entered(server):
                    asked = server.upstream.stream(request, self.model, self._config.extra_body)
                    async with aclosing(asked) as pieces:
                        async for piece in pieces:
                            if not begun:
                                begun = True
                                server.breaker.works()
                            yield piece
                return
            except EngineError as error:
                if begun or request.once or not error.retryable or len(tried) > self._config.retries:
                    raise
                wait_s = self._wait_s(tried, error)
                if self._clock() + wait_s >= end:
                    raise
                logger.warning("%s is asked no more: %s A further try in %.2f s.", server.upstream.url, error, wait_s)
            await asyncio.sleep(wait_s)

    async def healthy(self) -> bool:
        """Whether a server can be asked now, as far as is known."""
        return any(server.healthy and server.breaker.admits() for server in self._servers)

    @property
    def alive(self) -> bool:
        """Always: its servers are started elsewhere."""
        return True

    @property
    def pid(self) -> int | None:
        """None: no process of ours."""
        return None

    @property
    def url(self) -> str:
        """The first server's."""
        return self._servers[0].upstream.url

    @property
    def urls(self) -> tuple[str, ...]:
        """All servers'."""
        return self._config.urls

    def state(self) -> dict[str, Any]:
        """What operators see of it."""
        servers = [
            {
                "url": server.upstream.url,
                "healthy": server.healthy,
                "breaker": server.breaker.state,
                "in_flight": server.in_flight,
            }
            for server in self._servers
        ]
        return {"kind": "openai", "model": self.model, "servers": servers}

    async def restart(self) -> None:
        """Nothing to start."""

    def kill(self) -> None:
        """Let go of it at once."""
        self.closed = True
        if self._watching is not None:
            self._watching.cancel()

    async def close(self) -> None:
        """Stop looking at its servers' health."""
        self.kill()
        if self._watching is not None:
            await asyncio.gather(self._watching, return_exceptions=True)

    def _pick(self, tried: Sequence[_Server]) -> _Server:
        now = self._clock()
        free = [server for server in self._servers if server.breaker.admits() and server.paused_until <= now]
        if not free:
            soonest = min(max(s.breaker.opens_in_s, s.paused_until - now) for s in self._servers)
            message = "No backend can be asked now: all failed lately, or asked to be left alone."
            raise EngineError(503, message, "backend_unavailable", retry_after_s=max(soonest, HANDED_ON_S))
        return min(free, key=lambda one: (not one.healthy, tried.count(one), one.in_flight, random.random()))  # noqa: S311

    @contextmanager
    def _entered(self, server: _Server) -> Iterator[None]:
        server.in_flight += 1
        server.breaker.enter()
        try:
            yield
        except EngineError as error:
            if error.status == 429 or error.retry_after_s is not None:
                server.paused_until = self._clock() + (error.retry_after_s or 0.0)
            if error.status >= 500:
                server.breaker.failed()
            else:
                server.breaker.succeeded()
            raise
        except BaseException:  # the client went away
            server.breaker.left()
            raise
        else:
            server.breaker.succeeded()
        finally:
            server.in_flight -= 1

    def _wait_s(self, tried: Sequence[_Server], error: EngineError) -> float:
        """Nothing while another server can be asked; else what the server asked for, or a random backoff.

        Raises:
            EngineError: the server asks for longer than is waited.
        """
        now = self._clock()
        if any(s.breaker.admits() and s.paused_until <= now for s in self._servers if s not in tried):
            return 0.0
        if error.retry_after_s is not None:
            if error.retry_after_s > self._config.max_retry_after_s:
                raise error
            return error.retry_after_s + random.uniform(0, self._config.backoff_s)  # noqa: S311 - no secret
        return random.uniform(0, min(MAX_BACKOFF_S, self._config.backoff_s * 2 ** (len(tried) - 1)))  # noqa: S311

    async def _ready(self) -> None:
        deadline = self._clock() + self._config.ready_s
        while not await self._look():
            if self._clock() >= deadline:
                urls = ", ".join(server.upstream.url for server in self._servers)
                raise ServingError(f"No backend answered within {self._config.ready_s:g} s: see {urls}.")
            await asyncio.sleep(READY_POLL_S)
        for server in self._servers:
            if server.healthy:
                await self._has_model(server.upstream)

    async def _has_model(self, upstream: Upstream) -> None:
        try:
            models = await upstream.models()
        except EngineError as error:
            raise ServingError(str(error)) from error
        if models is not None and self.model not in models:
            known = ", ".join(models[:5]) or "none"
            raise ServingError(
                f"The backend at {upstream.url} has no model {self.model!r} (it has {known}): load it there, or change "
                "'model'."
            )

    async def _look(self) -> bool:
        """Look at the health of all servers; whether one is healthy."""
        found = await asyncio.gather(*(server.upstream.healthy() for server in self._servers))
        for server, healthy in zip(self._servers, found, strict=True):
            if healthy and not server.healthy:
                server.breaker.try_now()
            if healthy != server.healthy:
                logger.log(
                    logging.INFO if healthy else logging.WARNING,
                    "The backend at %s is %s.", server.upstream.url, "back" if healthy else "not healthy",
                )  # fmt: skip
            server.healthy = healthy
        return any(found)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._config.health_s * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
            try:
                await self._look()
            except Exception:  # a watcher that ended without a word would leave servers out for good
                logger.exception("The backends' health could not be read; it is tried again.")
