"""Mixed traffic for ten minutes while everything that can change changes; a table, then one JSON line.

    .venv/bin/python tests/bench/serve_soak.py                  # ten minutes
    .venv/bin/python tests/bench/serve_soak.py --minutes 0.5

Clients read streamed and whole answers, and some vanish in the middle.  The backend is killed and started again; a
release with another index comes as candidate, in the shadow of a fifth of the champion's requests too, and becomes
champion, then the first one comes back.  Every answer names the model that gave it and repeats its question's number,
so one that is mixed or misrouted is seen; afterwards every answer must have its event, every shadow its champion's, and
the gateway's memory must not have grown.  Loopback only.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

CLIENTS = 12
PIECES = 30
DOWN_S = 1.0
KILL_EVERY_S = 60.0
ENDPOINT = "soak"
BACKEND = """
import asyncio, json, re, sys
from aiohttp import web

async def answer(request):
    body = await request.json()
    number = re.findall(r"number (\\d+)", body["messages"][-1]["content"])[-1]
    words = [f"model={body['model']} ", f"question={number} ", *(f"word{n} " for n in range(int(sys.argv[2])))]
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for word in words:
        await asyncio.sleep(0.005)
        choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
        await response.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\\n\\n")
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    usage = {"prompt_tokens": 5, "completion_tokens": len(words), "total_tokens": 5 + len(words)}
    for event in (json.dumps(end), json.dumps({"choices": [], "usage": usage}), "[DONE]"):
        await response.write(f"data: {event}\\n\\n".encode())
    return response

async def healthy(_):
    return web.json_response({})

app = web.Application()
app.add_routes([web.post("/v1/chat/completions", answer), web.get("/health", healthy)])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None, reuse_address=True)
"""


@dataclass
class Outcome:
    """What was seen."""

    statuses: Counter[int] = field(default_factory=Counter)
    """HTTP statuses; 0: the connection broke."""
    answered: dict[str, str] = field(default_factory=dict)
    """Trace id of each whole answer, with its release."""
    vanished: set[str] = field(default_factory=set)
    """Trace ids of the answers that the client left."""
    broken: int = 0
    """Streams that ended with an error event: the backend died under them."""
    wrong: list[str] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    releases: Counter[str] = field(default_factory=Counter)


@dataclass
class Stage:
    """What traffic runs on."""

    uri: str
    releases: tuple[str, str]
    documents: dict[str, set[str]]
    """By release, the documents that its index has."""
    backend_port: int


def prepare(folder: Path) -> Stage:
    """A store with two releases that differ in index and model name."""
    from worlds import context_of, make_world

    from serin.core.artifacts import ArtifactStore, Built, Origin
    from serin.core.records import Document, write_jsonl
    from serin.core.release import Part, Release, load_release, save_release
    from serin.core.serving import ServingConfig
    from serin.index.build import build_index
    from serin.index.config import IndexConfig

    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")  # the backend has the model
    world = make_world(folder / "store", folder / "model")
    store = ArtifactStore(world.uri)
    texts = {"returns-2": "You can return the kettle within 60 days.", "delivery-2": "Orders arrive in one day."}
    rows = [Document(id=name, title=name, text=text, source=f"{name}.md") for name, text in texts.items()]

    def write(output: Path, _: Path) -> Built:
        write_jsonl(output / "documents.jsonl", rows)
        return Built()

    documents = store.produce("documents", write, inputs={}, config={}, code="soak", origin=Origin(lineage_id="soak"))[
        0
    ]
    index = build_index(IndexConfig(min_chars=0), documents, context_of(world.uri, "index"))
    base = load_release(store.storage, world.champion)
    serving = ServingConfig.load({**base.serving, "max_new_tokens": 4 * PIECES, "min_score": 0.0}).dump()
    made = [
        Release.model_validate({**base.model_dump(), "serving": serving}),
        Release.model_validate({**base.model_dump(), "serving": serving, "index": Part.of(index).model_dump()}),
    ]
    for release in made:
        save_release(store.storage, release)
    first, second = (release.id for release in made)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return Stage(world.uri, (first, second), {first: {"returns", "delivery", "poisoned"}, second: set(texts)}, port)


@contextlib.contextmanager
def backend(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The fake backend, once it answers."""
    command = [sys.executable, "-c", BACKEND, str(port), str(PIECES)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port)
            yield process
        finally:
            process.kill()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("The fake backend does not start.")


async def client(url: str, stage: Stage, outcome: Outcome, seed: int, until: float) -> None:
    """One client that asks until the end, in one of three manners each time."""
    draw = random.Random(seed)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        number = seed * 1_000_000
        while time.monotonic() < until:
            number += 1
            manner = draw.choices(("stream", "whole", "vanish"), (5, 3, 2))[0]
            try:
                await _ask(session, url, stage, outcome, number, manner)
            except (aiohttp.ClientError, TimeoutError, OSError):
                outcome.statuses[0] += 1
            await asyncio.sleep(draw.expovariate(10))


async def _ask(
    session: aiohttp.ClientSession, url: str, stage: Stage, outcome: Outcome, number: int, manner: str
) -> None:
    body = {
        "messages": [{"role": "user", "content": f"Can I return the kettle? It is number {number}"}],
        "stream": manner != "whole",
    }
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        outcome.statuses[response.status] += 1
        trace_id, release = (response.headers.get(name, "") for name in ("x-serin-trace-id", "x-serin-release"))
        if response.status != 200:
            await response.read()
            return
        outcome.releases[release[:12]] += 1
        if manner == "whole":
            message = (await response.json())["choices"][0]["message"]
            text, context = message["content"], message["context"]
        else:
            text, context, done = "", {}, False
            async for line in response.content:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        outcome.broken += 1
                        return
                    delta = (event["choices"] or [{"delta": {}}])[0]["delta"]
                    text += delta.get("content") or ""
                    context = delta.get("context") or context
                    if manner == "vanish" and len(text) > 20:
                        outcome.vanished.add(trace_id)
                        response.close()
                        return
                done = done or line.startswith(b"data: [DONE]")
            if not done:
                outcome.wrong.append(f"{trace_id}: the stream ended without [DONE]")
        outcome.answered[trace_id] = release
        _check(text, context, release, number, stage, outcome, trace_id)


def _check(
    text: str, context: dict[str, Any], release: str, number: int, stage: Stage, outcome: Outcome, trace_id: str
) -> None:
    expected = f"model=m-{release[:12]} question={number} " + " ".join(f"word{n}" for n in range(PIECES))
    if text.strip() != expected:
        outcome.wrong.append(f"{trace_id}: {text[:200]!r} instead of {expected[:80]!r}")
    cited = {citation["document_id"] for citation in context.get("citations", [])}
    if not cited or not cited <= stage.documents[release]:
        outcome.wrong.append(f"{trace_id}: {sorted(cited)} cited from the index of {release[:12]}")


async def disturb(gateway: Any, stage: Stage, stack: contextlib.ExitStack, seconds: float, outcome: Outcome) -> None:
    """Kill and start the backend, move releases, watch memory; all over the time that there is."""
    first, second = stage.releases
    stack.enter_context(backend(stage.backend_port))
    steps: list[dict[str, Any]] = [
        {"champion": first, "candidate": second, "candidate_weight_percent": 50, "mirror_percent": 20},
        {"champion": second},
        {"champion": second, "candidate": first, "candidate_weight_percent": 30, "mirror_percent": 20},
        {"champion": first},
    ]
    began, process = time.monotonic(), psutil.Process(gateway.pid)
    changes = [(seconds * (n + 1) / (len(steps) + 1), step) for n, step in enumerate(steps)]
    num_kills = max(1, round(seconds / KILL_EVERY_S))
    kills = [seconds * (n + 0.5) / num_kills for n in range(num_kills)]
    while (now := time.monotonic() - began) < seconds:
        outcome.rss_mib.append(process.memory_info().rss / 2**20)
        if changes and now >= changes[0][0]:
            await asyncio.to_thread(lambda step: gateway.set_rollout(**step), changes.pop(0)[1])
        if kills and now >= kills[0]:
            kills.pop(0)
            await asyncio.to_thread(_kill_and_start, stack, stage.backend_port)
        await asyncio.sleep(min(1.0, seconds / 60))


def _kill_and_start(stack: contextlib.ExitStack, port: int) -> None:
    stack.close()
    time.sleep(DOWN_S)
    stack.enter_context(backend(port))


def run(seconds: float) -> dict[str, Any]:
    """Soak a gateway; returns the figures."""
    from serin.core.events import read_events, read_shadows
    from serin.core.gateway_client import GatewayProcess
    from serin.core.storage import storage_for

    outcome = Outcome()
    before = {name: os.environ.get(name) for name in ("SERIN_HOME", "SERIN_BACKENDS")}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as backends:
        stage = prepare(Path(name))
        servers = {"*": {"urls": [f"http://127.0.0.1:{stage.backend_port}"], "model": "m-{short}", "ready_s": 10}}
        os.environ.update(SERIN_HOME=str(Path(name) / "home"), SERIN_BACKENDS=json.dumps(servers))
        try:
            with backend(stage.backend_port):
                gateway = GatewayProcess(stage.uri, ENDPOINT, stage.releases[0])
                gateway.start()
            try:
                asyncio.run(_traffic(gateway, stage, backends, seconds, outcome))
                gateway.flush()
            finally:
                gateway.close()
                backends.close()
        finally:
            for variable, value in before.items():
                os.environ.pop(variable, None) if value is None else os.environ.__setitem__(variable, value)
        storage = storage_for(stage.uri)
        events, shadows = read_events(storage, ENDPOINT), read_shadows(storage, ENDPOINT)
    return summary(outcome, events, seconds) | shadow_summary(events, shadows)


async def _traffic(
    gateway: Any, stage: Stage, backends: contextlib.ExitStack, seconds: float, outcome: Outcome
) -> None:
    until = time.monotonic() + seconds
    clients = (client(gateway.url, stage, outcome, seed, until) for seed in range(1, CLIENTS + 1))
    await asyncio.gather(disturb(gateway, stage, backends, seconds, outcome), *clients)


def summary(outcome: Outcome, events: list[Any], seconds: float) -> dict[str, Any]:
    """The figures: what was wrong, what was lost, how memory went."""
    by_trace = {event.trace_id: event for event in events if event.status in (200, 499)}
    copies = Counter((event.trace_id, event.release_id) for event in events)
    lost = [
        trace_id
        for trace_id, release in outcome.answered.items()
        if trace_id not in by_trace
        or by_trace[trace_id].status != 200
        or by_trace[trace_id].release_id != release
        or not re.match(r"model=m-", by_trace[trace_id].answer)
    ]
    recorded = {event.trace_id for event in events}  # the backend may have died before the client's leaving was seen
    lost += [trace_id for trace_id in outcome.vanished if trace_id not in recorded]
    odd = {trace_id: [e.status for e in events if e.trace_id == trace_id] for trace_id in lost[:5]}
    quarter = max(1, len(outcome.rss_mib) // 4)
    early, late = outcome.rss_mib[quarter : 2 * quarter] or outcome.rss_mib, outcome.rss_mib[-quarter:]
    return {
        "seconds": seconds,
        "requests": sum(outcome.statuses.values()),
        "answered": len(outcome.answered),
        "vanished": len(outcome.vanished),
        "broken_streams": outcome.broken,
        "statuses": dict(sorted(outcome.statuses.items())),
        "releases": dict(outcome.releases),
        "wrong_answers": outcome.wrong[:20],
        "num_wrong_answers": len(outcome.wrong),
        "lost_events": len(lost),
        "events_of_the_lost": odd,
        "double_events": sum(count - 1 for count in copies.values()),
        "rss_mib_early": round(statistics.median(early), 1),
        "rss_mib_late": round(statistics.median(late), 1),
    }


def shadow_summary(events: list[Any], shadows: list[Any]) -> dict[str, Any]:
    """How many shadows there were, and how many do not fit the champion's request that they stand beside."""
    from serin.core.events import shadow_pairs

    pairs = shadow_pairs(events, shadows)
    wrong = [
        shadow.trace_id
        for champion, shadow in pairs
        if shadow.release_id == champion.release_id
        or (shadow.session_id, shadow.question) != (champion.session_id, champion.question)
        or (shadow.status == 200 and not shadow.answer.startswith(f"model=m-{shadow.release_id[:12]} question="))
    ]
    return {"shadows": len(shadows), "wrong_shadows": len(wrong) + len(shadows) - len(pairs)}


def main() -> int:
    """Print the figures; 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    found = run(parser.parse_args().minutes * 60)
    for name, value in found.items():
        print(f"{name:18} {value}")
    print(json.dumps(found))
    bad = ("num_wrong_answers", "lost_events", "double_events", "wrong_shadows")
    return int(any(found[name] for name in bad))


if __name__ == "__main__":
    sys.exit(main())
