"""An OpenAI-compatible server for tests: real HTTP, and every way of failing that a real one has."""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Self

from aiohttp import web

Behaviour = Callable[["FakeOpenAI", web.Request], Awaitable[web.StreamResponse]]
WORDS = ("The", " kettle", " costs", " 39", " EUR", ".")


class FakeOpenAI:
    """Answers ``WORDS``; ``behave`` queues what it does with the next requests.

    It remembers what it was asked (``bodies``, ``keys``), how many connections there were, and which answers were
    broken off by the client (``cancelled``).
    """

    def __init__(self, models: tuple[str, ...] = ("m",), key: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.models, self.key, self._tls = models, key, tls
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.peers: set[Any] = set()
        self.cancelled = 0
        self.healthy = True
        self.port = 0
        self._queue: list[Behaviour] = []
        self.always: Behaviour = answers
        self._runner: web.AppRunner | None = None

    def behave(self, *behaviours: Behaviour) -> Self:
        """What it does with the next requests, in order."""
        self._queue += behaviours
        return self

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; on the same port again after ``stop``."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """End, with all connections."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.peers.add(request.transport.get_extra_info("peername"))
        self.keys.append(request.headers.get("authorization"))
        self.bodies.append(await request.json())
        if self.key and self.keys[-1] != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}, status=401)
        try:
            return await (self._queue.pop(0) if self._queue else self.always)(self, request)
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled += 1
            raise

    async def _models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "Incorrect API key"}}, status=401)
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)


def chunk(text: str | None = None, reason: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    """One chunk of a streamed answer."""
    delta = {} if text is None else {"content": text}
    return {"id": "x", "choices": [{"index": index, "delta": delta, "finish_reason": reason, **fields}]}


def usage(prompt: int = 7, completion: int = 6) -> dict[str, Any]:
    """The last chunk."""
    return {"id": "x", "choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


def sse(*events: Any, end: str = "\n") -> bytes:
    """Server-sent events; strings go out as they are."""
    lines = [f"data: {one if isinstance(one, str) else json.dumps(one)}{end}{end}" for one in events]
    return "".join(lines).encode()


ANSWER = sse(chunk(""), *(chunk(word) for word in WORDS), chunk(None, "stop"), usage(), "[DONE]")


async def _started(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    return response


def sends(*parts: bytes | float) -> Behaviour:
    """Writes these bytes, waits these seconds, and ends the answer properly."""

    async def behave(_: FakeOpenAI, request: web.Request) -> web.StreamResponse:
        response = await _started(request)
        for part in parts:
            if isinstance(part, bytes):
                await response.write(part)
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(part)
        await response.write_eof()
        return response

    return behave


answers = sends(ANSWER)


def dies(*parts: bytes) -> Behaviour:
    """Writes these bytes and drops the connection; with none, before any answer."""

    async def behave(_: FakeOpenAI, request: web.Request) -> web.StreamResponse:
        response = await _started(request) if parts else web.StreamResponse()
        for part in parts:
            await response.write(part)
            await asyncio.sleep(0.02)
        assert request.transport is not None
        request.transport.abort()
        return response

    return behave


def refuses(status: int, body: Any = None, **headers: str) -> Behaviour:
    """Answers with an error."""

    async def behave(_: FakeOpenAI, request: web.Request) -> web.StreamResponse:
        if isinstance(body, str):
            return web.Response(status=status, text=body, headers=headers)
        given = {"error": {"message": "no"}} if body is None else body
        return web.json_response(given, status=status, headers=headers)

    return behave


async def hangs(_: FakeOpenAI, request: web.Request) -> web.StreamResponse:
    """Takes the request and says nothing."""
    await asyncio.sleep(60)
    return web.Response()


async def answers_whole(_: FakeOpenAI, request: web.Request) -> web.StreamResponse:
    """Does not stream, whatever is asked."""
    message = {"role": "assistant", "content": "".join(WORDS)}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    body = {"choices": choices, "usage": {"prompt_tokens": 7, "completion_tokens": 6}}
    return web.Response(text=json.dumps(body, indent=1), content_type="application/json")
