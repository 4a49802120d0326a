"""What the gateway serves now, and how that is changed without a request noticing."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from serin.core.config import Section
from serin.core.errors import ConfigError, SerinError
from serin.core.journal import Journal
from serin.serve.routing import takes_candidate
from serin.serve.runtime import Loader, Runtime

logger = logging.getLogger(__name__)

WATCH_S = 0.5
FOLLOW_S = 3.0
MAX_WAIT_S = 30.0


class RolloutRequest(Section):
    """What the gateway is asked to serve."""

    champion: str
    """Release id, or an unambiguous prefix of it."""
    candidate: str | None = None
    """Release id; None: the champion alone."""
    candidate_weight_percent: float = 0.0
    """The candidate's share of sessions, 0 to 100."""
    salt: str | None = None
    """Deals sessions to buckets; None keeps the one in use."""


@dataclass(frozen=True)
class Rollout:
    """One state of the split; replaced as a whole, never changed."""

    champion: Runtime
    candidate: Runtime | None
    weight_percent: float
    salt: str

    def route(self, session_id: str) -> list[tuple[Runtime, str]]:
        """The releases to try for a session, with their tracks: the candidate's sessions fall back to the champion."""
        champion = (self.champion, "champion")
        if self.candidate and takes_candidate(self.salt, session_id, self.weight_percent):
            return [(self.candidate, "candidate"), champion]
        return [champion]

    def loaded(self) -> list[tuple[Runtime, str]]:
        """All releases that are loaded, with their tracks."""
        return [(self.champion, "champion"), *([(self.candidate, "candidate")] if self.candidate else [])]

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keep both releases loaded while a request may use them."""
        runtimes = [runtime for runtime, _ in self.loaded()]
        for runtime in runtimes:
            runtime.in_flight += 1
        try:
            yield
        finally:
            for runtime in runtimes:
                runtime.in_flight -= 1

    def state(self) -> dict[str, Any]:
        """The rollout as JSON values."""
        return {
            "champion": self.champion.release.id,
            "candidate": self.candidate.release.id if self.candidate else None,
            "candidate_weight_percent": self.weight_percent,
            "salt": self.salt,
            "releases": {
                runtime.release.id: {
                    "track": track,
                    "engine_pid": runtime.backend.pid,
                    "engine_alive": runtime.backend.alive,
                    "engine_url": runtime.backend.url,
                    "in_flight": runtime.in_flight,
                    "backend": runtime.backend.state(),
                }
                for runtime, track in self.loaded()
            },
        }


class Rollouts:
    """Holds the current rollout, changes it, and keeps the champion's engine running.

    A candidate whose engine ends is not started again: its failures are what the judge must see.
    """

    def __init__(self, loader: Loader) -> None:
        self.current: Rollout | None = None
        self._loader = loader
        self._changing = asyncio.Lock()
        self._unloading: set[asyncio.Task[None]] = set()

    async def change(self, request: RolloutRequest) -> Rollout:
        """Load what is needed, switch in one step, and unload what is not needed once its requests are done.

        Raises:
            SerinError: the request contradicts itself, or a release cannot be loaded; then nothing changes.
        """
        _check(request)
        async with self._changing:
            known = {runtime.release.id: runtime for runtime, _ in self.current.loaded()} if self.current else {}
            fresh: list[Runtime] = []
            try:
                champion = await self._loaded(request.champion, known, fresh)
                candidate = await self._loaded(request.candidate, known, fresh) if request.candidate else None
                if candidate is champion:
                    raise ConfigError("Champion and candidate are the same release: give another candidate.")
            except BaseException:
                for runtime in fresh:
                    runtime.backend.kill()
                raise
            salt = request.salt if request.salt is not None else (self.current.salt if self.current else "")
            self.current = Rollout(champion, candidate, request.candidate_weight_percent, salt)
            for runtime in known.values():
                if runtime not in (champion, candidate):
                    self._unload(runtime)
            return self.current

    async def watch(self) -> None:
        """Start the champion's engine again whenever it ends; runs until it is cancelled."""
        wait_s = WATCH_S
        while True:
            await asyncio.sleep(wait_s)
            async with self._changing:
                champion = self.current.champion if self.current else None
                if champion is None or champion.backend.alive:
                    wait_s = WATCH_S
                    continue
                logger.error("The champion's engine ended; it is started again.")
                try:
                    await self._loader.restart(champion)
                except SerinError as error:
                    wait_s = min(MAX_WAIT_S, wait_s * 4)
                    logger.error("The champion's engine did not start: %s", error)

    async def follow(self, journal: Journal, interval_s: float = FOLLOW_S) -> None:
        """Serve whatever the journal names as champion, from the first one on; runs until it is cancelled.

        While there is a candidate, whoever rolls it out moves the traffic.
        """
        seen = 0
        while True:
            try:
                length = await asyncio.to_thread(journal.length)
                if length != seen and await self.catch_up(journal):
                    seen = length
            except SerinError as error:
                logger.error("The journal's champion cannot be served: %s", error)
            except Exception:  # a follower that ended without a word would leave the endpoint on an old release
                logger.exception("The journal could not be followed; it is tried again.")
            await asyncio.sleep(interval_s)

    async def catch_up(self, journal: Journal) -> bool:
        """Serve the champion that the journal names; whether it is served now (True where it names none).

        Raises:
            SerinError: it cannot be loaded.
        """
        champion = await asyncio.to_thread(journal.champion)
        current = self.current
        if champion and (current is None or current.champion.release.id != champion):
            if current is not None and current.candidate is not None:
                return False
            await self.change(RolloutRequest(champion=champion))
            logger.info("Serving the champion %s.", champion[:12])
        return True

    async def close(self) -> None:
        """End all engines."""
        current, self.current = self.current, None
        if current:
            await asyncio.gather(*(runtime.backend.close() for runtime, _ in current.loaded()))
        for task in self._unloading:
            task.cancel()
        await asyncio.gather(*self._unloading, return_exceptions=True)

    async def _loaded(self, release_id: str, known: dict[str, Runtime], fresh: list[Runtime]) -> Runtime:
        for runtime in [*known.values(), *fresh]:
            if len(release_id) >= 8 and runtime.release.id.startswith(release_id):
                if not runtime.backend.alive:
                    await self._loader.restart(runtime)
                return runtime
        runtime = await self._loader.load(release_id)
        fresh.append(runtime)
        return runtime

    def _unload(self, runtime: Runtime) -> None:
        task = asyncio.create_task(self._loader.unload(runtime))
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)


def _check(request: RolloutRequest) -> None:
    if not 0 <= request.candidate_weight_percent <= 100:
        raise ConfigError(
            f"'candidate_weight_percent' is {request.candidate_weight_percent}: give a number from 0 to 100."
        )
    if request.candidate_weight_percent and not request.candidate:
        raise ConfigError("'candidate_weight_percent' needs a candidate: name one, or set it to 0.")
