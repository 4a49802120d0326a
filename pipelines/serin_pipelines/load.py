"""Open-loop load on an endpoint: the arrivals and lengths of a recorded trace, scaled, whatever the answers take.

Open-loop, because a client that waits for its answer before it asks again hides the very queue that it makes.  A level
is one mean rate; the arrivals keep the trace's burstiness, its time is only stretched.
"""

import asyncio
import csv
import gzip
import io
import json
import math
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from serin.core.errors import ConfigError, InputError, ServingError

COLUMNS = ("offset_s", "ContextTokens", "GeneratedTokens")
CHARS_PER_TOKEN = 4
TIMEOUT_S = 120.0
STORY = (
    "I ordered a blue lamp two weeks ago and paid by card.",
    "The parcel came on Tuesday with a dent in one corner.",
    "The lamp works, but the shade has a small crack near the base.",
    "A neighbour took the parcel in because I was at work that day.",
    "My sister bought the same lamp last spring and is happy with it.",
    "The receipt says that the warranty runs for two years.",
    "I still have the box and everything that was in it.",
    "Is it better to send it back or to have the shade replaced?",
    "How long would a new shade take to get to Lyon?",
)
"""What questions are made of: what a customer might say, since the endpoint's rails look at it."""


@dataclass(frozen=True)
class Ask:
    """One request of a trace."""

    offset_s: float
    prompt_tokens: int
    max_tokens: int


@dataclass
class Seen:
    """How a request went."""

    status: int = 0
    latency_s: float = 0.0
    ttft_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    """Between pieces of the answer."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Level(BaseModel):
    """What came out of one mean rate; times in milliseconds."""

    offered_qps: float
    completed_qps: float
    goodput_qps: float
    """Answers within the bound per second."""
    requests: int
    answered: int
    shed: int
    """429."""
    failed: int
    """Everything else that is no answer."""
    statuses: dict[str, int]
    """Requests by HTTP status; 0: the connection broke or took too long."""
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    itl_p50_ms: float | None
    """Between pieces of an answer."""
    itl_p95_ms: float | None
    completion_tokens_per_s: float
    cost_per_1k_answers: float | None


class LoadReport(BaseModel):
    """All levels, and the best of them."""

    url: str
    p95_bound_ms: float
    qps_at_p95: float
    """Answers per second of the highest level whose p95 is within the bound and of whose requests 99% were answered."""
    goodput_qps: float
    """The most answers within the bound per second at any level, shedding included."""
    levels: list[Level]


@dataclass(frozen=True)
class Load:
    """What to send.

    Args of the same names in ``serin serve bench``.
    """

    url: str
    trace: Path
    rates: tuple[float, ...]
    seconds: float
    p95_ms: float
    tokens_scale: float = 1.0
    max_prompt_chars: int = 2000
    max_answer_tokens: int = 64
    model: str = "default"
    api_key: str = ""
    price_per_hour: float = 0.0
    """Of the machine that answers."""
    price_per_1k_prompt_tokens: float = 0.0
    price_per_1k_completion_tokens: float = 0.0


def read_trace(path: Path) -> list[Ask]:
    """Requests of a CSV file (also ``.gz``) with the columns of the Azure traces, in order of arrival.

    Raises:
        InputError: the file cannot be read, or has other columns.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8"))))
        asks = [Ask(float(row[COLUMNS[0]]), int(row[COLUMNS[1]]), int(row[COLUMNS[2]])) for row in rows]
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path} is no file: name the trace itself (CSV, also .gz).") from error
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a trace with the columns {', '.join(COLUMNS)}: {error!r}.") from error
    if len(asks) < 2:
        raise InputError(f"{path} holds {len(asks)} requests: give a trace with at least two.")
    return sorted(asks, key=lambda ask: ask.offset_s)


def at_rate(asks: Sequence[Ask], rate: float, seconds: float) -> list[Ask]:
    """The first part of a trace, its time scaled to a mean rate per second; it begins anew where it is too short."""
    wanted = max(1, round(rate * seconds))
    step = (asks[-1].offset_s - asks[0].offset_s) / (len(asks) - 1)
    around = [(number // len(asks), asks[number % len(asks)]) for number in range(wanted)]
    span = asks[-1].offset_s - asks[0].offset_s + step
    offsets = [lap * span + ask.offset_s - asks[0].offset_s for lap, ask in around]
    scale = seconds / max(offsets[-1], 1e-9) if wanted > 1 else 0.0
    return [
        Ask(offset * scale, ask.prompt_tokens, ask.max_tokens) for offset, (_, ask) in zip(offsets, around, strict=True)
    ]


def run_load(load: Load) -> LoadReport:
    """Send every level, one after the other.

    Raises:
        ConfigError: no rate, or one that is not positive.
        InputError: the trace cannot be used.
        ServingError: nothing answers at the URL.
    """
    if not load.rates or min(load.rates) <= 0 or load.seconds <= 0:
        raise ConfigError("Give rates and seconds above 0, such as --rates 1,2,4 --seconds 20.")
    asks = read_trace(load.trace)
    levels = asyncio.run(_levels(load, asks))
    steady = [
        level.completed_qps
        for level in levels
        if level.latency_p95_ms is not None
        and level.latency_p95_ms <= load.p95_ms
        and level.answered >= 0.99 * level.requests
    ]
    return LoadReport(
        url=load.url,
        p95_bound_ms=load.p95_ms,
        qps_at_p95=max(steady, default=0.0),
        goodput_qps=max(level.goodput_qps for level in levels),
        levels=levels,
    )


async def _levels(load: Load, asks: Sequence[Ask]) -> list[Level]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    headers = {"authorization": f"Bearer {load.api_key}"} if load.api_key else {}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout, headers=headers
    ) as session:
        try:
            async with session.get(f"{load.url.rstrip('/')}/health"):
                pass
        except (aiohttp.ClientError, OSError) as error:
            raise ServingError(f"Nothing answers at {load.url} ({error}): start it with 'serin serve'.") from error
        return [await _level(session, load, at_rate(asks, rate, load.seconds)) for rate in load.rates]


async def _level(session: Any, load: Load, asks: Sequence[Ask]) -> Level:
    began = time.perf_counter()

    async def later(number: int, ask: Ask) -> Seen:
        await asyncio.sleep(max(0.0, began + ask.offset_s - time.perf_counter()))
        return await _one(session, load, number, ask)

    seen = await asyncio.gather(*(later(number, ask) for number, ask in enumerate(asks)))
    return _summary(load, seen, time.perf_counter() - began)


async def _one(session: Any, load: Load, number: int, ask: Ask) -> Seen:
    import aiohttp

    chars = min(int(ask.prompt_tokens * load.tokens_scale * CHARS_PER_TOKEN), load.max_prompt_chars)
    body = {
        "model": load.model,
        "messages": [{"role": "user", "content": question_of(number, chars)}],
        "max_tokens": max(1, min(round(ask.max_tokens * load.tokens_scale), load.max_answer_tokens)),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    seen, began = Seen(), time.perf_counter()
    try:
        async with session.post(f"{load.url.rstrip('/')}/v1/chat/completions", json=body) as response:
            seen.status = response.status
            if response.status == 200:
                await _read_stream(response, seen, began)
            else:
                await response.read()
    except (aiohttp.ClientError, OSError, TimeoutError):
        seen.status = 0
    seen.latency_s = time.perf_counter() - began
    return seen


def question_of(number: int, chars: int) -> str:
    """A question of about so many characters, another one for every number."""
    text = f"Hello, this is about order {number}."
    while len(text) < chars:
        text += " " + STORY[number % len(STORY)]
        number += 1
    return text[: max(chars, 36)]


async def _read_stream(response: Any, seen: Seen, began: float) -> None:
    last, done = began, False
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            done = True
            continue
        event = json.loads(line[6:])
        if "error" in event:
            break
        usage = event.get("usage") or {}
        seen.prompt_tokens = usage.get("prompt_tokens", seen.prompt_tokens)
        seen.completion_tokens = usage.get("completion_tokens", seen.completion_tokens)
        if any(choice.get("delta", {}).get("content") for choice in event.get("choices", [])):
            now = time.perf_counter()
            if seen.ttft_s is None:
                seen.ttft_s = now - began
            else:
                seen.gaps_s.append(now - last)
            last = now
    if not done:
        seen.status = 0


def _summary(load: Load, seen: Sequence[Seen], wall_s: float) -> Level:
    answers = [one for one in seen if one.status == 200]
    latencies = [one.latency_s * 1000 for one in answers]
    first = [one.ttft_s * 1000 for one in answers if one.ttft_s is not None]
    gaps = [gap * 1000 for one in answers for gap in one.gaps_s]
    prompt, completion = (sum(getattr(one, f"{kind}_tokens") for one in answers) for kind in ("prompt", "completion"))
    cost = (
        load.price_per_hour / 3600 * wall_s
        + prompt / 1000 * load.price_per_1k_prompt_tokens
        + completion / 1000 * load.price_per_1k_completion_tokens
    )
    shed = sum(one.status == 429 for one in seen)
    return Level(
        offered_qps=round(len(seen) / load.seconds, 3),
        completed_qps=round(len(answers) / wall_s, 3),
        goodput_qps=round(sum(latency <= load.p95_ms for latency in latencies) / wall_s, 3),
        requests=len(seen),
        answered=len(answers),
        shed=shed,
        failed=len(seen) - len(answers) - shed,
        statuses={str(status): count for status, count in sorted(Counter(one.status for one in seen).items())},
        latency_p50_ms=quantile(latencies, 0.5),
        latency_p95_ms=quantile(latencies, 0.95),
        latency_p99_ms=quantile(latencies, 0.99),
        ttft_p50_ms=quantile(first, 0.5),
        ttft_p95_ms=quantile(first, 0.95),
        itl_p50_ms=quantile(gaps, 0.5),
        itl_p95_ms=quantile(gaps, 0.95),
        completion_tokens_per_s=round(completion / wall_s, 2),
        cost_per_1k_answers=round(cost / len(answers) * 1000, 6) if answers and cost else None,
    )


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that a share of the values does not exceed; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)], 3)
