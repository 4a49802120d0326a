"""A release that is loaded: its index, prompt, rails and engine, ready to answer."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from serin.core.artifacts import ArtifactStore
from serin.core.policy import GuardrailPolicy
from serin.core.release import Release, load_release, model_folder, open_part
from serin.core.serving import ServingConfig
from serin.serve.engine_client import EngineClient, EnginePiece, EngineRequest
from serin.serve.guardrails import Guardrails
from serin.serve.supervisor import EngineProcess, EngineSettings

if TYPE_CHECKING:
    from serin.core.embedding import Embedder
    from serin.core.retrieval import Hit, IndexReader

logger = logging.getLogger(__name__)

DRAIN_POLL_S = 0.05
DRAIN_TIMEOUT_S = 120.0


@dataclass(eq=False)
class Runtime:
    """One loaded release."""

    release: Release
    serving: ServingConfig
    guardrails: Guardrails
    model_dir: Path
    reader: "IndexReader"
    engine: EngineProcess
    client: EngineClient
    searches: ThreadPoolExecutor
    in_flight: int = 0
    """Requests that may still use it: it is not unloaded before they are done."""

    async def search(self, query: str) -> list["Hit"]:
        """Passages for a query."""
        serving = self.serving
        if serving.max_passages < 1:
            return []
        return await asyncio.get_running_loop().run_in_executor(
            self.searches,
            lambda: self.reader.search(query, max_passages=serving.max_passages, min_score=serving.min_score),
        )

    def stream(self, request: EngineRequest) -> AsyncGenerator[EnginePiece, None]:
        """The engine's answer."""
        return self.client.stream(request)


class Loader:
    """Loads and unloads releases.

    Args:
        store: where releases and their parts are.
        session: HTTP session for the engines.
        settings: how engines are started.
        run_dir: where engines keep their logs.
        silence_s: longest wait for an engine's next token.
    """

    def __init__(
        self,
        store: ArtifactStore,
        session: aiohttp.ClientSession,
        settings: EngineSettings,
        run_dir: Path,
        silence_s: float,
    ) -> None:
        self._store, self._session, self._settings = store, session, settings
        self._run_dir, self._silence_s = run_dir, silence_s
        self._embedders: dict[str, Embedder] = {}
        self._searches = ThreadPoolExecutor(max_workers=2, thread_name_prefix="search")

    async def load(self, release_id: str) -> Runtime:
        """Open a release's parts and start its engine.

        Raises:
            SerinError: a part is missing or damaged, or the engine does not start.
        """
        release, model_dir = await asyncio.to_thread(self._open_model, release_id)
        policy = GuardrailPolicy.load(release.guardrails)
        serving = ServingConfig.load(release.serving)
        starting = asyncio.create_task(EngineProcess.start(model_dir, release.short_id, self._settings, self._run_dir))
        try:
            reader = await asyncio.to_thread(self._open_index, release)
            engine = await starting
        except BaseException:
            starting.cancel()
            await asyncio.wait({starting})
            raise
        return Runtime(
            release=release,
            serving=serving,
            guardrails=Guardrails(policy),
            model_dir=model_dir,
            reader=reader,
            engine=engine,
            client=EngineClient(self._session, engine.url, self._silence_s),
            searches=self._searches,
        )

    async def restart(self, runtime: Runtime) -> None:
        """Give a release whose engine ended a new one."""
        name = runtime.release.short_id
        engine = await EngineProcess.start(runtime.model_dir, name, self._settings, self._run_dir)
        runtime.engine, runtime.client = engine, EngineClient(self._session, engine.url, self._silence_s)

    async def unload(self, runtime: Runtime) -> None:
        """End a release's engine once no request is on it any more."""
        waited = 0.0
        while runtime.in_flight and runtime.engine.alive and waited < DRAIN_TIMEOUT_S:
            await asyncio.sleep(DRAIN_POLL_S)
            waited += DRAIN_POLL_S
        await runtime.engine.stop()
        logger.info("Release %s is unloaded.", runtime.release.short_id)

    def close(self) -> None:
        """End the search threads."""
        self._searches.shutdown(wait=False, cancel_futures=True)

    def _open_model(self, release_id: str) -> tuple[Release, Path]:
        release = load_release(self._store.storage, release_id)
        return release, model_folder(release, self._store)

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
