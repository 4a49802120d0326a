"""The gateway: the process in front of the engines, and the only one that users talk to.

It routes a session to a release, runs the release's rails, retrieval and prompt around its engine, and records what
happened.  When the candidate fails before anything of an answer was given out, the champion answers instead.
"""

import asyncio
import hashlib
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from serin.core.errors import SerinError
from serin.serve.access import Access
from serin.serve.attempt import Arrival, Attempt, BlockedInputError
from serin.serve.engine_client import EngineError
from serin.serve.hosting import unless_disconnected
from serin.serve.metrics import Metrics
from serin.serve.protocol import (
    DONE,
    ChatRequest,
    ChunkWriter,
    RequestError,
    completion,
    event,
    parse_chat,
    read_json,
    usage_of,
)
from serin.serve.recorder import Recorder
from serin.serve.rollouts import Rollout, RolloutRequest, Rollouts

logger = logging.getLogger(__name__)

ANY_MODEL = "default"
"""Model name that every endpoint answers to, besides its own."""
CLIENT_GONE = 499
RETRY_AFTER_S = 1


@dataclass(frozen=True)
class Gateway:
    """What the HTTP handlers work with."""

    endpoint: str
    rollouts: Rollouts
    recorder: Recorder
    metrics: Metrics
    access: Access
    follows_journal: bool = False

    def app(self) -> Starlette:
        """The HTTP application."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/health", self.health),
                Route("/ready", self.ready),
                Route("/metrics", self.expose),
                Route("/admin/rollouts", self.show_rollout, methods=["GET"]),
                Route("/admin/rollouts", self.change_rollout, methods=["PUT"]),
                Route("/admin/flush", self.flush, methods=["POST"]),
            ],
            exception_handlers={RequestError: _answer_error},  # type: ignore[dict-item]
        )

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        trace_id, started = uuid.uuid4().hex, time.perf_counter()
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            self.access.require_user(request)
            chat = self._parsed(await read_json(request))
            session_id = session_of(request.headers, chat)
            rollout = self._rollout()
        except RequestError as error:
            return error.response({"x-serin-trace-id": trace_id})
        arrival = Arrival(chat, self.endpoint, session_id, trace_id, now, started)
        with ExitStack() as stack:
            stack.enter_context(rollout.lease())
            work = self._begin(arrival, rollout, _start if chat.stream else _finish)
            attempt = await unless_disconnected(request, work)
            if attempt is None:
                return Response(status_code=CLIENT_GONE)
            if not chat.stream:
                self._record(attempt, 200)
                return self._whole(attempt)
            return _Streamed(self, attempt, stack.pop_all())

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        self.access.require_user(request)
        model = {"id": self.endpoint, "object": "model", "created": 0, "owned_by": "serin"}
        return JSONResponse({"object": "list", "data": [model]})

    async def health(self, _: Request) -> Response:
        """GET /health: the process is alive."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """GET /ready: the champion's engine answers; it also stands in for a candidate that does not."""
        rollout = self.rollouts.current
        if rollout is None:
            return JSONResponse({"status": "not ready", "reason": "No release is loaded yet."}, 503)
        if not await rollout.champion.client.healthy():
            reason = "The engine of the champion does not answer."
            return JSONResponse({"status": "not ready", "reason": reason}, 503)
        return JSONResponse({"status": "ready"})

    async def expose(self, _: Request) -> Response:
        """GET /metrics."""
        rollout = self.rollouts.current
        engines = [(r.release.id, track, r.engine.alive) for r, track in rollout.loaded()] if rollout else []
        text = self.metrics.text(rollout.weight_percent if rollout else 0.0, engines)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def show_rollout(self, request: Request) -> Response:
        """GET /admin/rollouts."""
        self.access.require_admin(request)
        return JSONResponse({**self._rollout().state(), "follows_journal": self.follows_journal})

    async def change_rollout(self, request: Request) -> Response:
        """PUT /admin/rollouts: load, unload, move weights."""
        self.access.require_admin(request)
        try:
            rollout = await self.rollouts.change(RolloutRequest.load(await read_json(request)))
        except SerinError as error:
            raise RequestError(400, str(error), code=type(error).__name__) from error
        return JSONResponse(rollout.state())

    async def flush(self, request: Request) -> Response:
        """POST /admin/flush: write the buffered events now."""
        self.access.require_admin(request)
        try:
            return JSONResponse({"written": await asyncio.to_thread(self.recorder.flush)})
        except SerinError as error:
            raise RequestError(503, str(error), code=type(error).__name__) from error

    def _parsed(self, body: dict[str, object]) -> ChatRequest:
        chat = parse_chat(body, ("user", "assistant"))
        if chat.model not in (None, self.endpoint, ANY_MODEL):
            raise RequestError(
                404, f"'model' is {chat.model!r}: this endpoint is {self.endpoint!r}.", param="model",
                code="model_not_found",
            )  # fmt: skip
        return chat

    def _rollout(self) -> Rollout:
        if self.rollouts.current is None:
            raise RequestError(503, "No release is loaded yet: try again shortly.", retry_after_s=RETRY_AFTER_S)
        return self.rollouts.current

    async def _begin(self, arrival: Arrival, rollout: Rollout, work: Callable[[Attempt], Awaitable[None]]) -> Attempt:
        """Run the first part of an answer on the session's release, and on the champion if the candidate fails.

        Raises:
            RequestError: the input is blocked, or the champion fails.
        """
        for runtime, track in rollout.route(arrival.session_id):
            attempt = Attempt(runtime, track, arrival)
            try:
                await work(attempt)
                return attempt
            except BaseException as error:
                failure = _failure(error, headers_of(attempt))
                self._record(attempt, failure.status, failure.message)
                await attempt.close()
                if isinstance(error, BlockedInputError):
                    raise failure from error
                if not isinstance(error, Exception):
                    raise
                if track == "champion":
                    raise failure from error
                logger.warning("The candidate failed (%s); the champion answers.", failure.message)
                self.metrics.failover(runtime.release.id)
        raise AssertionError("a route ends with the champion")

    def _record(self, attempt: Attempt, status: int, error: str = "") -> None:
        observation = attempt.observation(status, error)
        self.metrics.observe(observation.event, attempt.rails_ms)
        self.recorder.add(observation)

    def _whole(self, attempt: Attempt) -> Response:
        message = {"content": attempt.text, "context": {"citations": attempt.citations}}
        usage = usage_of(attempt.prompt_tokens, attempt.completion_tokens)
        body = completion(_completion_id(attempt), self.endpoint, message, attempt.finish_reason, usage)
        return JSONResponse(body, headers=headers_of(attempt))


class _Streamed(StreamingResponse):
    """A streamed answer that is recorded and let go however it ends: complete, broken off, or unwanted."""

    def __init__(self, gateway: Gateway, attempt: Attempt, held: ExitStack) -> None:
        self._gateway, self._attempt, self._held = gateway, attempt, held
        self._outcome = (CLIENT_GONE, "The client went away.")
        super().__init__(self._events(), media_type="text/event-stream", headers=headers_of(attempt))
        self.headers["cache-control"] = "no-cache"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._gateway._record(self._attempt, *self._outcome)
            self._held.close()
            await self._attempt.close()

    async def _events(self) -> AsyncIterator[bytes]:
        attempt = self._attempt
        writer = ChunkWriter(_completion_id(attempt), self._gateway.endpoint)
        yield writer.delta({"role": "assistant", "content": "", "context": {"citations": attempt.citations}})
        try:
            async for text in attempt.pieces():
                yield writer.delta({"content": text})
        except Exception as error:
            failure = _failure(error, {})
            self._outcome = (failure.status, failure.message)
            yield event(failure.body())
            return
        self._outcome = (200, "")
        yield writer.delta({}, attempt.finish_reason)
        if attempt.arrival.chat.include_usage:
            yield writer.usage(usage_of(attempt.prompt_tokens, attempt.completion_tokens))
        yield DONE


def session_of(headers: Mapping[str, str], chat: ChatRequest) -> str:
    """The session that a request belongs to: its header, else its user (as a digest), else a new one.

    Raises:
        RequestError: 400, the header is not 1 to 128 visible ASCII characters.
    """
    if (given := headers.get("x-session-id")) is not None:
        if not re.fullmatch(r"[\x21-\x7e]{1,128}", given):
            raise RequestError(400, "'x-session-id' must be 1 to 128 visible ASCII characters.", param="x-session-id")
        return given
    if chat.user:  # often an e-mail address: it must not end up in events
        return f"user-{hashlib.sha256(chat.user.encode()).hexdigest()[:24]}"
    return uuid.uuid4().hex


def headers_of(attempt: Attempt) -> dict[str, str]:
    """The headers that every routed answer has."""
    return {
        "x-serin-trace-id": attempt.arrival.trace_id,
        "x-serin-release": attempt.runtime.release.id,
        "x-serin-track": attempt.track,
        "x-session-id": attempt.arrival.session_id,
    }


async def _start(attempt: Attempt) -> None:
    await attempt.start()


async def _finish(attempt: Attempt) -> None:
    await attempt.start()
    await attempt.whole()


def _failure(error: BaseException, headers: dict[str, str]) -> RequestError:
    """The answer that stands for an error."""
    if isinstance(error, BlockedInputError):
        return RequestError(400, str(error), code="content_filter", headers=headers)
    if isinstance(error, EngineError):
        retry = RETRY_AFTER_S if error.status in (429, 502, 503, 504) else None
        return RequestError(error.status, str(error), code=error.code, retry_after_s=retry, headers=headers)
    if isinstance(error, asyncio.CancelledError):
        return RequestError(CLIENT_GONE, "The client went away.", headers=headers)
    logger.error("A request failed.", exc_info=error)
    return RequestError(500, f"The request failed ({type(error).__name__}): see the gateway's log.", headers=headers)


async def _answer_error(_: Request, error: RequestError) -> Response:
    return error.response()


def _completion_id(attempt: Attempt) -> str:
    return f"chatcmpl-{attempt.arrival.trace_id}"
