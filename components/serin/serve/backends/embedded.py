"""A backend that is an engine process of the gateway's own, alone or shared by adapters of one base."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from serin.core.errors import ServingError
from serin.serve.backends.connections import Connections
from serin.serve.backends.upstream import Timeouts, Upstream
from serin.serve.engine_client import EnginePiece, EngineRequest
from serin.serve.supervisor import EngineProcess, EngineSettings

logger = logging.getLogger(__name__)


class EngineHost:
    """One engine process for one model folder, and whoever uses it; it ends with the last of them.

    Args:
        connections: for its requests.
        model_dir: the model's folder; a base model's where adapters are served.
        name: of its log and its answers.
        settings: how it runs.
        run_dir: where its log goes.
        silence_s: longest wait for its next token.
    """

    def __init__(
        self,
        connections: Connections,
        model_dir: Path,
        name: str,
        settings: EngineSettings,
        run_dir: Path,
        silence_s: float,
    ) -> None:
        self._connections, self._model_dir, self._name = connections, model_dir, name
        self._settings, self._run_dir = settings, run_dir
        self._timeouts = Timeouts(first_token_s=silence_s, silence_s=silence_s, total_s=24 * 3600.0)
        self._adapters: dict[str, Path] = {}
        self._users = 0
        self._changing = asyncio.Lock()
        self.process: EngineProcess | None = None
        self.upstream: Upstream | None = None

    async def enter(self, adapter: tuple[str, Path] | None = None) -> None:
        """Start it where it does not run, with the adapter that its new user needs.

        Raises:
            ServingError: it does not start, or refuses the adapter.
        """
        async with self._changing:
            if self.process is not None and self.process.alive:
                if adapter:
                    await self.process.add_adapter(*adapter)
                    self._adapters[adapter[0]] = adapter[1]
            else:
                before = dict(self._adapters)
                self._adapters |= dict([adapter] if adapter else [])
                try:
                    await self._start()
                except BaseException:
                    self._adapters = before
                    raise
            self._users += 1

    async def restart(self) -> None:
        """Start it again if it ended.

        Raises:
            ServingError: it does not start.
        """
        async with self._changing:
            if self.process is None or not self.process.alive:
                await self._start()

    async def leave(self, adapter: str | None = None) -> None:
        """One user less; the last one ends it."""
        async with self._changing:
            self._forget(adapter)
            if self.process is None:
                return
            if self._users < 1:
                await self.process.stop()
            elif adapter is not None:
                try:
                    await self.process.remove_adapter(adapter)
                except ServingError as error:
                    logger.warning("The adapter %s stays in its engine: %s", adapter, error)

    def kill(self, adapter: str | None = None) -> None:
        """One user less, at once."""
        self._forget(adapter)
        if self._users < 1 and self.process is not None:
            self.process.kill()

    @property
    def wanted(self) -> bool:
        """Whether anybody uses it."""
        return self._users > 0

    def _forget(self, adapter: str | None) -> None:
        self._users -= 1
        if adapter is not None:
            self._adapters.pop(adapter, None)

    async def _start(self) -> None:
        self.process = await EngineProcess.start(
            self._model_dir, self._name, self._settings, self._run_dir, self._adapters
        )
        self.upstream = Upstream(self._connections, self.process.url, self._timeouts)


class EmbeddedBackend:
    """A model in an engine process; make one with ``open``.

    Args:
        host: the process.
        adapter: which of its adapters; None: its model itself.
    """

    def __init__(self, host: EngineHost, adapter: str | None = None) -> None:
        self._host, self._adapter = host, adapter
        self._left = False

    @classmethod
    async def open(cls, host: EngineHost, adapter: tuple[str, Path] | None = None) -> "EmbeddedBackend":
        """Have the host serve the model or the adapter, and use it.

        Raises:
            ServingError: it does not start, or refuses the adapter.
        """
        await host.enter(adapter)
        return cls(host, adapter[0] if adapter else None)

    def stream(self, request: EngineRequest) -> AsyncGenerator[EnginePiece, None]:
        """The engine's answer; not tried again, because there is no other engine.

        Raises:
            EngineError: at any point.
        """
        assert self._host.upstream is not None
        return self._host.upstream.stream(request, self._adapter)

    async def healthy(self) -> bool:
        """Whether the engine answers."""
        return self.alive and self._host.upstream is not None and await self._host.upstream.healthy()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._host.process is not None and self._host.process.alive

    @property
    def pid(self) -> int | None:
        """The process's id."""
        return self._host.process.pid if self._host.process else None

    @property
    def url(self) -> str:
        """Where the engine listens."""
        return self._host.process.url if self._host.process else ""

    def state(self) -> dict[str, Any]:
        """What operators see of it."""
        return {"kind": "embedded", **({"adapter": self._adapter} if self._adapter else {})}

    async def restart(self) -> None:
        """Start the engine again after it ended.

        Raises:
            ServingError: it does not start.
        """
        await self._host.restart()

    def kill(self) -> None:
        """End the engine at once, unless another release uses it."""
        if not self._left:
            self._left = True
            self._host.kill(self._adapter)

    async def close(self) -> None:
        """End the engine, unless another release uses it."""
        if not self._left:
            self._left = True
            await self._host.leave(self._adapter)
