"""A release that is loaded: its index, prompt, rails and backend, ready to answer."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from serin.core.artifacts import Artifact, ArtifactStore
from serin.core.errors import ConfigError, SerinError
from serin.core.policy import GuardrailPolicy
from serin.core.query import Query
from serin.core.release import Release, load_release, model_folder, open_part
from serin.core.serving import ServingConfig, fitting, search
from serin.serve.backends.config import BackendConfig, Backends
from serin.serve.backends.connections import Connections
from serin.serve.backends.embedded import EmbeddedBackend, EngineHost
from serin.serve.backends.pool import Pool
from serin.serve.engine_client import Backend, EnginePiece, EngineRequest
from serin.serve.guardrails import Guardrails
from serin.serve.supervisor import EngineSettings

if TYPE_CHECKING:
    from serin.core.embedding import Embedder
    from serin.core.retrieval import Hit, IndexReader

logger = logging.getLogger(__name__)

DRAIN_POLL_S = 0.05
DRAIN_TIMEOUT_S = 120.0
NOBODY: frozenset[str] = frozenset()
SHARE_VARIABLE = "SERIN_SHARE_BASE"
"""1: releases whose models are adapters of one base are served by one engine process, from the base and the adapters.

Not by default: the evaluation judged the merged weights, and the sum of base and adapter rounds otherwise."""


@dataclass(eq=False)
class Runtime:
    """One loaded release."""

    release: Release
    serving: ServingConfig
    guardrails: Guardrails
    reader: "IndexReader"
    backend: Backend
    searches: ThreadPoolExecutor
    in_flight: int = 0
    """Requests that may still use it: it is not unloaded before they are done."""
    restarts: int = 0
    """How often its engine was started again."""

    async def search(
        self, query: Query | str, *, at: date | None = None, labels: AbstractSet[str] = NOBODY
    ) -> "list[Hit]":
        """Passages for a query, as the evaluation finds them.

        Args:
            query: what is searched for.
            at: the day on which documents must be valid; None: today.
            labels: the caller's access labels.
        """
        if self.serving.max_passages < 1:
            return []
        return await asyncio.get_running_loop().run_in_executor(
            self.searches, lambda: search(self.reader, self.serving, query, at=at, labels=labels)
        )

    def fitting(self, passages: Sequence[str]) -> list[str]:
        """The leading passages that the prompt has room for, as the model will see them."""
        return fitting(passages, self.release.prompt, self.serving)

    def stream(self, request: EngineRequest) -> AsyncGenerator[EnginePiece, None]:
        """The backend's answer."""
        return self.backend.stream(request)

    @property
    def client(self) -> Backend:
        """The backend, as what is asked."""
        return self.backend

    @property
    def engine(self) -> Backend:
        """The backend, as what lives and dies."""
        return self.backend


class Loader:
    """Loads and unloads releases.

    Args:
        store: where releases and their parts are.
        connections: to the backends.
        settings: how engines of our own are started.
        run_dir: where engines keep their logs.
        silence_s: longest wait for the next token of an engine of our own.
        backends: which releases are served elsewhere; None: as ``SERIN_BACKENDS`` says.
        share_base: adapters of one base in one engine; None: as ``SERIN_SHARE_BASE`` says.

    Raises:
        ConfigError: ``SERIN_BACKENDS`` cannot be used.
    """

    def __init__(
        self,
        store: ArtifactStore,
        connections: Connections,
        settings: EngineSettings,
        run_dir: Path,
        silence_s: float,
        backends: Backends | None = None,
        share_base: bool | None = None,
    ) -> None:
        self._store, self._connections, self._settings = store, connections, settings
        self._run_dir, self._silence_s = run_dir, silence_s
        self._backends = backends or Backends.from_environment()
        self._share_base = os.environ.get(SHARE_VARIABLE) == "1" if share_base is None else share_base
        self._hosts: dict[str, EngineHost] = {}
        self._pools: list[tuple[Pool, str]] = []
        self._embedders: dict[str, Embedder] = {}
        self._searches = ThreadPoolExecutor(max_workers=2, thread_name_prefix="search")

    async def load(self, release_id: str) -> Runtime:
        """Open a release's parts and its backend.

        Raises:
            SerinError: a part is missing or damaged, or the backend does not start or answer.
        """
        release = await asyncio.to_thread(load_release, self._store.storage, release_id)
        policy = GuardrailPolicy.load(release.guardrails)
        serving = ServingConfig.load(release.serving)
        starting = asyncio.create_task(self._open_backend(release))
        guardrails = Guardrails(policy, release.prompt.system)
        try:
            reader = await asyncio.to_thread(self._open_index, release)
            await asyncio.to_thread(guardrails.warm_up)
            backend = await starting
        except BaseException:
            starting.cancel()
            await asyncio.wait({starting})
            if not starting.cancelled() and starting.exception() is None:
                starting.result().kill()
            raise
        return Runtime(
            release=release,
            serving=serving,
            guardrails=guardrails,
            reader=reader,
            backend=backend,
            searches=self._searches,
        )

    async def restart(self, runtime: Runtime) -> None:
        """Give a release whose engine ended a new one; counted, whether it starts or not."""
        runtime.restarts += 1
        await runtime.backend.restart()

    async def unload(self, runtime: Runtime) -> None:
        """Let go of a release's backend once no request is on it any more."""
        waited = 0.0
        try:
            while runtime.in_flight and runtime.backend.alive and waited < DRAIN_TIMEOUT_S:
                await asyncio.sleep(DRAIN_POLL_S)
                waited += DRAIN_POLL_S
        except asyncio.CancelledError:
            runtime.backend.kill()
            raise
        await runtime.backend.close()
        logger.info("Release %s is unloaded.", runtime.release.short_id)

    def close(self) -> None:
        """End the search threads."""
        self._searches.shutdown(wait=False, cancel_futures=True)

    async def _open_backend(self, release: Release) -> Backend:
        if config := self._backends.of(release):
            return await self._open_pool(release, config)
        if self._share_base and (parts := await asyncio.to_thread(self._adapter_of, release)):
            base, adapter = parts
            host = self._host(base.digest, base.path, f"base-{base.digest[:12]}")
            return await EmbeddedBackend.open(host, (release.short_id, adapter))
        folder = await asyncio.to_thread(model_folder, release, self._store)
        return await EmbeddedBackend.open(self._host("", folder, release.short_id))

    async def _open_pool(self, release: Release, config: BackendConfig) -> Backend:
        """Refuses to serve two models under one name: the canary would compare a model with itself."""
        model, digest = config.model_of(release), release.model.digest
        self._pools = [(pool, served) for pool, served in self._pools if not pool.closed]
        for pool, served in self._pools:
            if served != digest and pool.model == model and set(pool.urls) & set(config.urls):
                raise ConfigError(
                    f"The backend at {pool.url} serves {model!r} for a release with another model: let 'model' in "
                    "SERIN_BACKENDS name the release ('{short}'), or give each release an entry of its own."
                )
        pool = await Pool.open(self._connections, config, model)
        self._pools.append((pool, digest))
        return pool

    def _host(self, base: str, folder: Path, name: str) -> EngineHost:
        """The engine of a base that others may use too, or a new one."""
        if base and base in self._hosts and self._hosts[base].wanted:
            return self._hosts[base]
        host = EngineHost(self._connections, folder, name, self._settings, self._run_dir, self._silence_s)
        if base:
            self._hosts[base] = host
        return host

    def _adapter_of(self, release: Release) -> tuple[Artifact, Path] | None:
        """The base and the adapter that make up a release's model; None: it is made otherwise, or they are not here."""
        model = open_part(release.model, self._store)
        adapter = model.path / "adapter"
        digest, uri = model.manifest.inputs.get("base"), model.manifest.sources.get("base")
        if not adapter.is_dir() or not digest or not uri:
            return None
        try:
            base = self._store.open(uri)
        except SerinError as error:
            logger.warning("The base of release %s cannot be opened: %s", release.short_id, error)
            return None
        return (base, adapter) if base.digest == digest else None

    def _open_index(self, release: Release) -> "IndexReader":
        from serin.core.embedding import Embedder
        from serin.core.retrieval import IndexReader, read_info

        index = open_part(release.index, self._store)
        name = read_info(index.path).embedder
        if name not in self._embedders:
            self._embedders[name] = Embedder.load(name, num_threads=1)
        reader = IndexReader.open(index.path, self._embedders[name])
        reader.search("warm up", max_passages=1)
        return reader
