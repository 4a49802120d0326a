"""Releases as users get them: asked over HTTP through a gateway of the evaluation's own, rails and retrieval included.

One gateway holds two releases, and the weight (0 or 100) says which answers; a release that is not loaded takes the
place of the one beside the candidate.  Its endpoint events, which say what guardrails did, are read and removed.
"""

import asyncio
import json
import logging
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import aiohttp

from serin.core.artifacts import home
from serin.core.context import StageContext
from serin.core.events import EndpointEvent, read_events
from serin.core.gateway_client import GatewayProcess
from serin.core.release import Release
from serin.evaluate.items import Item
from serin.evaluate.replies import Reply

logger = logging.getLogger(__name__)

BLOCKED = "content_filter"
DONE = "[DONE]"


@dataclass
class _Heard:
    """A streamed answer while it comes."""

    started: float
    parts: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each piece of text came, seconds."""
    finish_reason: str = ""
    error: str = ""
    usage: dict[str, int] = field(default_factory=dict)


class LiveEndpoint:
    """Asks releases; the gateway starts with the first question.  Use it in a ``with`` statement.

    Args:
        context: the stage's: where the releases are.
        candidate: stays loaded, whatever is asked beside it.
        timeout_s: longest wait for one answer.
    """

    def __init__(self, context: StageContext, candidate: Release, timeout_s: float) -> None:
        self._context, self._candidate, self._timeout_s = context, candidate, timeout_s
        self._name = f"{context.endpoint}-evaluation-{uuid.uuid4().hex[:8]}"
        self._gateway: GatewayProcess | None = None
        self._beside = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._gateway is None:
            return
        self._gateway.close()
        self._context.store.storage.delete(f"endpoints/{self._name}")
        if error is None:  # else its log says why
            shutil.rmtree(home() / "serve" / self._name, ignore_errors=True)

    def ask(self, release: Release, items: Sequence[Item], concurrency: int) -> list[Reply]:
        """A release's replies, one for each item; one without an answer says why.

        Raises:
            ServingError: the gateway or the release's engine does not start.
        """
        gateway = self._use(release)
        replies, traces = asyncio.run(self._ask(gateway, release, items, concurrency))
        gateway.flush()
        events = {event.trace_id: event for event in read_events(self._context.store.storage, self._name)}
        return [
            _with_event(reply, events.get(trace)) if not reply.error else reply
            for reply, trace in zip(replies, traces, strict=True)
        ]

    def time(self, releases: Sequence[Release], items: Sequence[Item], warm_up: int) -> list[list[Reply]]:
        """Streamed replies with their timings, one request at a time, the releases in turns, by release and item.

        The first of one question is the second of the next, so that none gains by its place.
        """
        for release in releases:
            asyncio.run(self._stream_all(self._use(release), release, items[:warm_up]))
        heard: list[list[Reply]] = [[] for _ in releases]
        for number, item in enumerate(items):
            turn = list(enumerate(releases))
            for which, release in turn if number % 2 == 0 else turn[::-1]:
                heard[which] += asyncio.run(self._stream_all(self._use(release), release, [item]))
        return heard

    def _use(self, release: Release) -> GatewayProcess:
        """Let a release answer everything."""
        is_candidate = release.id == self._candidate.id
        if self._gateway is None:
            self._beside = release.id
            beside = None if is_candidate else self._candidate.id
            weight = 0.0
            gateway = GatewayProcess(self._context.store.uri, self._name, release.id, beside)
            gateway.start()
            self._gateway = gateway
            return gateway
        if not is_candidate:
            self._beside = release.id
        weight = 100.0 if is_candidate and self._beside != release.id else 0.0
        candidate = None if self._beside == self._candidate.id else self._candidate.id
        self._gateway.set_rollout(champion=self._beside, candidate=candidate, candidate_weight_percent=weight)
        return self._gateway

    async def _ask(
        self, gateway: GatewayProcess, release: Release, items: Sequence[Item], concurrency: int
    ) -> tuple[list[Reply], list[str]]:
        limit = asyncio.Semaphore(concurrency)
        async with self._session(gateway) as session:

            async def one(item: Item) -> tuple[Reply, str]:
                async with limit:
                    return await _whole(session, release, item)

            found = await asyncio.gather(*map(one, items))
        return [reply for reply, _ in found], [trace for _, trace in found]

    async def _stream_all(self, gateway: GatewayProcess, release: Release, items: Sequence[Item]) -> list[Reply]:
        async with self._session(gateway) as session:
            return [await _streamed(session, release, item) for item in items]

    def _session(self, gateway: GatewayProcess) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            gateway.url,
            headers={"authorization": f"Bearer {gateway.admin_token}"},
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
        )


def _with_event(reply: Reply, event: EndpointEvent | None) -> Reply:
    """A reply with what only the endpoint's record of it says."""
    if event is None:
        return replace(reply, error="the endpoint has no record of it")
    support = event.support_score if event.retrieval_ids else None
    return replace(reply, actions=event.guardrail_actions, support=support)


async def _whole(session: aiohttp.ClientSession, release: Release, item: Item) -> tuple[Reply, str]:
    """One answer, and its trace id."""
    try:
        async with session.post("/v1/chat/completions", json=_body(item), headers=_headers()) as response:
            data, trace = await response.read(), response.headers.get("x-serin-trace-id", "")
            status, answered = response.status, response.headers.get("x-serin-release", "")
    except (aiohttp.ClientError, TimeoutError) as error:
        return Reply(status=0, error=f"no answer ({type(error).__name__})"), ""
    try:
        body: dict[str, Any] = json.loads(data)
        if status != 200:
            return _refusal(status, body.get("error") or {}), trace
        choice = body["choices"][0]
        if answered != release.id:
            return Reply(status=status, error="another release answered: the release's engine failed"), trace
        cited = (choice["message"].get("context") or {}).get("citations") or ()
        titles = tuple(str(one["title"]) for one in cited)
        return Reply(str(choice["message"]["content"] or ""), choice["finish_reason"], status, passages=titles), trace
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        return Reply(status=status, error=f"no chat completion ({type(error).__name__})"), trace


async def _streamed(session: aiohttp.ClientSession, release: Release, item: Item) -> Reply:
    body = {**_body(item), "stream": True, "stream_options": {"include_usage": True}}
    heard = _Heard(time.perf_counter())
    try:
        async with session.post("/v1/chat/completions", json=body, headers=_headers()) as response:
            if response.status != 200:
                return _refusal(response.status, (json.loads(await response.read()) or {}).get("error") or {})
            if response.headers.get("x-serin-release", "") != release.id:
                return Reply(status=200, error="another release answered: the release's engine failed")
            async for line in response.content:
                _hear(heard, line)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return Reply(status=0, error=f"no answer ({type(error).__name__})")
    if heard.error:
        return Reply(status=200, error=heard.error)
    return Reply("".join(heard.parts), heard.finish_reason, 200, timings=_timings(heard, time.perf_counter()))


def _hear(heard: _Heard, line: bytes) -> None:
    text = line.decode("utf-8", "replace").removeprefix("data:").strip()
    if not text or text == DONE:
        return
    chunk = json.loads(text)
    if chunk.get("error"):
        heard.error = str(chunk["error"].get("message", "the stream broke off"))
    heard.usage = chunk.get("usage") or heard.usage
    for choice in chunk.get("choices") or ():
        if piece := choice.get("delta", {}).get("content"):
            heard.parts.append(piece)
            heard.times.append(time.perf_counter())
        heard.finish_reason = choice.get("finish_reason") or heard.finish_reason


def _timings(heard: _Heard, ended: float) -> dict[str, float]:
    """Seconds, and tokens as counted by the engine."""
    timings = {"latency_s": ended - heard.started, **{name: float(heard.usage.get(name, 0)) for name in TOKENS}}
    if heard.times:
        timings["ttft_s"] = heard.times[0] - heard.started
        if (tokens := heard.usage.get("completion_tokens", 0)) > 1:
            timings["inter_token_s"] = (heard.times[-1] - heard.times[0]) / (tokens - 1)
    return timings


TOKENS = ("prompt_tokens", "completion_tokens")


def _refusal(status: int, error: dict[str, Any]) -> Reply:
    if status == 400 and error.get("code") == BLOCKED:
        return Reply(finish_reason=BLOCKED, status=status)
    return Reply(status=status, error=f"HTTP status {status}: {str(error.get('message', ''))[:200]}")


def _body(item: Item) -> dict[str, Any]:
    return {"model": "default", "messages": [{"role": turn.role, "content": turn.content} for turn in item.messages]}


def _headers() -> dict[str, str]:
    return {"x-session-id": uuid.uuid4().hex}
