"""One request on one release: input rails, retrieval, engine, output rails."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from serin.core.events import SHADOW, EndpointEvent
from serin.core.prompts import render
from serin.core.records import Message
from serin.core.serving import search_query, today
from serin.serve.choices import Choice, Part, choices_of
from serin.serve.engine_client import EngineError, EnginePiece, EngineRequest
from serin.serve.guard_judge import judge_once
from serin.serve.guardrails import Guardrails, Stage, Verdict
from serin.serve.protocol import ChatRequest
from serin.serve.recorder import Observation, StageTiming
from serin.serve.runtime import Runtime
from serin.serve.structured import keeps_to

if TYPE_CHECKING:
    from serin.core.retrieval import Hit

OFF_LOOP_CHARS = 1000
"""Longer texts, and all of a shadow's, are checked in a thread: other answers go on streaming meanwhile."""
REMOVED = "(removed)"
"""What the model sees in place of an earlier turn that was answered by a safe answer."""


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
    answer_id: str = ""
    """The id that the answer has."""
    key_id: str = ""
    """Of the API key that asks; empty: none is asked for."""
    labels: frozenset[str] = frozenset()
    """The caller's access labels."""
    parent_span_id: str = ""
    """The caller's span; empty: the trace begins here."""
    first_index: int = 0
    """Number of the request's first choice in the answer."""
    shadow_of: str = ""
    """Of a shadow: the champion's answer that it stands beside."""


class Attempt:
    """Answers one request; ``start`` first, then ``pieces`` or ``whole``, then ``observation``."""

    def __init__(self, runtime: Runtime, track: str, arrival: Arrival) -> None:
        self.runtime, self.track, self.arrival = runtime, track, arrival
        self.citations: list[dict[str, Any]] = []
        self.choices: list[Choice] = []
        self.prompt_tokens = self.completion_tokens = 0
        self.rails_ms = 0.0
        self.ttft_ms: float | None = None
        self.blocked_input = False
        """Whether the user's text was refused."""
        self.also_kept_by: Guardrails | None = None
        """Whose policy limits what is kept of the texts, besides the release's own."""
        self._actions: dict[str, None] = {}
        self._rails: dict[str, float] = {}
        self._whole_ms = 0.0
        self._support_score: float | None = None
        self._hits: list[Hit] = []
        self._passages: list[str] = []
        self._said: list[str] = []
        self._stages: list[StageTiming] = []
        self._engine_began_ns = 0
        self._pieces = self._spent_prompt = self._spent_completion = 0
        self._safe_answer: str | None = None
        self._request: EngineRequest | None = None
        self._stream: AsyncGenerator[EnginePiece, None] | None = None
        self._first: EnginePiece | None = None

    async def start(self) -> None:
        """Check the input, retrieve, and wait for the engine's first piece.

        Raises:
            BlockedInputError: a rail refuses the user's text.
            EngineError: the engine fails before its first piece.
        """
        turns = await self._checked_turns()
        if self._safe_answer is None:
            await self._retrieve(turns)
        self._said = [turn.content for turn in turns if turn.role == "user"]
        if self._safe_answer is not None:
            self._open()
            self.ttft_ms = self._elapsed_ms()
            return
        self._request = self._engine_request(render(self.runtime.release.prompt, turns, self._passages))
        await self._ask()
        self.ttft_ms = self._elapsed_ms()

    async def pieces(self) -> AsyncGenerator[Part, None]:
        """The answer, as far as the output rails let it out.

        Raises:
            EngineError: the engine breaks off.
        """
        if self._safe_answer is not None:
            for choice in self.choices:
                choice.text = self._safe_answer
                choice.ended, choice.finish_reason = True, "stop"
                yield Part(choice.index, self._safe_answer, (), "stop")
            return
        assert self._stream is not None
        piece, self._first = self._first, None
        choices, stream = self.choices, self._stream
        while piece is not None:
            if not 0 <= piece.index < len(choices):
                raise EngineError(502, f"The engine sent a choice {piece.index} of {len(choices)}.")
            choice = choices[piece.index]
            choice.begun = True
            self._count(piece)
            if not choice.ended:
                part = choice.take(piece.text, piece.logprobs)
                if part is not None:
                    yield part
                if piece.finish_reason or choice.stopped:
                    yield await self._ended(choice, piece.finish_reason or "")
                    if all(other.stopped for other in choices):
                        break
            piece = await anext(stream, None)
        for choice in choices:
            if not choice.begun:
                raise EngineError(502, f"The engine gave no choice {choice.index} of {len(choices)}.")
            if not choice.ended:
                yield await self._ended(choice)
        self._engine_done()

    async def whole(self) -> None:
        """Take the whole answer at once; when any of a choice is blocked, nothing of it is given out.

        An answer that does not keep to the form that was asked for is asked for once more.

        Raises:
            EngineError: the engine breaks off.
        """
        await self._collect()
        if self._request is not None and any(self.format_valid(choice) is False for choice in self._complete()):
            first = self.choices
            try:
                await self._ask_again()
                await self._collect()
            except EngineError:
                self.choices = first

    async def run(self) -> None:
        """Answer as a request of this kind does, streamed or whole, where nobody reads along.

        Raises:
            EngineError: the engine breaks off.
        """
        if not self.arrival.chat.stream:
            await self.whole()
            return
        async for _ in self.pieces():
            pass

    async def close(self) -> None:
        """Let the engine go; an answer that is not complete is cancelled there."""
        if self._stream is not None:
            await self._stream.aclose()

    def format_valid(self, choice: Choice) -> bool | None:
        """Whether a choice keeps to the form that was asked for; None where none was.

        An answer that was cut off is never said to be valid.
        """
        asked = self.arrival.chat.response_format
        if asked is None:
            return None
        return choice.finish_reason == "stop" and keeps_to(asked, choice.text)

    def context_of(self, choice: Choice) -> dict[str, Any]:
        """What goes along with a choice: its citations, and whether it has the form that was asked for."""
        valid = self.format_valid(choice)
        return {"citations": self.citations, **({} if valid is None else {"format_valid": valid})}

    def observation(self, status: int, error: str = "") -> Observation:
        """The request's event.

        Args:
            status: HTTP status that stands for how it went (499: the client went away).
            error: what went wrong.
        """
        self._engine_done()
        first = self.choices[0] if self.choices else None
        valid = [self.format_valid(choice) for choice in self.choices] if status == 200 else []
        event = EndpointEvent(
            trace_id=self.arrival.trace_id,
            time=self.arrival.time,
            session_id=self.arrival.session_id,
            endpoint=self.arrival.endpoint,
            release_id=self.runtime.release.id,
            track=self.track,
            status=status,
            error=error,
            question=self.arrival.chat.messages[-1]["content"],
            answer=first.text if first else "",
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            ttft_ms=self.ttft_ms,
            latency_ms=self._elapsed_ms(),
            finish_reason=_finish_reason(self.choices),
            streamed=self.arrival.chat.stream,
            guardrail_actions=tuple(self._actions),
            retrieval_ids=tuple(hit.chunk_id for hit in self._hits),
            retrieval_scores=tuple(hit.score for hit in self._hits),
            support_score=self._support_score if len(self.choices) == 1 else None,
            answer_id=self.arrival.answer_id,
            key_id=self.arrival.key_id,
            format_valid=None if not valid or valid[0] is None else all(valid),
            rails_ms=self.rails_ms,
            backend=str(self.runtime.backend.state().get("kind", "")),
            shadow_of=self.arrival.shadow_of,
        )
        return Observation(
            event=event,
            passages=tuple(self._passages),
            guardrails=self.runtime.guardrails,
            stages=tuple(self._stages),
            parent_span_id=self.arrival.parent_span_id,
            also_kept_by=self.also_kept_by,
        )

    async def _checked_turns(self) -> list[Message]:
        messages = self.arrival.chat.messages
        asked = [message["content"] for message in messages if message["role"] == "user"]
        with self._timed("rails.input"):
            verdicts = iter(await self._checked("input", asked))
        turns = []
        for number, message in enumerate(messages, start=1):
            content = message["content"]
            if message["role"] == "user":
                verdict = next(verdicts)
                if verdict.blocked:
                    self.blocked_input = True
                    rails = ", ".join(action.split(":")[1] for action in verdict.actions if action.endswith(":block"))
                    raise BlockedInputError(f"The request was refused by the endpoint's guardrails ({rails}).")
                content = verdict.text
                if verdict.rewritten:
                    self._safe_answer = verdict.text if number == len(messages) else self._safe_answer
                    content = REMOVED
            turns.append(Message.model_validate({"role": message["role"], "content": content}))
        return turns

    async def _retrieve(self, turns: list[Message]) -> None:
        with self._timed("retrieval"):
            query = search_query(turns, self.runtime.serving.history_turns)
            hits = await self.runtime.search(query, at=today(), labels=self.arrival.labels)
        with self._timed("rails.retrieval"):
            for hit, verdict in zip(hits, await self._checked("retrieval", [hit.text for hit in hits]), strict=True):
                if not verdict.blocked:
                    self._hits.append(hit)
                    self._passages.append(verdict.text)
        self._passages = self.runtime.fitting(self._passages)
        self._hits = self._hits[: len(self._passages)]
        self.citations = [
            {"id": hit.chunk_id, "document_id": hit.document_id, "title": hit.title, "score": round(hit.score, 4)}
            for hit in self._hits
        ]

    async def _checked(self, stage: Stage, texts: Sequence[str]) -> list[Verdict]:
        """The verdicts on texts, in order; noted."""
        check = self.runtime.guardrails.check
        if self.track == SHADOW or sum(map(len, texts)) > OFF_LOOP_CHARS:
            verdicts = await asyncio.to_thread(lambda: [check(stage, text) for text in texts])
        else:
            verdicts = [check(stage, text) for text in texts]
        return [self._noted(verdict) for verdict in verdicts]

    def _engine_request(self, prompt: list[dict[str, str]]) -> EngineRequest:
        chat, serving = self.arrival.chat, self.runtime.serving
        return EngineRequest(
            messages=prompt,
            max_tokens=min(chat.max_tokens or serving.max_new_tokens, serving.max_new_tokens),
            temperature=serving.temperature if chat.temperature is None else chat.temperature,
            seed=chat.seed,
            stop=chat.stop,
            top_p=1.0 if chat.top_p is None else chat.top_p,
            n=chat.n,
            logprobs=chat.logprobs,
            response_format=chat.response_format,
            once=self.track == SHADOW,
        )

    async def _ask(self) -> None:
        assert self._request is not None
        self._open()
        self._engine_began_ns = time.time_ns()
        self._stream = self.runtime.stream(self._request)
        self._first = await anext(self._stream, None)
        if self._first is None:
            raise EngineError(502, "The engine gave no answer.")

    async def _ask_again(self) -> None:
        """The same once more, counted on top: the tokens of both were used."""
        assert self._request is not None
        await self.close()
        self._spent_prompt, self._spent_completion = self.prompt_tokens, self.completion_tokens
        if self._request.seed is not None:
            self._request = replace(self._request, seed=self._request.seed + 1)
        await self._ask()

    def _open(self) -> None:
        chat = self.arrival.chat
        self._pieces = 0
        self.choices = choices_of(
            chat.n, self.runtime.guardrails, [*self._passages, *self._said], with_logprobs=chat.logprobs is not None
        )

    async def _collect(self) -> None:
        async for _ in self.pieces():
            pass
        for choice in self.choices:
            if choice.guard.blocked and choice.guard.rewritten:  # too late for a stream, which this is not
                choice.replace(self.runtime.guardrails.policy.safe_answer)
                choice.finish_reason = "stop"
            elif choice.finish_reason == "content_filter":
                choice.withhold()

    async def _ended(self, choice: Choice, finish_reason: str = "") -> Part:
        """The last part of a choice, after the rails that judge whole answers.

        What a stream has given out cannot be taken back: there a rewrite only leaves its mark, and a block ends the
        answer as withheld.
        """
        part = choice.end(finish_reason)
        if choice.stopped:
            return part
        is_out = self.arrival.chat.stream and not self.runtime.guardrails.policy.hold_whole_answer
        for verdict in [await self._finished(choice), await self._judged(choice)]:
            if verdict is None:
                continue
            self._noted(verdict, is_out=is_out)
            self._whole_ms += verdict.latency_ms
            if verdict.blocked:
                choice.finish_reason = "content_filter"
                return part._replace(text="" if not is_out else part.text, finish_reason="content_filter")
            if not is_out and verdict.text != choice.text:
                choice.replace(verdict.text)
                part = part._replace(text=verdict.text, logprobs=choice.logprobs)
        return part

    async def _finished(self, choice: Choice) -> Verdict | None:
        """What the release's rails say of a whole answer; None where they did so before it was let out."""
        guardrails = self.runtime.guardrails
        if guardrails.policy.hold_whole_answer:
            return None
        passages, said = self._passages, self._said
        if len(choice.text) > OFF_LOOP_CHARS:
            return await asyncio.to_thread(guardrails.finish_answer, choice.text, passages, said)
        return guardrails.finish_answer(choice.text, passages, said)

    async def _judged(self, choice: Choice) -> Verdict | None:
        """What the judge model says of an answer; None without a judge."""
        policy = self.runtime.guardrails.policy
        if not policy.judge.url:
            return None
        return await judge_once(policy, self._said[-1], choice.text, self._passages)

    def _complete(self) -> Iterator[Choice]:
        """The choices that are as the engine meant them."""
        return (c for c in self.choices if c.finish_reason == "stop" and not (c.stopped or c.replaced))

    def _count(self, piece: EnginePiece) -> None:
        """Token counts come last; of an answer that is broken off before, the pieces stand for them."""
        if piece.prompt_tokens or piece.completion_tokens:
            self.prompt_tokens = self._spent_prompt + piece.prompt_tokens
            self.completion_tokens = self._spent_completion + piece.completion_tokens
            self._pieces = -1
        elif piece.text and self._pieces >= 0:
            self._pieces += 1
            self.completion_tokens = self._spent_completion + self._pieces

    def _engine_done(self) -> None:
        """Close the books on the engine and on the output rails; a second call changes nothing."""
        if not self._engine_began_ns:
            return
        began, self._engine_began_ns, now = self._engine_began_ns, 0, time.time_ns()
        self._stages.append(StageTiming("engine", began, now))
        rails_ms, self._whole_ms = self._whole_ms, 0.0
        self.rails_ms -= rails_ms  # is added again below
        for choice in self.choices:
            self._actions |= dict.fromkeys(choice.guard.actions)
            rails_ms += choice.guard.latency_ms
        self.rails_ms += rails_ms
        self._stages.append(StageTiming("rails.output", now - int(rails_ms * 1e6), now, self._rail_times()))

    def _timed(self, name: str) -> "_Stage":
        return _Stage(self, name)

    def timed(self, name: str, began: int) -> None:
        """A stage that began then is over."""
        self._stages.append(StageTiming(name, began, time.time_ns(), self._rail_times()))

    def _rail_times(self) -> dict[str, str | int | float | bool | tuple[str, ...]]:
        """What each rail took since the last call, as attributes of a stage."""
        if not self._rails:
            return {}
        times, self._rails = self._rails, {}
        return {f"rail.{rail}_ms": round(taken_ms, 3) for rail, taken_ms in times.items()}

    def _noted(self, verdict: Verdict, *, is_out: bool = False) -> Verdict:
        """Take down what rails did; with ``is_out``, a rewrite came too late and is no more than a flag."""
        actions = verdict.actions
        if is_out:
            actions = tuple(
                action.removesuffix(":rewrite") + ":flag" * action.endswith(":rewrite") for action in actions
            )
        self._actions |= dict.fromkeys(actions)
        self.rails_ms += verdict.latency_ms
        for rail, taken_ms in verdict.rails.items():
            self._rails[rail] = self._rails.get(rail, 0.0) + taken_ms
        self._support_score = verdict.scores.get("support_score", self._support_score)
        return verdict

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self.arrival.started) * 1000


class _Stage:
    """Notes what a stage took, however it ends; a generator as context manager would cost more than some stages."""

    def __init__(self, attempt: Attempt, name: str) -> None:
        self._attempt, self._name = attempt, name

    def __enter__(self) -> None:
        self._began = time.time_ns()

    def __exit__(self, *_: object) -> None:
        self._attempt.timed(self._name, self._began)


def _finish_reason(choices: Sequence[Choice]) -> str:
    """The first choice's, unless any was withheld."""
    reasons = [choice.finish_reason for choice in choices]
    return "content_filter" if "content_filter" in reasons else (reasons[0] if reasons else "")
