"""Asking a judge model over an OpenAI-compatible API: bounded in time and size, retried, and read with suspicion.

What it reads was written by others: it stands in a JSON object that the judge is told to treat as material, and of
its reply only the verdict counts.
"""

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

from serin.core.bodies import read_body
from serin.core.errors import ConfigError
from serin.evaluate.judge_config import JudgeConfig

Side = Literal["A", "B", "tie"]
SIDES: dict[str, Side] = {"a": "A", "b": "B", "tie": "tie"}
MAX_RESPONSE_BYTES = 256 << 10
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Status codes after which another try may help."""
MAX_PAUSE_S = 8.0
_OBJECT = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class Match:
    """Two answers in the order in which they are shown."""

    question: str
    passages: tuple[str, ...]
    reference: str
    first: str
    second: str


class _PassingError(Exception):
    """A try that failed, where another may not."""


class _FinalError(Exception):
    """A refusal that no further try changes."""


async def ask_all(
    config: JudgeConfig,
    matches: Sequence[Match],
    progress: Callable[[int], None] = lambda done: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> list[Side | None]:
    """The judge's verdicts in order; None where it gave none in the time and tries that it has.

    Args:
        config: with a URL.
        matches: what it is asked.
        progress: told how many are done.
        sleep: waits between tries, seconds.

    Raises:
        ConfigError: the variable for the key is not set, or the judge refuses for good (key, model, address).
    """
    headers = _headers(config)
    limit, done = asyncio.Semaphore(config.concurrency), 0
    verdicts: list[Side | None] = [None] * len(matches)
    timeout = aiohttp.ClientTimeout(total=config.timeout_s)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:

        async def one(number: int) -> None:
            nonlocal done
            async with limit:
                verdicts[number] = await _tried(session, config, matches[number], sleep)
            done += 1
            progress(done)

        try:
            async with asyncio.timeout(config.total_timeout_s), asyncio.TaskGroup() as group:
                for number in range(len(matches)):
                    group.create_task(one(number))
        except* TimeoutError:
            pass  # what is not judged by now stays None
        except* _FinalError as errors:
            raise ConfigError(f"The judge at {config.url} {errors.exceptions[0]}") from None
    return verdicts


def _headers(config: JudgeConfig) -> dict[str, str]:
    if not config.api_key_variable:
        return {}
    key = os.environ.get(config.api_key_variable, "")
    if not key:
        raise ConfigError(f"{config.api_key_variable} is not set: set it to the judge's key, or name another variable.")
    return {"authorization": f"Bearer {key}"}


async def _tried(
    session: aiohttp.ClientSession, config: JudgeConfig, match: Match, sleep: Callable[[float], Awaitable[None]]
) -> Side | None:
    for attempt in range(config.retries + 1):
        if attempt:
            await sleep(min(MAX_PAUSE_S, 0.25 * 2**attempt))
        try:
            return await _ask(session, config, match)
        except (_PassingError, aiohttp.ClientError, TimeoutError, OSError):
            continue
    return None


async def _ask(session: aiohttp.ClientSession, config: JudgeConfig, match: Match) -> Side:
    body = {
        "model": config.model,
        "messages": _messages(config.prompt, match),
        "temperature": 0,
        "max_tokens": config.max_tokens,
    }
    url = f"{config.url.rstrip('/')}/chat/completions"
    async with session.post(url, json=body, allow_redirects=False) as response:
        content = await read_body(response, MAX_RESPONSE_BYTES)
        if response.status in PASSING:
            raise _PassingError
        if response.status != 200:
            raise _FinalError(f"refuses with status {response.status}: look at its URL, model and key.")
    if (verdict := verdict_in(content)) is None:
        raise _PassingError
    return verdict


def _messages(prompt: str, match: Match) -> list[dict[str, str]]:
    material = {
        "question": match.question,
        "passages": list(match.passages),
        **({"reference": match.reference} if match.reference else {}),
        "A": match.first,
        "B": match.second,
    }
    return [
        {"role": "system", "content": prompt},
        {"role": "user", "content": json.dumps(material, ensure_ascii=False)},
    ]


def verdict_in(content: bytes) -> Side | None:
    """The last verdict of a chat completion; None where there is none."""
    try:
        reply: Any = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    for found in reversed(_OBJECT.findall(reply if isinstance(reply, str) else "")):
        try:
            verdict = json.loads(found).get("verdict")
        except ValueError:
            continue
        if isinstance(verdict, str) and verdict.strip().casefold() in SIDES:
            return SIDES[verdict.strip().casefold()]
    return None
