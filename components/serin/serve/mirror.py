"""Shadow traffic: a candidate answers what a champion has answered, in the background and unseen by users.

A share of the champion's chat requests is handed to the candidate once the champion's answer is out (a question that
the champion's rails refuse counts as answered).  The candidate goes the whole way of a request, rails and retrieval
included; its event has the track ``shadow`` and names the champion's answer (``shadow_of``), so that the two can be
compared, and is kept apart from users' traffic.  Nothing of it reaches a user, takes a place of the admission, or
counts against a key.  Little is under way at once and little waits: beyond that, requests are dropped and counted.  A
shadow that fails is not tried again.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pydantic import Field

from serin.core.config import Section
from serin.core.events import SHADOW
from serin.serve.api_outcome import failure_of
from serin.serve.attempt import Arrival, Attempt
from serin.serve.rollouts import Rollouts
from serin.serve.runtime import Runtime

logger = logging.getLogger(__name__)

SETTLE_S = 0.05
"""The champion's answer has so long to leave before its shadow begins."""
CHAT_ID = "chatcmpl-"
OK = 200
Record = Callable[[Attempt, int, str], None]


class MirrorConfig(Section):
    """How much of a candidate's shadow traffic there may be at once."""

    max_in_flight: int = Field(default=2, ge=1)
    """Shadow requests under way at once."""
    max_waiting: int = Field(default=64, ge=0)
    """Shadow requests that wait for that; beyond it they are dropped and counted."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Longest time for one shadow request."""


@dataclass
class MirrorCounts:
    """What became of the shadow requests of one candidate."""

    answered: int = 0
    """With those that its rails refuse."""
    failed: int = 0
    dropped: int = 0
    """Never begun: too many waited, or the rollout moved on."""
    in_flight: int = 0
    waiting: int = 0


class Mirror:
    """Hands a champion's requests to its candidate.

    Args:
        rollouts: what is served.
        config: how much at once; None: the defaults.
        dropped: told of each request that is not mirrored after all, by release id and reason (full, moved_on).
    """

    def __init__(
        self,
        rollouts: Rollouts,
        config: MirrorConfig | None = None,
        dropped: Callable[[str, str], None] = lambda release_id, reason: None,
    ) -> None:
        self._rollouts, self._config, self._dropped = rollouts, config or MirrorConfig(), dropped
        self._places = asyncio.Semaphore(self._config.max_in_flight)
        self._tasks: set[asyncio.Task[None]] = set()
        self._counts: tuple[Runtime | None, MirrorCounts] = (None, MirrorCounts())

    def counts(self) -> MirrorCounts | None:
        """The counts of the candidate, from when it became one; None without a candidate."""
        current = self._rollouts.current
        return self._counts_of(current.candidate) if current is not None and current.candidate is not None else None

    def offer(self, attempt: Attempt, status: int, record: Record) -> None:
        """Take an attempt whose outcome is known; returns at once.

        Args:
            attempt: of any request.
            status: how it went.
            record: writes the shadow's event.
        """
        arrival = attempt.arrival
        is_answered = status == OK or attempt.blocked_input
        if not is_answered or attempt.track != "champion" or not arrival.answer_id.startswith(CHAT_ID):
            return
        candidate = self._candidate_of(attempt)
        if candidate is None:
            return
        counts = self._counts_of(candidate)
        if len(self._tasks) >= self._config.max_in_flight + self._config.max_waiting:
            self._drop(candidate, counts, "full")
            return
        counts.waiting += 1
        task = asyncio.create_task(self._shadow(candidate, attempt, counts, record))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _counts_of(self, candidate: Runtime) -> MirrorCounts:
        if self._counts[0] is not candidate:
            self._counts = (candidate, MirrorCounts())
        return self._counts[1]

    def _candidate_of(self, attempt: Attempt) -> Runtime | None:
        rollout = self._rollouts.current
        if rollout is None or rollout.champion is not attempt.runtime:
            return None
        return rollout.shadow_for(attempt.arrival.session_id, attempt.arrival.answer_id)

    async def _shadow(self, candidate: Runtime, champion: Attempt, counts: MirrorCounts, record: Record) -> None:
        try:
            await asyncio.sleep(SETTLE_S)
            await self._places.acquire()
        finally:
            counts.waiting -= 1
        try:
            current = self._rollouts.current
            if current is None or current.candidate is not candidate or not current.mirror_percent:
                self._drop(candidate, counts, "moved_on")
                return
            counts.in_flight += 1
            candidate.in_flight += 1
            try:
                await self._answer(candidate, champion, counts, record)
            finally:
                candidate.in_flight -= 1
                counts.in_flight -= 1
        finally:
            self._places.release()

    async def _answer(self, candidate: Runtime, champion: Attempt, counts: MirrorCounts, record: Record) -> None:
        shadow = Attempt(candidate, SHADOW, _arrival_of(champion.arrival))
        shadow.also_kept_by = champion.runtime.guardrails
        try:
            async with asyncio.timeout(self._config.timeout_s):
                await shadow.start()
                await shadow.run()
        except TimeoutError:
            counts.failed += 1
            record(shadow, 504, f"The shadow's answer took over {self._config.timeout_s:g} s.")
        except Exception as error:
            failure = failure_of(error, {})
            counts.failed += not shadow.blocked_input
            counts.answered += shadow.blocked_input
            record(shadow, failure.status, failure.message)
        else:
            counts.answered += 1
            record(shadow, OK, "")
        finally:
            await shadow.close()

    def _drop(self, candidate: Runtime, counts: MirrorCounts, reason: str) -> None:
        counts.dropped += 1
        self._dropped(candidate.release.id, reason)


def _arrival_of(champion: Arrival) -> Arrival:
    """The same request as it comes to the candidate: with a trace and an answer id of its own, and nobody's key."""
    trace_id = secrets.token_hex(16)
    return replace(
        champion,
        trace_id=trace_id,
        answer_id=f"shadow-{trace_id}",
        shadow_of=champion.answer_id,
        parent_span_id="",
        key_id="",
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        started=time.perf_counter(),
    )
