"""The embedded engine beside ``transformers serve`` (continuous batching), both with one thread, in one run.

    .venv/bin/python tests/bench/serve_engine.py        # a table, then one JSON line

Greedy answers of one length to the same prompts, streamed, by 1, 4 and 16 clients that ask again at once.  Both
servers run the whole time; the one that is not asked is stopped (SIGSTOP), and they take turns, so that what else the
machine does falls on both.  A ratio is the median over the turns.

For the turns the contender gets a small key-value cache, which is kind to it: by itself it takes nine tenths of the
machine's memory for one.  ``rss_vs_transformers_serve`` is against the peak that it has as it starts by itself; where
that much is not free, as it starts with a quarter of the memory; and where not even that is, against the peak in the
turns, which is ``rss_vs_transformers_serve_small_cache``.  ``rss_contender_cache`` says which it was.
"""

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from serve_engine_models import SIZES, make_model

CLIENTS = (1, 4, 16)
MAX_TOKENS = 64
TURN_S = 4.0
TURNS = 3
START_S = 180.0
QUESTION = "Customer {}: my parcel came {} days late and the lamp in it is broken. What can I do, and who pays for it?"
SMALL_CACHE = ("--cb-num-blocks", "256", "--cb-block-size", "32", "--cb-max-batch-tokens", "512")
CAPPED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
CONTENDER = "transformers serve"
OURS = "serin engine"
OWN_CACHE_FRACTION, LESS_CACHE_FRACTION, ROOM = 0.9, 0.25, 0.15
"""Shares of all memory: what the contender takes by itself, what it is given where that is not free, and what must be
left over then."""
OWN_CACHE = "transformers serve, its own cache size"


@dataclass
class Turn:
    """What one server did under one number of clients for a few seconds."""

    tokens: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    ttft_s: list[float] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def cpu_ms_per_token(self) -> float:
        return 1000 * self.cpu_s / self.tokens


@dataclass
class Server:
    """A server process of the benchmark."""

    name: str
    process: psutil.Process
    url: str
    model: str

    @classmethod
    def start(cls, name: str, model_dir: Path, folder: Path, cache: Sequence[str] = SMALL_CACHE) -> "Server":
        """Start one; it answers once ``ready`` returns.  ``cache``: options of the contender's cache."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if name == OURS:
            command = [
                sys.executable, "-m", "serin.serve.engine", "--model-dir", str(model_dir), "--port", str(port),
                "--model-name", "model",
            ]  # fmt: skip
        else:
            command = [
                str(Path(sys.executable).with_name("transformers")), "serve", str(model_dir), "--continuous-batching",
                "--device", "cpu", "--dtype", "float32", "--port", str(port), "--host", "127.0.0.1",
                *cache,
            ]  # fmt: skip
        environment = {**os.environ, **dict.fromkeys(CAPPED, "1"), "HF_HUB_OFFLINE": "1"}
        with (folder / f"{name.replace(' ', '-')}.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        model = "model" if name == OURS else str(model_dir)
        return cls(name, psutil.Process(process.pid), f"http://127.0.0.1:{port}", model)

    def hold(self) -> None:
        """Stop it for a while."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End the hold."""
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End it for good."""
        self.go_on()
        self.process.terminate()
        psutil.wait_procs([self.process], timeout=10)
        if self.process.is_running():
            self.process.kill()

    def cpu_s(self) -> float:
        """CPU time so far, children included."""
        times = self.process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)

    def rss_mib(self) -> float:
        """Resident memory, the most so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024


async def ready(server: Server) -> None:
    """Wait for a server's first answer."""
    deadline = time.monotonic() + START_S
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                await _ask(session, server, "Hello", Turn())
                return
            except (aiohttp.ClientError, OSError, RuntimeError):
                if time.monotonic() > deadline or not server.process.is_running():
                    raise
                await asyncio.sleep(0.3)


async def turn(server: Server, clients: int, seconds: float) -> Turn:
    """One server under some clients."""
    result = Turn()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        start, cpu = time.perf_counter(), server.cpu_s()
        await asyncio.gather(*(_client(session, server, number, start + seconds, result) for number in range(clients)))
        result.seconds = time.perf_counter() - start
        result.cpu_s = server.cpu_s() - cpu
    return result


async def _client(session: aiohttp.ClientSession, server: Server, number: int, end: float, result: Turn) -> None:
    asked = 0
    while not asked or time.perf_counter() < end:
        await _ask(session, server, QUESTION.format(number, asked % 20), result)
        asked += 1


async def _ask(session: aiohttp.ClientSession, server: Server, question: str, result: Turn) -> None:
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    started, first, parts = time.perf_counter(), None, []
    async with session.post(f"{server.url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{server.name}: {response.status} {(await response.text())[:300]}")
        async for line in response.content:
            if first is None and b'"content":"' in line and b'"content":""' not in line:
                first = time.perf_counter()
            if line.startswith(b"data: {"):
                parts.append(line)
    result.ttft_s.append((first or time.perf_counter()) - started)
    result.tokens += MAX_TOKENS
    if question not in result.texts:
        result.texts[question] = _text(parts)


def _text(lines: list[bytes]) -> str:
    choices = [choice for line in lines for choice in json.loads(line[6:])["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def compare(model_dir: Path, folder: Path, turns: int, turn_s: float, cache: Sequence[str]) -> dict[str, Any]:
    """Turns of both servers on one model, and their memory."""
    servers: list[Server] = []
    found: dict[str, Any] = {"turns": {}, "rss_mib": {}}
    try:
        for name in (CONTENDER, OURS):
            servers.append(Server.start(name, model_dir, folder))
            asyncio.run(ready(servers[-1]))
            asyncio.run(turn(servers[-1], 4, 1.0))
            servers[-1].hold()
            found["turns"][name] = {clients: [] for clients in CLIENTS}
        for clients in CLIENTS:
            for _ in range(turns):
                for server in servers:
                    server.go_on()
                    found["turns"][server.name][clients].append(asyncio.run(turn(server, clients, turn_s)))
                    server.hold()
        found["rss_mib"] = {server.name: server.rss_mib() for server in servers}
    finally:
        for server in servers:
            server.end()
    found["rss_mib"][OWN_CACHE] = _own_cache_rss_mib(model_dir, folder, cache)
    return found


def _own_cache_rss_mib(model_dir: Path, folder: Path, cache: Sequence[str]) -> float | None:
    """The contender's peak with a cache of a size of its own, after some seconds of work; None: not measured.

    It sizes itself by the machine's memory whether that is free or not, so it is not let where it is not.
    """
    cache = cache or own_cache_options(psutil.virtual_memory())
    if cache is None:
        print(f"{OWN_CACHE}: not measured, since memory is scarce.", file=sys.stderr)
        return None
    server = Server.start(CONTENDER, model_dir, folder, cache)
    try:
        asyncio.run(ready(server))
        asyncio.run(turn(server, max(CLIENTS), 2.0))
        return server.rss_mib()
    except (aiohttp.ClientError, OSError, RuntimeError, psutil.NoSuchProcess) as error:
        print(f"{CONTENDER} does not answer with its own size of cache: {error}", file=sys.stderr)
        return None
    finally:
        server.end()


def own_cache_options(memory: Any) -> Sequence[str] | None:
    """Options for a cache of the contender's own size, or of a quarter of the memory; None where neither is free.

    Args:
        memory: ``total`` and ``available``, bytes.
    """
    if memory.available >= OWN_CACHE_FRACTION * memory.total:
        return ("--cb-max-memory-percent", str(OWN_CACHE_FRACTION))
    if memory.available >= (LESS_CACHE_FRACTION + ROOM) * memory.total:
        return ("--cb-max-memory-percent", str(LESS_CACHE_FRACTION))
    return None


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Figures of one model."""
    ours, theirs, own_cache = found["turns"][OURS], found["turns"][CONTENDER], found["rss_mib"][OWN_CACHE]
    ratios = {
        str(c): statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in zip(ours[c], theirs[c], strict=True))
        for c in CLIENTS
    }
    same = [a.texts[q] == b.texts[q] for c in CLIENTS for a, b in zip(ours[c], theirs[c], strict=True)
            for q in a.texts.keys() & b.texts.keys()]  # fmt: skip
    rows = {
        name: {
            str(c): {
                "tokens_per_s": round(statistics.median(t.tokens_per_s for t in turns[c]), 1),
                "cpu_ms_per_token": round(statistics.median(t.cpu_ms_per_token for t in turns[c]), 3),
                "ttft_p50_ms": round(1000 * statistics.median(x for t in turns[c] for x in t.ttft_s), 1),
            }
            for c in CLIENTS
        }
        for name, turns in found["turns"].items()
    }
    return {
        "tps_vs_transformers_serve": {c: round(ratio, 2) for c, ratio in ratios.items()},
        "rss_vs_transformers_serve": round(found["rss_mib"][OURS] / (own_cache or found["rss_mib"][CONTENDER]), 3),
        "rss_vs_transformers_serve_small_cache": round(found["rss_mib"][OURS] / found["rss_mib"][CONTENDER], 3),
        "cpu_ms_per_token": max(row["cpu_ms_per_token"] for row in rows[OURS].values()),
        "rss_mib": {name: value and round(value) for name, value in found["rss_mib"].items()},
        "same_answers_fraction": round(sum(same) / len(same), 3),
        "servers": rows,
    }


def run(
    sizes: Sequence[str] = tuple(SIZES), turns: int = TURNS, turn_s: float = TURN_S, cache: Sequence[str] = ()
) -> dict[str, Any]:
    """Benchmark the models of some sizes; prints a table of each.

    Args:
        sizes: of ``SIZES``, the smallest first.
        turns: of each server at each number of clients.
        turn_s: seconds of a turn, at least.
        cache: options of the contender's cache where its memory is measured; none: as much as it takes, or is free.

    Returns:
        ``tps_vs_transformers_serve`` (by clients, the least of the models), ``rss_vs_transformers_serve`` (the most),
        ``cpu_ms_per_token`` (of the first model, the most of the numbers of clients), and ``models`` with the rest.
    """
    models: dict[str, dict[str, Any]] = {}
    for name in sizes:
        with tempfile.TemporaryDirectory() as folder:
            model_dir = make_model(Path(folder) / "model", SIZES[name])
            models[name] = summary(compare(model_dir, Path(folder), turns, turn_s, cache))
        _print(name, models[name])
    by_itself = all(model["rss_mib"][OWN_CACHE] for model in models.values())
    return {
        "tps_vs_transformers_serve": {
            str(c): min(model["tps_vs_transformers_serve"][str(c)] for model in models.values()) for c in CLIENTS
        },
        "rss_vs_transformers_serve": max(model["rss_vs_transformers_serve"] for model in models.values()),
        "rss_contender_cache": "as it takes" if by_itself else "small",
        "rss_vs_transformers_serve_small_cache": max(
            model["rss_vs_transformers_serve_small_cache"] for model in models.values()
        ),
        "cpu_ms_per_token": models[sizes[0]]["cpu_ms_per_token"],
        "models": models,
    }


def _print(name: str, model: dict[str, Any]) -> None:
    print(f"\n{name} parameters, {MAX_TOKENS} tokens an answer; the same text in {model['same_answers_fraction']:.0%}")
    print(f"{'':20} {'clients':>7} {'tokens/s':>9} {'CPU ms/token':>12} {'TTFT p50 ms':>11} {'RSS MiB':>8}")
    for server, rows in model["servers"].items():
        for clients, row in rows.items():
            print(
                f"{server:20} {clients:>7} {row['tokens_per_s']:>9.0f} {row['cpu_ms_per_token']:>12.3f} "
                f"{row['ttft_p50_ms']:>11.1f} {model['rss_mib'][server]:>8}"
            )
    ratios = ", ".join(f"{ratio}x at {clients}" for clients, ratio in model["tps_vs_transformers_serve"].items())
    print(
        f"throughput {ratios}; memory {model['rss_vs_transformers_serve_small_cache']}x, and "
        f"{model['rss_vs_transformers_serve']}x of its {model['rss_mib'][OWN_CACHE]} MiB with its own size of cache",
        flush=True,
    )


if __name__ == "__main__":
    print(json.dumps(run()))
