"""What the gateway costs in front of a fake backend with a fixed cadence; and the embedded engine's figures.

    .venv/bin/python tests/bench/serve.py               # tables, then one JSON line
    .venv/bin/python tests/bench/serve.py --quick       # a minute, for a look

The same requests go to the backend itself, through a plain aiohttp proxy, through LiteLLM's proxy (where the command
``litellm`` is found, or ``LITELLM`` names it) and through the gateway, with all rails off and with all on.  They take
turns, so that what else the machine does falls on all; figures are medians over turns.

Added time is at one client, to the first piece and to the whole answer; CPU is of the proxy's process alone at 16
clients, over the pieces that it passed on, with what the request itself costs in it (48 pieces an answer).
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

PIECES = 48
CADENCE = 0.5
"""Times 10 ms between pieces."""
CLIENTS = 16
START_S = 300.0
QUESTION = "Hello, can I return the kettle that I bought last week, and who pays for the parcel?"
NAMES = ("direct", "plain proxy", "litellm", "gateway", "gateway, all rails")


@dataclass
class Peer:
    """Something that answers, or passes on to what answers."""

    name: str
    url: str
    pid: int
    model: str = "assistant"
    first_ms: list[float] = field(default_factory=list)
    whole_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    """How far each piece was from its place in the cadence, counted from the first."""

    def body(self, cadence: float) -> dict[str, Any]:
        return {
            "model": self.model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": PIECES,
            "temperature": cadence, "stream": True,
        }  # fmt: skip


def ask_alone(peer: Peer, count: int) -> None:
    """One client over one connection: times of the first piece and of the whole answer, without a cadence."""
    parts = urlsplit(peer.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    data = json.dumps(peer.body(0.0))
    for number in range(count + 3):
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", data, {"content-type": "application/json"})
        response = connection.getresponse()
        first = 0.0
        while line := response.readline():
            if not first and b'"content":' in line and _text_of(line):
                first = time.perf_counter()
        if response.status != 200:
            raise SystemExit(f"{peer.name} answers {response.status}")
        if number >= 3:
            peer.first_ms.append((first - began) * 1000)
            peer.whole_ms.append((time.perf_counter() - began) * 1000)
    connection.close()


async def ask_together(peer: Peer, rounds: int) -> None:
    """Sixteen clients at the cadence: CPU of the peer's process, and when pieces come."""
    process = psutil.Process(peer.pid)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(_stream(session, peer) for _ in range(CLIENTS)))
        before = _cpu_s(process)
        late: list[list[float]] = []
        for _ in range(rounds):
            late += await asyncio.gather(*(_stream(session, peer) for _ in range(CLIENTS)))
        peer.cpu_ms.append((_cpu_s(process) - before) * 1000 / (rounds * CLIENTS * PIECES))
        peer.late_ms += [value for one in late for value in one]


async def _stream(session: aiohttp.ClientSession, peer: Peer) -> list[float]:
    times = []
    async with session.post(f"{peer.url}/v1/chat/completions", json=peer.body(CADENCE)) as response:
        async for line in response.content:
            if line.startswith(b"data: {") and _text_of(line):
                times.append(time.perf_counter())
        assert response.status == 200
    return [abs(at - times[0] - number * CADENCE / 100) * 1000 for number, at in enumerate(times[1:], 1)]


def _text_of(line: bytes) -> str:
    choices = json.loads(line[6:]).get("choices") or [{}]
    return str((choices[0].get("delta") or {}).get("content") or "")


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextlib.contextmanager
def process_of(command: list[str], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended at the end."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.contextmanager
def peer_of(kind: str, *arguments: str) -> Iterator[Peer]:
    """The fake backend, or the plain proxy."""
    script = str(Path(__file__).with_name("serve_peers.py"))
    with process_of([sys.executable, script, kind, *arguments]) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield Peer("direct" if kind == "backend" else "plain proxy", f"http://127.0.0.1:{port}", process.pid)


@contextlib.contextmanager
def litellm_of(command: str, backend: str, folder: Path) -> Iterator[Peer]:
    """LiteLLM's proxy with one worker, without its database, its telemetry or its look for prices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "litellm.yaml"
    model = {"model": "openai/m", "api_base": f"{backend}/v1", "api_key": "none"}
    settings = {"telemetry": False, "num_retries": 0}
    config.write_text(
        json.dumps({"model_list": [{"model_name": "assistant", "litellm_params": model}], "litellm_settings": settings})
    )
    environment = {
        **os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_PROXY": "127.0.0.1",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }  # fmt: skip
    arguments = ["--config", str(config), "--port", str(port), "--host", "127.0.0.1", "--num_workers", "1"]
    with process_of([command, *arguments, "--telemetry", "False"], environment) as process:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ChildProcessError("LiteLLM's proxy does not start")
            time.sleep(0.2)
        yield Peer("litellm", url, process.pid)


def _answers(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=1):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def gateways_of(backend: str, folder: Path) -> Iterator[list[Peer]]:
    """A gateway with a release whose rails are all off and that retrieves nothing, and one with all rails on."""
    from serin.core.gateway_client import GatewayProcess

    os.environ["SERIN_HOME"] = str(folder / "home")
    os.environ["SERIN_BACKENDS"] = json.dumps({"*": {"urls": [backend], "model": "m"}})
    uri, bare, railed = make_releases(folder)
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(GatewayProcess(uri, "assistant", release)) for release in (bare, railed)]
        names = ("gateway", "gateway, all rails")
        yield [Peer(name, process.url, process.pid) for name, process in zip(names, found, strict=True)]


def make_releases(folder: Path) -> tuple[str, str, str]:
    """A store with two releases: its URI, the one without rails, the one with all of them."""
    from worlds import make_world

    from serin.core.artifacts import ArtifactStore
    from serin.core.release import Release, load_release, save_release
    from serin.core.serving import ServingConfig

    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")  # the backend has the model
    world = make_world(folder / "store", folder / "model")
    storage = ArtifactStore(world.uri).storage
    base = load_release(storage, world.champion)
    releases = []
    for rails, passages in ((False, 0), (True, 3)):
        serving = ServingConfig.load({**base.serving, "max_new_tokens": PIECES, "max_passages": passages})
        values = {"guardrails": policy_with(rails).dump(), "serving": serving.dump()}
        release = Release.model_validate({**base.model_dump(), **values})
        save_release(storage, release)
        releases.append(release.id)
    return world.uri, releases[0], releases[1]


def policy_with(rails: bool) -> Any:
    """The policy with every rail on, or every rail off; what needs examples or names gets some."""
    from serin.core.policy import GuardrailPolicy

    values = GuardrailPolicy().dump()
    if not rails:
        return GuardrailPolicy.load({name: _off(value) for name, value in values.items()})
    values["topic"] |= {"input": "flag", "examples": [QUESTION, "Where is my order?", "How long does delivery take?"]}
    values["language"] |= {"input": "flag", "allowed": ["en", "fr"]}
    values["banned"] |= {"phrases": ["free money", "guaranteed win"], "action": "block"}
    values["competitors"] |= {"names": ["Kettle World"], "action": "mask"}
    values["groundedness"] |= {"names": "flag"}
    values["refusal"] |= {"action": "rewrite", "text": "I cannot help with that."}
    values["pii"] |= {"retrieval": "mask"}
    return GuardrailPolicy.load(values)


def _off(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _off(one) for name, one in value.items()}
    return "off" if value in ("flag", "mask", "block", "rewrite") else value


def rails_cpu_ms(count: int) -> list[float]:
    """CPU of all rails together for a request each: question, three passages, an answer that streams."""
    from serin.serve.guardrails import Guardrails, OutputGuard

    guardrails = Guardrails(policy_with(True))
    passages = [
        "You can return the kettle within 30 days for a full refund. Keep the box. " * 3,
        "Orders arrive in two days. Write to help@corner.example about a late parcel. " * 3,
        "Our shop in Lyon, 12 rue des Fleurs, is open from 9 to 18. Call +33 4 72 00 00 00. " * 3,
    ]
    answer = (
        "You can return the kettle within 30 days for a full refund, and we pay for the parcel if it is broken. " * 2
    )
    found = []
    for number in range(count + 20):
        question = f"{QUESTION} My order number is {number}. " + "It has a crack near the handle. " * (number % 12)
        began = time.thread_time()
        guardrails.check("input", question)
        for passage in passages:
            guardrails.check("retrieval", passage)
        guard = OutputGuard(guardrails, [*passages, question])
        for word in answer.split(" "):
            guard.push(f"{word} ")
        guard.finish()
        guardrails.finish_answer(answer, passages)
        if number >= 20:
            found.append((time.thread_time() - began) * 1000)
    return found


def compare(turns: int, alone: int, rounds: int, litellm: str | None) -> dict[str, Peer]:
    """Let all peers take turns."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        backend = stack.enter_context(peer_of("backend"))
        peers = [backend, stack.enter_context(peer_of("proxy", backend.url))]
        if litellm:
            try:
                peers.append(stack.enter_context(litellm_of(litellm, backend.url, folder)))
            except OSError as error:
                print(f"{error}: it is left out.", file=sys.stderr)
        peers += stack.enter_context(gateways_of(backend.url, folder))
        for turn in range(turns):
            for peer in peers[turn % 2 :] + peers[: turn % 2]:
                ask_alone(peer, alone)
                asyncio.run(ask_together(peer, rounds))
        return {peer.name: peer for peer in peers}


def summary(peers: dict[str, Peer]) -> dict[str, Any]:
    """The figures, and a table of them."""
    first, whole = (statistics.median(getattr(peers["direct"], name)) for name in ("first_ms", "whole_ms"))
    rows = {}
    print(f"\n{'':20} {'first +ms':>9} {'whole +ms':>9} {'CPU ms/piece':>12} {'late p95 ms':>11}")
    for name in (name for name in NAMES if name in peers):
        peer = peers[name]
        rows[name] = {
            "added_first_ms": round(statistics.median(peer.first_ms) - first, 3),
            "added_whole_ms": round(statistics.median(peer.whole_ms) - whole, 3),
            "cpu_ms_per_token": round(statistics.median(peer.cpu_ms), 4),
            "late_p95_ms": round(statistics.quantiles(peer.late_ms, n=20)[18], 3),
        }
        cells = (f"{value:>{width}}" for value, width in zip(rows[name].values(), (9, 9, 12, 11), strict=True))
        print(f"{name:20} {' '.join(cells)}")
    return rows


def main() -> None:
    """Print tables and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short turns")
    parser.add_argument("--without-engine", action="store_true", help="leave the embedded engine out")
    options = parser.parse_args()
    turns, alone, rounds = (2, 40, 2) if options.quick else (5, 150, 5)
    litellm = os.environ.get("LITELLM") or shutil.which("litellm")
    rows = summary(compare(turns, alone, rounds, litellm))
    rails = rails_cpu_ms(60 if options.quick else 300)
    ours, theirs = rows["gateway"], rows.get("litellm")
    result: dict[str, Any] = {
        "gateway_added_p50_ms": ours["added_first_ms"],
        "gateway_cpu_ms_per_token": ours["cpu_ms_per_token"],
        "gateway_vs_litellm": theirs
        and {
            "added_p50": round(ours["added_first_ms"] / theirs["added_first_ms"], 3),
            "cpu_per_token": round(ours["cpu_ms_per_token"] / theirs["cpu_ms_per_token"], 3),
        },
        "rails_p95_ms": round(statistics.quantiles(rails, n=20)[18], 3),
        "rails_p50_ms": round(statistics.median(rails), 3),
        "peers": rows,
    }
    if not options.without_engine:
        import serve_engine

        engine = serve_engine.run(**({"turns": 1, "turn_s": 2.0} if options.quick else {}))
        result |= {name: value for name, value in engine.items() if name != "models"}
    if theirs is None:
        print("LiteLLM's proxy is not there: 'make bench-serve' installs it; or set LITELLM to its command.")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
