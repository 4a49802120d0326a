"""One request on one release: input rails, retrieval, engine, output rails."""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serin.core.events import EndpointEvent
from serin.core.prompts import render, within_budget
from serin.core.records import Message
from serin.core.serving import search_query
from serin.serve.engine_client import EngineError, EnginePiece, EngineRequest
from serin.serve.guardrails import OutputGuard, Verdict
from serin.serve.protocol import ChatRequest
from serin.serve.recorder import Observation
from serin.serve.runtime import Runtime

if TYPE_CHECKING:
    from serin.core.retrieval import Hit


class BlockedInputError(Exception):
    """A rail refuses what the user wrote; the text says which."""


@dataclass(frozen=True)
class Arrival:
    """What is known of a request before it is routed."""

    chat: ChatRequest
    endpoint: str
    session_id: str
    trace_id: str
    time: str
    """UTC, ISO 8601."""
    started: float
    """``time.perf_counter`` when it came in."""


class Attempt:
    """Answers one request; ``start`` first, then ``pieces``, then ``observation``."""

    def __init__(self, runtime: Runtime, track: str, arrival: Arrival) -> None:
        self.runtime, self.track, self.arrival = runtime, track, arrival
        self.citations: list[dict[str, Any]] = []
        self.finish_reason = ""
        self.prompt_tokens = self.completion_tokens = 0
        self.rails_ms = 0.0
        self._actions: dict[str, None] = {}
        self._hits: list[Hit] = []
        self._passages: list[str] = []
        self._ttft_ms: float | None = None
        self._text: list[str] = []
        self._stream: AsyncGenerator[EnginePiece, None] | None = None
        self._first: EnginePiece | None = None
        self._guard: OutputGuard | None = None

    @property
    def text(self) -> str:
        """What was let out so far."""
        return "".join(self._text)

    async def start(self) -> None:
        """Check the input, retrieve, and wait for the engine's first piece.

        Raises:
            BlockedInputError: a rail refuses the user's text.
            EngineError: the engine fails before its first piece.
        """
        turns = self._checked_turns()
        await self._retrieve(turns)
        prompt = render(self.runtime.release.prompt, turns, self._passages)
        allowed = [*self._passages, *(turn.content for turn in turns if turn.role == "user")]
        self._guard = OutputGuard(self.runtime.guardrails, allowed)
        self._stream = self.runtime.stream(self._engine_request(prompt))
        self._first = await anext(self._stream, None)
        if self._first is None:
            raise EngineError(502, "The engine gave no answer.")
        self._ttft_ms = self._elapsed_ms()

    async def pieces(self) -> AsyncIterator[str]:
        """The answer, as far as the output rails let it out.

        Raises:
            EngineError: the engine breaks off.
        """
        assert self._guard is not None
        assert self._stream is not None
        piece = self._first
        while piece is not None:
            self.finish_reason = piece.finish_reason or self.finish_reason
            self.prompt_tokens = piece.prompt_tokens or self.prompt_tokens
            self.completion_tokens = piece.completion_tokens or self.completion_tokens
            if text := self._guard.push(piece.text):
                self._text.append(text)
                yield text
            if self._guard.blocked:
                break
            piece = await anext(self._stream, None)
        if text := self._guard.finish():
            self._text.append(text)
            yield text
        if self._guard.blocked:
            self.finish_reason = "content_filter"

    async def whole(self) -> None:
        """Take the whole answer at once; when any of it is blocked, nothing of it is given out."""
        async for _ in self.pieces():
            pass
        if self.finish_reason == "content_filter":
            self._text = []

    async def close(self) -> None:
        """Let the engine go; an answer that is not complete is cancelled there."""
        if self._stream is not None:
            await self._stream.aclose()

    def observation(self, status: int, error: str = "") -> Observation:
        """The request's event.

        Args:
            status: HTTP status that stands for how it went (499: the client went away).
            error: what went wrong.
        """
        if self._guard is not None:
            self._actions |= dict.fromkeys(self._guard.actions)
            self.rails_ms += self._guard.latency_ms
        chat = self.arrival.chat
        event = EndpointEvent(
            trace_id=self.arrival.trace_id,
            time=self.arrival.time,
            session_id=self.arrival.session_id,
            endpoint=self.arrival.endpoint,
            release_id=self.runtime.release.id,
            track=self.track,
            status=status,
            error=error,
            question=chat.messages[-1]["content"],
            answer=self.text,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            ttft_ms=self._ttft_ms,
            latency_ms=self._elapsed_ms(),
            finish_reason=self.finish_reason,
            streamed=chat.stream,
            guardrail_actions=tuple(self._actions),
            retrieval_ids=tuple(hit.chunk_id for hit in self._hits),
            retrieval_scores=tuple(hit.score for hit in self._hits),
        )
        return Observation(event, tuple(self._passages), self.runtime.guardrails)

    def _checked_turns(self) -> list[Message]:
        turns = []
        for message in self.arrival.chat.messages:
            content = message["content"]
            if message["role"] == "user":
                verdict = self._noted(self.runtime.guardrails.check("input", content))
                if verdict.blocked:
                    rails = ", ".join(action.split(":")[1] for action in verdict.actions if action.endswith(":block"))
                    raise BlockedInputError(f"The request was refused by the endpoint's guardrails ({rails}).")
                content = verdict.text
            turns.append(Message.model_validate({"role": message["role"], "content": content}))
        return turns

    async def _retrieve(self, turns: list[Message]) -> None:
        hits = await self.runtime.search(search_query(turns, self.runtime.serving.history_turns))
        for hit in hits:
            verdict = self._noted(self.runtime.guardrails.check("retrieval", hit.text))
            if not verdict.blocked:
                self._hits.append(hit)
                self._passages.append(verdict.text)
        used = len(within_budget(self._passages, self.runtime.release.prompt.max_context_chars))
        self._hits, self._passages = self._hits[:used], self._passages[:used]
        self.citations = [
            {"id": hit.chunk_id, "document_id": hit.document_id, "title": hit.title, "score": round(hit.score, 4)}
            for hit in self._hits
        ]

    def _engine_request(self, prompt: list[dict[str, str]]) -> EngineRequest:
        chat, serving = self.arrival.chat, self.runtime.serving
        return EngineRequest(
            messages=prompt,
            max_tokens=min(chat.max_tokens or serving.max_new_tokens, serving.max_new_tokens),
            temperature=serving.temperature if chat.temperature is None else chat.temperature,
            seed=chat.seed,
            stop=chat.stop,
        )

    def _noted(self, verdict: Verdict) -> Verdict:
        self._actions |= dict.fromkeys(verdict.actions)
        self.rails_ms += verdict.latency_ms
        return verdict

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self.arrival.started) * 1000
