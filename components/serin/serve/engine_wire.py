"""What the engine writes: chat answers as JSON or as server-sent events, several choices and log-probabilities."""

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serin.core.generation import Delta
from serin.serve.decoding import Job
from serin.serve.errors import RequestError
from serin.serve.protocol import DONE, event, usage_of

logger = logging.getLogger(__name__)

HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


class EventStream(Response):
    """The answers of one request as server-sent events; the client's leaving ends the decoding.

    Args:
        job: the request's.
        completion_id: of the answer.
        model: what answers.
        include_usage: whether the token counts follow.
    """

    def __init__(self, job: Job, completion_id: str, model: str, include_usage: bool) -> None:
        self._job, self._include_usage = job, include_usage
        self._with_logprobs = job.rows[0].logprobs is not None
        self._head = {
            "id": completion_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        head = json.dumps(self._head, ensure_ascii=False, separators=(",", ":"))[:-1]
        numbers = range(len(job.rows))
        self._begin = [f'data: {head},"choices":[{{"index":{n},"delta":{{"content":'.encode() for n in numbers]
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come."""
        gone = asyncio.create_task(self._watch(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await self._send_pieces(send)
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._job.cancel()
            gone.cancel()

    async def _send_pieces(self, send: Send) -> None:
        body = b"".join(self._chunk(number, {"role": "assistant", "content": ""}) for number in range(len(self._begin)))
        ends: dict[int, Delta] = {}
        while True:
            try:
                pieces = await self._job.take()
            except Exception as error:
                logger.error("A request failed while its answer was being decoded: %s", error)
                body += event(RequestError(500, "Decoding failed: see the engine's log.").body())
                await send({"type": "http.response.body", "body": body, "more_body": True})
                return
            for number, piece in pieces:
                if piece.text or piece.logprobs:
                    body += self._text(number, piece)
                if piece.finish_reason:
                    ends[number] = piece
                    body += self._chunk(number, {}, piece.finish_reason)
            if not pieces or len(ends) == len(self._begin):
                break
            await send({"type": "http.response.body", "body": body, "more_body": True})
            body = b""
        if self._include_usage:
            body += event({**self._head, "choices": [], "usage": usage(list(ends.values()))})
        await send({"type": "http.response.body", "body": body + DONE, "more_body": True})

    def _text(self, number: int, piece: Delta) -> bytes:
        text = json.dumps(piece.text, ensure_ascii=False).encode()
        if not self._with_logprobs:
            return self._begin[number] + text + b'},"logprobs":null,"finish_reason":null}]}\n\n'
        scores = json.dumps({"content": piece.logprobs}, ensure_ascii=False, separators=(",", ":")).encode()
        return self._begin[number] + text + b'},"logprobs":' + scores + b',"finish_reason":null}]}\n\n'

    def _chunk(self, number: int, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event({**self._head, "choices": [choice]})

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._job.cancel()


async def whole(job: Job, completion_id: str, model: str) -> dict[str, Any]:
    """The answers of one request as one object.

    Raises:
        Exception: decoding failed.
    """
    texts = [""] * len(job.rows)
    logprobs: list[list[dict[str, Any]]] = [[] for _ in job.rows]
    ends: dict[int, Delta] = {}
    try:
        while pieces := await job.take():
            for number, piece in pieces:
                texts[number] += piece.text
                logprobs[number] += piece.logprobs
                if piece.finish_reason:
                    ends[number] = piece
    finally:
        job.cancel()
    if len(ends) < len(texts):
        raise ConnectionError("The request was cancelled before its answer was whole.")
    choices = [
        {
            "index": number,
            "message": {"role": "assistant", "content": text},
            "logprobs": None if job.rows[number].logprobs is None else {"content": logprobs[number]},
            "finish_reason": ends[number].finish_reason,
        }
        for number, text in enumerate(texts)
    ]
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": usage(list(ends.values())),
    }


def usage(ends: Sequence[Delta]) -> dict[str, int]:
    """Token counts of answers to one prompt, from the last piece of each."""
    return usage_of(ends[0].prompt_tokens if ends else 0, sum(end.completion_tokens for end in ends))
