"""The gateway: the process in front of the engines, and the only one that users talk to.

It routes a session to a release, runs the release's rails, retrieval and prompt around its engine, and records what
happened.  When the candidate fails before anything of an answer was given out, the champion answers instead.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from serin.serve.access import Access
from serin.serve.admission import Admission
from serin.serve.api_edge import Edge, answer_http_error, answer_refusal
from serin.serve.api_outcome import RETRY_AFTER_S, failure_of, headers_of
from serin.serve.api_routes import Shortcut, routes_of
from serin.serve.attempt import Arrival, Attempt, BlockedInputError
from serin.serve.errors import RequestError
from serin.serve.metrics import Metrics
from serin.serve.mirror import Mirror
from serin.serve.recorder import Recorder
from serin.serve.rollouts import Rollout, Rollouts

logger = logging.getLogger(__name__)

ANY_MODEL = "default"
"""Model name that every endpoint answers to, besides its own."""
Work = Callable[[Attempt], Awaitable[None]]


@dataclass(frozen=True)
class Gateway:
    """What the HTTP handlers work with."""

    endpoint: str
    rollouts: Rollouts
    recorder: Recorder
    metrics: Metrics
    access: Access
    follows_journal: bool = False
    admission: Admission | None = None
    """Who is let in; None: everyone with access."""
    mirror: Mirror | None = None
    """Hands requests to the candidate in the champion's shadow; None: nothing is mirrored."""

    def app(self) -> Starlette:
        """The HTTP application."""
        return Starlette(
            routes=routes_of(self),
            middleware=[Middleware(Edge), Middleware(Shortcut, gateway=self)],
            exception_handlers={RequestError: answer_refusal, HTTPException: answer_http_error},
        )

    def rollout(self) -> Rollout:
        """What is served now.

        Raises:
            RequestError: 503, nothing is loaded.
        """
        if self.rollouts.current is None:
            raise RequestError(503, "No release is loaded yet: try again shortly.", retry_after_s=RETRY_AFTER_S)
        return self.rollouts.current

    def require_model(self, model: str | None, *others: str) -> None:
        """Check the name that a request gives as model.

        Raises:
            RequestError: 404, it is neither the endpoint's, 'default', nor one of the others.
        """
        if model not in (None, self.endpoint, ANY_MODEL, *others):
            raise RequestError(
                404, f"'model' is {model!r}: this endpoint is {self.endpoint!r}.", param="model", code="model_not_found"
            )

    @contextmanager
    def admitted(self, key_id: str) -> Iterator[list[Attempt]]:
        """Let a request in; the attempts that are put into the list are counted when it is over.

        Raises:
            RequestError: 429, it is not let in.
        """
        counted: list[Attempt] = []
        if self.admission is None:
            yield counted
            return
        lease = self.admission.enter(key_id)
        try:
            yield counted
        finally:
            tokens = sum(attempt.prompt_tokens + attempt.completion_tokens for attempt in counted)
            lease.done(tokens=tokens, ttft_ms=counted[0].ttft_ms if counted else None)

    async def begin(self, arrivals: Sequence[Arrival], rollout: Rollout, work: Work) -> list[Attempt]:
        """Run the first part of an answer on the session's release, and on the champion if the candidate fails.

        Args:
            arrivals: the prompts of one request.
            rollout: what is served.
            work: the first part.

        Raises:
            RequestError: the input is blocked, or the champion fails.
        """
        for runtime, track in rollout.route(arrivals[0].session_id):
            attempts = [Attempt(runtime, track, arrival) for arrival in arrivals]
            try:
                await _together(attempts, work)
                return attempts
            except BaseException as error:
                failure = failure_of(error, headers_of(attempts[0]))
                await self._give_up(attempts, failure)
                if isinstance(error, BlockedInputError):
                    raise failure from error
                if not isinstance(error, Exception):
                    raise
                if track == "champion":
                    raise failure from error
                logger.warning("The candidate failed (%s); the champion answers.", failure.message)
                self.metrics.failover(runtime.release.id)
        raise AssertionError("a route ends with the champion")

    def record(self, attempt: Attempt, status: int, error: str = "") -> None:
        """Write down how an attempt of a user's request ended."""
        self._note(attempt, status, error)
        if self.mirror is not None:
            self.mirror.offer(attempt, status, self._note)

    def _note(self, attempt: Attempt, status: int, error: str) -> None:
        observation = attempt.observation(status, error)
        self.metrics.observe(observation.event, attempt.rails_ms)
        self.recorder.add(observation)

    async def _give_up(self, attempts: Sequence[Attempt], failure: RequestError) -> None:
        for attempt in attempts:
            self.record(attempt, failure.status, failure.message)
        for attempt in attempts:
            await attempt.close()


async def _together(attempts: Sequence[Attempt], work: Work) -> None:
    """Work on all attempts at once; the first error ends the others too."""
    if len(attempts) == 1:
        await work(attempts[0])
        return
    tasks = [asyncio.ensure_future(work(attempt)) for attempt in attempts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
