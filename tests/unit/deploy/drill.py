"""A fault drill's stage: two model servers that misbehave on demand, a gateway process, users who never stop asking."""

import asyncio
import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from serin.deploy.traffic import ask

GROUNDED = "You can return the kettle within 30 days for a full refund. Keep the box."
QUESTIONS = ("Can I return the kettle?", "May I have a refund?", "Can I return the kettle in its box?")
FIRST_TOKEN_S = 0.1


@dataclass
class Model:
    """How one model behaves."""

    first_token_s: float = FIRST_TOKEN_S
    """Median; each request's own is up to 30% off."""
    failing: float = 0.0
    """Share of requests that it answers with status 500."""
    answer: str = GROUNDED
    other: str = ""
    """What it says instead in a part of its answers."""
    other_fraction: float = 0.0


class Upstream:
    """An OpenAI-compatible server on a thread of its own; a model that is not in ``models`` does not exist."""

    def __init__(self, **models: Model) -> None:
        self.models = models
        self.port = 0
        self._rng = random.Random(3)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Upstream":
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._list)
        app.router.add_get("/health", self._health)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        return runner

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": n, "object": "model"} for n in self.models]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        model = self.models[(await request.json())["model"]]
        await asyncio.sleep(model.first_token_s * self._rng.uniform(0.7, 1.3))
        if self._rng.random() < model.failing:
            return web.json_response({"error": {"message": "broken"}}, status=500)
        said = model.other if self._rng.random() < model.other_fraction else model.answer
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        words = said.split(" ")
        for place, word in enumerate(words):
            await response.write(_event({"delta": {"content": f" {word}" if place else word}, "index": 0}))
        await response.write(_event({"delta": {}, "index": 0, "finish_reason": "stop"}))
        await response.write(_event(None, usage={"prompt_tokens": 40, "completion_tokens": len(words)}))
        await response.write(b"data: [DONE]\n\n")
        return response


@dataclass
class Users:
    """Sessions of two questions each, several at once, until they are told to stop."""

    url: str
    token: str
    at_once: int = 6
    statuses: Counter[int] = field(default_factory=Counter)
    failed_at: list[float] = field(default_factory=list)
    tracks: dict[str, list[str]] = field(default_factory=dict)
    """By session, the tracks that answered it."""

    @contextmanager
    def asking(self) -> Iterator["Users"]:
        stop = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._ask(stop)), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join(30)

    async def _ask(self, stop: threading.Event) -> None:
        headers = {"authorization": f"Bearer {self.token}"}
        timeout = aiohttp.ClientTimeout(total=20)

        async def one(number: int) -> None:
            rng = random.Random(number)
            async with aiohttp.ClientSession(self.url, headers=headers, timeout=timeout) as client:
                while not stop.is_set():
                    await self._session(client, rng)

        await asyncio.gather(*(one(number) for number in range(self.at_once)))

    async def _session(self, client: aiohttp.ClientSession, rng: random.Random) -> None:
        session_id, dialogue = uuid.uuid4().hex, list[dict[str, str]]()
        for question in rng.sample(QUESTIONS, 2):
            dialogue.append({"role": "user", "content": question})
            outcome = await ask(client, session_id, dialogue)
            self.statuses[outcome.status] += 1
            if outcome.status != 200:
                self.failed_at.append(time.monotonic())
                await asyncio.sleep(0.1)
            self.tracks.setdefault(session_id, []).append(outcome.track)
            dialogue.append({"role": "assistant", "content": outcome.answer or "-"})

    @property
    def failed(self) -> int:
        """Requests that a user saw fail."""
        return sum(number for status, number in self.statuses.items() if status != 200)


def backends(url: str, candidate: str) -> str:
    """SERIN_BACKENDS for a candidate's release and everybody else."""
    return json.dumps({"*": {"urls": [url], "model": "champion"}, candidate: {"urls": [url], "model": "candidate"}})


def _event(choice: dict[str, Any] | None, **fields: Any) -> bytes:
    return f"data: {json.dumps({'id': 'x', 'choices': [choice] if choice else [], **fields})}\n\n".encode()
