"""POST /v1/chat/completions and /v1/completions: from the request's body to the answer, streamed or whole."""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serin.serve.api_chunks import ChatChunks, CompletionChunks, completion_logprobs
from serin.serve.api_edge import current_trace
from serin.serve.api_outcome import CLIENT_GONE, failure_of, headers_of
from serin.serve.attempt import Arrival, Attempt
from serin.serve.choices import Choice, Part
from serin.serve.errors import RequestError
from serin.serve.hosting import Departure
from serin.serve.protocol import (
    DONE,
    ChatRequest,
    event,
    json_response,
    parse_chat,
    parse_completion,
    read_json,
    usage_of,
)

if TYPE_CHECKING:
    from serin.serve.gateway import Gateway

STREAM = "text/event-stream; charset=utf-8"
MAX_AHEAD = 64
"""Parts that a prompt's answer may be ahead of the client, where several are streamed together."""


async def chat(gateway: "Gateway", request: Request) -> Response:
    """POST /v1/chat/completions."""
    key_id = gateway.access.require_user(request)
    asked = parse_chat(await read_json(request), ("user", "assistant"))
    return await _answer(gateway, request, key_id, [asked], "chatcmpl-")


async def complete(gateway: "Gateway", request: Request) -> Response:
    """POST /v1/completions: each prompt is answered as one user turn."""
    key_id = gateway.access.require_user(request)
    asked = parse_completion(await read_json(request))
    turns = [({"role": "user", "content": prompt},) for prompt in asked.prompts]
    return await _answer(gateway, request, key_id, [replace(asked.sampling, messages=turn) for turn in turns], "cmpl-")


def session_of(headers: Mapping[str, str], chat: ChatRequest, new: Callable[[], str]) -> str:
    """The session that a request belongs to: its header, else its user (as a digest), else what ``new`` gives.

    Raises:
        RequestError: 400, the header is not 1 to 128 visible ASCII characters.
    """
    if (given := headers.get("x-session-id")) is not None:
        if not re.fullmatch(r"[\x21-\x7e]{1,128}", given):
            raise RequestError(400, "'x-session-id' must be 1 to 128 visible ASCII characters.", param="x-session-id")
        return given
    if chat.user:  # often an e-mail address: it must not end up in events
        return f"user-{hashlib.sha256(chat.user.encode()).hexdigest()[:24]}"
    return new()


async def _answer(
    gateway: "Gateway", request: Request, key_id: str, asked: Sequence[ChatRequest], prefix: str
) -> Response:
    gateway.require_model(asked[0].model)
    rollout = gateway.rollout()
    session_id = session_of(request.headers, asked[0], rollout.new_session)
    arrivals = _arrivals(gateway, request, key_id, session_id, asked, prefix)
    streamed = asked[0].stream
    with ExitStack() as stack:
        stack.enter_context(rollout.lease())
        counted = stack.enter_context(gateway.admitted(key_id))
        departure = Departure(request.receive)
        stack.callback(departure.close)
        try:
            attempts = await gateway.begin(arrivals, rollout, _start if streamed else _finish)
        except asyncio.CancelledError:
            if departure.ended_task():
                return Response(status_code=CLIENT_GONE)
            raise
        counted += attempts
        if streamed:
            return _Streamed(gateway, attempts, departure, stack.pop_all())
        departure.close()
        for attempt in attempts:
            gateway.record(attempt, 200)
            await attempt.close()
        return _whole(gateway, attempts)


def _arrivals(
    gateway: "Gateway", request: Request, key_id: str, session_id: str, asked: Sequence[ChatRequest], prefix: str
) -> list[Arrival]:
    trace = current_trace(request)
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    labels = gateway.access.labels_of(request)
    return [
        Arrival(
            chat=chat,
            endpoint=gateway.endpoint,
            session_id=session_id,
            trace_id=trace.trace_id,
            time=now,
            started=trace.started,
            answer_id=prefix + trace.request_id,
            key_id=key_id,
            labels=labels,
            parent_span_id=trace.parent_span_id,
            first_index=number * chat.n,
        )
        for number, chat in enumerate(asked)
    ]


async def _start(attempt: Attempt) -> None:
    await attempt.start()


async def _finish(attempt: Attempt) -> None:
    await attempt.start()
    await attempt.whole()


def _whole(gateway: "Gateway", attempts: Sequence[Attempt]) -> Response:
    arrival = attempts[0].arrival
    is_chat = arrival.answer_id.startswith("chatcmpl-")
    write = _chat_choice if is_chat else _completion_choice
    body: dict[str, Any] = {
        "id": arrival.answer_id,
        "object": "chat.completion" if is_chat else "text_completion",
        "created": int(time.time()),
        "model": gateway.endpoint,
        "system_fingerprint": fingerprint_of(attempts[0]),
        "choices": [write(attempt, choice) for attempt in attempts for choice in attempt.choices],
        "usage": _usage(attempts),
    }
    if arrival.chat.metadata is not None:
        body["metadata"] = arrival.chat.metadata
    return json_response(body, headers=headers_of(attempts[0]))


def _chat_choice(attempt: Attempt, choice: Choice) -> dict[str, Any]:
    message = {
        "role": "assistant",
        "content": choice.text,
        "refusal": None,
        "context": attempt.context_of(choice),
    }
    wanted = attempt.arrival.chat.logprobs is not None
    return {
        "index": attempt.arrival.first_index + choice.index,
        "message": message,
        "logprobs": {"content": choice.logprobs, "refusal": None} if wanted else None,
        "finish_reason": choice.finish_reason,
    }


def _completion_choice(attempt: Attempt, choice: Choice) -> dict[str, Any]:
    wanted = attempt.arrival.chat.logprobs is not None
    return {
        "index": attempt.arrival.first_index + choice.index,
        "text": choice.text,
        "logprobs": completion_logprobs(choice.logprobs) if wanted else None,
        "finish_reason": choice.finish_reason,
        "context": attempt.context_of(choice),
    }


def fingerprint_of(attempt: Attempt) -> str:
    """Stands for everything that shapes an answer: the release."""
    return f"serin-{attempt.runtime.release.short_id}"


def _usage(attempts: Sequence[Attempt]) -> dict[str, int]:
    return usage_of(sum(a.prompt_tokens for a in attempts), sum(a.completion_tokens for a in attempts))


class _Streamed(Response):
    """A streamed answer that is recorded and let go however it ends: complete, broken off, or unwanted."""

    def __init__(self, gateway: "Gateway", attempts: Sequence[Attempt], departure: Departure, held: ExitStack) -> None:
        headers = {**headers_of(attempts[0]), "cache-control": "no-cache", "content-type": STREAM}
        self._head = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        self._gateway, self._attempts, self._departure, self._held = gateway, attempts, departure, held
        self._outcome = (CLIENT_GONE, "The client went away.")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._send(send)
        except asyncio.CancelledError:
            if not self._departure.ended_task():
                raise
        finally:
            self._departure.close()
            for attempt in self._attempts:
                self._gateway.record(attempt, *self._outcome)
            self._held.close()
            for attempt in self._attempts:
                await attempt.close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self._head})
        last = b""  # goes out with the end of the response: one write less
        async with aclosing(self._events()) as events:
            async for data, is_last in events:
                if is_last:
                    last = data
                else:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        self._departure.close()
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _events(self) -> AsyncGenerator[tuple[bytes, bool], None]:
        """The events, and whether they are the last ones; what is there at once comes as one."""
        arrival = self._attempts[0].arrival
        make = ChatChunks if arrival.answer_id.startswith("chatcmpl-") else CompletionChunks
        with_usage = arrival.chat.include_usage
        chunks = make(
            arrival.answer_id, int(time.time()), self._gateway.endpoint, fingerprint_of(self._attempts[0]),
            with_usage=with_usage,
        )  # fmt: skip
        opening = [
            chunks.opening(attempt.arrival.first_index + choice.index, {"citations": attempt.citations})
            for attempt in self._attempts
            for choice in attempt.choices
        ]
        yield b"".join(opening), False
        ends, left = b"", len(opening)
        try:
            async with aclosing(_parts(self._attempts)) as parts:
                async for attempt, part in parts:
                    index = attempt.arrival.first_index + part.choice
                    data = chunks.text(index, part.text, part.logprobs) if part.text or part.logprobs else b""
                    if part.finish_reason is not None:
                        left -= 1
                        data += chunks.ending(index, part.finish_reason, _late_context(attempt, part))
                    if left:
                        yield data, False
                    else:
                        ends = data
        except Exception as error:
            failure = failure_of(error, {})
            self._outcome = (failure.status, failure.message)
            yield ends + event(failure.body()), True
            return
        self._outcome = (200, "")
        yield ends + (chunks.usage(_usage(self._attempts)) if with_usage else b"") + DONE, True


def _late_context(attempt: Attempt, part: Part) -> dict[str, Any] | None:
    """What is known of an answer only at its end."""
    valid = attempt.format_valid(attempt.choices[part.choice])
    return None if valid is None else {"format_valid": valid}


async def _parts(attempts: Sequence[Attempt]) -> AsyncGenerator[tuple[Attempt, Part], None]:
    """The parts of all attempts as they come."""
    if len(attempts) == 1:
        async with aclosing(attempts[0].pieces()) as parts:
            async for part in parts:
                yield attempts[0], part
        return
    queue: asyncio.Queue[tuple[Attempt, Part | BaseException | None]] = asyncio.Queue(MAX_AHEAD)
    tasks = [asyncio.ensure_future(_feed(attempt, queue)) for attempt in attempts]
    left = len(tasks)
    try:
        while left:
            attempt, found = await queue.get()
            if found is None:
                left -= 1
            elif isinstance(found, BaseException):
                raise found
            else:
                yield attempt, found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(attempt: Attempt, queue: "asyncio.Queue[tuple[Attempt, Part | BaseException | None]]") -> None:
    try:
        async for part in attempt.pieces():
            await queue.put((attempt, part))
        await queue.put((attempt, None))
    except Exception as error:
        await queue.put((attempt, error))
