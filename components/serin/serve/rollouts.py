"""What the gateway serves now, and how that is changed without a request noticing."""

import asyncio
import logging
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from serin.core.config import Section
from serin.core.errors import ConfigError, FencedError, SerinError, ServingError
from serin.core.journal import Journal
from serin.serve.routing import SessionIds, takes_candidate
from serin.serve.runtime import Loader, Runtime

logger = logging.getLogger(__name__)

WATCH_S = 0.5
FOLLOW_S = 3.0
MAX_WAIT_S = 30.0
READY_S = 3.0
"""An engine that does not say in this time that it works is not ready."""
MAX_FAILED_STARTS = 8
"""Releases whose failures to load are remembered."""


class SupersededError(ServingError):
    """A change of the rollout that was given up, because another one came while it loaded releases."""


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
    mirror_percent: float = 0.0
    """Share of the champion's chat requests that the candidate answers too, unseen by users, 0 to 100."""
    fence: int | None = Field(default=None, ge=0)
    """Number of the lease under which a controller asks; refused once a higher one was seen.  None: a person asks."""


@dataclass(frozen=True)
class Rollout:
    """One state of the split; replaced as a whole, never changed."""

    champion: Runtime
    candidate: Runtime | None
    weight_percent: float
    salt: str
    mirror_percent: float = 0.0
    ids: SessionIds | None = None
    """Gives ids to sessions that come without one; None: any id will do."""
    edited_by: str = ""
    """The person who told this without a lease; empty: a controller, the journal or the command line did."""

    def new_session(self) -> str:
        """An id for a session that comes without one."""
        return self.ids.new() if self.ids is not None else secrets.token_hex(16)

    def shadow_for(self, session_id: str, answer_id: str) -> Runtime | None:
        """The candidate, where it is to answer too what the champion answered; None: no shadow for this one."""
        if self.candidate is None or takes_candidate(self.salt, session_id, self.weight_percent):
            return None
        return self.candidate if takes_candidate(self.salt, answer_id, self.mirror_percent) else None

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
            "mirror_percent": self.mirror_percent,
            "edited": bool(self.edited_by),
            "edited_by": self.edited_by,
            "releases": {
                runtime.release.id: {
                    "track": track,
                    "engine_pid": runtime.backend.pid,
                    "engine_alive": runtime.backend.alive,
                    "engine_url": runtime.backend.url,
                    "in_flight": runtime.in_flight,
                    "restarts": runtime.restarts,
                    "backend": runtime.backend.state(),
                }
                for runtime, track in self.loaded()
            },
        }


class Rollouts:
    """Holds the current rollout, changes it, and keeps the champion's engine running.

    A candidate whose engine ends is not started again until somebody asks for it: its failures are what the judge must
    see.  Moving weights between releases that are loaded and alive waits for nothing, a load under way included; the
    load is then given up, since it would undo what came after it.
    """

    def __init__(self, loader: Loader) -> None:
        self.current: Rollout | None = None
        self.instance = secrets.token_hex(8)
        """Another one after every start of the gateway."""
        self.fence = 0
        """The highest that was seen."""
        self._failed_starts: dict[str, tuple[int, str]] = {}
        self._loader = loader
        self._changing = asyncio.Lock()
        self._unloading: set[asyncio.Task[None]] = set()

    async def change(self, request: RolloutRequest, *, by: str = "") -> Rollout:
        """Load what is needed, switch in one step, and unload what is not needed once its requests are done.

        Args:
            request: what to serve.
            by: the administrator who asks; empty: the gateway itself, by its command line or the journal.

        Raises:
            FencedError: a controller with a later lease has asked for something.
            SupersededError: something else was asked for while releases were loaded for this.
            SerinError: the request contradicts itself, or a release cannot be loaded; then nothing changes.
        """
        _check(request)
        self._pass_fence(request.fence)
        if (at_hand := self._at_hand(request)) is not None:
            return self._switch(request, *at_hand, by)
        async with self._changing:
            before = self.current
            known = [runtime for runtime, _ in before.loaded()] if before else []
            fresh: list[Runtime] = []
            try:
                champion = await self._loaded(request.champion, known, fresh)
                candidate = await self._loaded(request.candidate, known, fresh) if request.candidate else None
                _require_two(champion, candidate)
                self._pass_fence(request.fence)
                if self.current is not before:
                    raise SupersededError("Something else was asked for while this was loaded: ask again if you must.")
            except BaseException:
                for runtime in fresh:
                    runtime.backend.kill()
                raise
            return self._switch(request, champion, candidate, by)

    async def state(self) -> dict[str, Any] | None:
        """What is served as JSON values; None: nothing yet."""
        current = self.current
        if current is None:
            return None
        loaded = [runtime for runtime, _ in current.loaded()]
        ready = await asyncio.gather(*(_ready(runtime) for runtime in loaded))
        state = current.state()
        for runtime, is_ready in zip(loaded, ready, strict=True):
            state["releases"][runtime.release.id]["ready"] = is_ready
        failed = {name: {"count": count, "error": text} for name, (count, text) in self._failed_starts.items()}
        return {**state, "fence": self.fence, "instance": self.instance, "failed_starts": failed}

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

    def _pass_fence(self, fence: int | None) -> None:
        if fence is None:
            return
        if fence < self.fence:
            raise FencedError(
                f"A controller with lease {self.fence} drives this endpoint, and this is lease {fence}: stop."
            )
        self.fence = fence

    def _at_hand(self, request: RolloutRequest) -> tuple[Runtime, Runtime | None] | None:
        """Champion and candidate, where both are loaded and alive."""
        known = [runtime for runtime, _ in self.current.loaded() if runtime.backend.alive] if self.current else []
        champion = _find(request.champion, known)
        candidate = _find(request.candidate, known) if request.candidate else None
        if champion is None or (request.candidate and candidate is None):
            return None
        _require_two(champion, candidate)
        return champion, candidate

    def _switch(self, request: RolloutRequest, champion: Runtime, candidate: Runtime | None, by: str) -> Rollout:
        before = self.current
        salt = request.salt if request.salt is not None else (before.salt if before else "")
        ids = SessionIds(salt) if candidate else None
        if ids and before and before.ids and before.salt == salt:
            ids = before.ids
        edited_by = by if request.fence is None else ""
        percents = request.candidate_weight_percent, request.mirror_percent
        self.current = Rollout(champion, candidate, percents[0], salt, percents[1], ids, edited_by)
        logger.info(
            "Serving %s, candidate %s at %g%% (shadow %g%%), told by %s.",
            champion.release.short_id, candidate.release.short_id if candidate else "none", *percents,
            by or "the gateway itself",
        )  # fmt: skip
        for runtime, _ in before.loaded() if before else []:
            if runtime not in (champion, candidate):
                self._unload(runtime)
        return self.current

    async def _loaded(self, release_id: str, known: list[Runtime], fresh: list[Runtime]) -> Runtime:
        try:
            if (runtime := _find(release_id, [*known, *fresh])) is None:
                runtime = await self._loader.load(release_id)
                fresh.append(runtime)
            elif not runtime.backend.alive:
                await self._loader.restart(runtime)
        except SerinError as error:
            count, _ = self._failed_starts.pop(release_id, (0, ""))
            self._failed_starts[release_id] = (count + 1, str(error))
            for name in [*self._failed_starts][:-MAX_FAILED_STARTS]:
                del self._failed_starts[name]
            raise
        self._failed_starts.pop(release_id, None)
        return runtime

    def _unload(self, runtime: Runtime) -> None:
        task = asyncio.create_task(self._loader.unload(runtime))
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)


def _check(request: RolloutRequest) -> None:
    for name in ("candidate_weight_percent", "mirror_percent"):
        percent = getattr(request, name)
        if not 0 <= percent <= 100:
            raise ConfigError(f"'{name}' is {percent}: give a number from 0 to 100.")
        if percent and not request.candidate:
            raise ConfigError(f"'{name}' needs a candidate: name one, or set it to 0.")


def _require_two(champion: Runtime, candidate: Runtime | None) -> None:
    if candidate is champion:
        raise ConfigError("Champion and candidate are the same release: give another candidate.")


def _find(release_id: str, runtimes: Iterable[Runtime]) -> Runtime | None:
    """The runtime of a release by its id or an unambiguous beginning of it."""
    return next((one for one in runtimes if len(release_id) >= 8 and one.release.id.startswith(release_id)), None)


async def _ready(runtime: Runtime) -> bool:
    """Whether a release's engine is alive and answers."""
    try:
        async with asyncio.timeout(READY_S):
            return runtime.backend.alive and await runtime.backend.healthy()
    except TimeoutError:
        return False
