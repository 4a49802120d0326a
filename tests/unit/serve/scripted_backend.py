"""A backend that says what it is told to, over real HTTP: an OpenAI-compatible server without a model.

The last message decides: ``SAY <text>`` is answered with the text, anything else with a greeting.  Texts in ``queue``
go first.  A word with the space before it is a token.
"""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

GREETING = "Hello and welcome to the corner shop."


class ScriptedBackend:
    """Use it in a ``with`` statement."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.queue: list[str] = []
        self.delay_s = 0.0
        self.cancelled = 0
        self.refusal: Response | None = None
        self.healthy = True
        routes = [Route("/v1/chat/completions", self._chat, methods=["POST"]), Route("/health", self._health)]
        config = uvicorn.Config(
            Starlette(routes=routes), host="127.0.0.1", port=0, log_config=None, access_log=False, lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> "ScriptedBackend":
        self._thread.start()
        while not self._server.started:
            threading.Event().wait(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)

    def reset(self) -> None:
        """Forget what was asked, and what was to be said."""
        self.bodies.clear()
        self.queue.clear()
        self.delay_s, self.cancelled, self.refusal, self.healthy = 0.0, 0, None, True

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"}, 200 if self.healthy else 503)

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if self.refusal is not None:
            return self.refusal
        if not body.get("stream"):
            message = {"role": "assistant", "content": self.queue.pop(0)}
            return JSONResponse({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        return StreamingResponse(self._answer(body), media_type="text/event-stream")

    async def _answer(self, body: dict[str, Any]) -> AsyncIterator[str]:
        said = body["messages"][-1]["content"]
        text = self.queue.pop(0) if self.queue else said.partition("SAY ")[2] or GREETING
        texts = [text if index == 0 else f"{text} ({index})" for index in range(body.get("n", 1))]
        tokens = [re.findall(r"\s*\S+", text) for text in texts]
        limit = body["max_tokens"]
        count = 0
        try:
            for step in range(max(map(len, tokens))):
                for index, words in enumerate(tokens):
                    if step < min(len(words), limit):
                        count += 1
                        await asyncio.sleep(self.delay_s)
                        yield _event(_piece(body, index, words[step]))
            for index, words in enumerate(tokens):
                reason = "length" if len(words) > limit else "stop"
                yield _event([{"index": index, "delta": {}, "finish_reason": reason}])
            usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
            yield "data: " + json.dumps({"choices": [], "usage": usage}) + "\n\ndata: [DONE]\n\n"
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def _piece(body: dict[str, Any], index: int, token: str) -> list[dict[str, Any]]:
    choice: dict[str, Any] = {"index": index, "delta": {"content": token}, "finish_reason": None}
    if body.get("logprobs"):
        entry = {"token": token, "logprob": -0.5, "bytes": list(token.encode())}
        others = [{**entry, "logprob": -0.5 - rank} for rank in range(body["top_logprobs"])]
        choice["logprobs"] = {"content": [{**entry, "top_logprobs": others}]}
    return [choice]


def _event(choices: list[dict[str, Any]]) -> str:
    return "data: " + json.dumps({"object": "chat.completion.chunk", "choices": choices}) + "\n\n"
