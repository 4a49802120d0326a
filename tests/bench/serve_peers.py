"""What stands before and behind the gateway in its benchmark: a fast fake backend and a plain aiohttp proxy.

    python tests/bench/serve_peers.py backend
    python tests/bench/serve_peers.py proxy http://127.0.0.1:8000

Each prints the port that it took, and serves until it is terminated.
"""

import asyncio
import json
import sys
import time

import aiohttp
from aiohttp import web

SENTENCE = "your order is on its way and should be with you in two days at the latest"
WORDS = SENTENCE.split()
PASSED_ON = ("content-type", "authorization")


async def answer(request: web.Request) -> web.StreamResponse:
    """``max_tokens`` words, one every ``temperature`` times 10 ms (a field that every proxy passes on); 0: at once."""
    body = await request.json()
    count, every_s = int(body["max_tokens"]), float(body.get("temperature") or 0) / 100
    if not body.get("stream"):
        text = " ".join(WORDS[number % len(WORDS)] for number in range(count))
        message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": count, "total_tokens": count + 9}
        return web.json_response({**_head(body), "object": "chat.completion", "choices": [message], "usage": usage})
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    began = time.perf_counter()
    for number in range(count):
        if every_s:
            await asyncio.sleep(max(0.0, began + number * every_s - time.perf_counter()))
        await response.write(_event(body, {"content": f"{WORDS[number % len(WORDS)]} "}, None))
    await response.write(_event(body, {}, "stop"))
    usage = {"prompt_tokens": 9, "completion_tokens": count, "total_tokens": count + 9}
    await response.write(b"data: " + json.dumps({**_head(body), "choices": [], "usage": usage}).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


async def healthy(_: web.Request) -> web.Response:
    """GET /health."""
    return web.json_response({"status": "ok"})


def _head(body: dict[str, object]) -> dict[str, object]:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body.get("model")}


def _event(body: dict[str, object], delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({**_head(body), "choices": [choice]}).encode() + b"\n\n"


class Proxy:
    """Passes requests and pieces of answers on, and does nothing else."""

    def __init__(self, target: str) -> None:
        self._target = target

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        """Any request."""
        session: aiohttp.ClientSession = request.app[SESSION]
        headers = {name: value for name, value in request.headers.items() if name.lower() in PASSED_ON}
        body = await request.read()
        async with session.request(request.method, self._target + request.path, data=body, headers=headers) as found:
            response = web.StreamResponse(status=found.status, headers={"content-type": found.headers["content-type"]})
            await response.prepare(request)
            async for piece in found.content.iter_any():
                await response.write(piece)
            return response


SESSION = web.AppKey("session", aiohttp.ClientSession)


async def main(kind: str, target: str = "") -> None:
    """Serve until the process is terminated."""
    app = web.Application()
    if kind == "backend":
        app.add_routes([web.post("/v1/chat/completions", answer), web.get("/health", healthy)])
    else:
        app[SESSION] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        app.router.add_route("*", "/{path:.*}", Proxy(target).pass_on)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main(*sys.argv[1:]))
    except ImportError:
        asyncio.run(main(*sys.argv[1:]))
