"""Real HTTP traffic for a rollout: held-out questions replayed as users would send them, streamed."""

import asyncio
import json
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import aiohttp

from serin.core.records import Conversation

MAX_TURNS = 2


@dataclass(frozen=True)
class Outcome:
    """What a replayed request came back with, as its sender saw it."""

    session_id: str
    trace_id: str
    release_id: str
    track: str
    status: int
    question: str
    answer: str


def sessions(conversations: Sequence[Conversation], seed: int) -> Iterator[list[str]]:
    """User turns of one conversation after another, shuffled, without end (each lap in a new order)."""
    rng = random.Random(seed)  # noqa: S311 - an order, not a secret
    order = list(conversations)
    while True:
        rng.shuffle(order)
        for conversation in order:
            yield [turn.content for turn in conversation.messages if turn.role == "user"][-MAX_TURNS:]


async def replay(
    url: str, batch: Sequence[list[str]], *, token: str, concurrency: int, timeout_s: float
) -> list[Outcome]:
    """Send each session's questions in turn, several sessions at once.

    Args:
        url: the gateway.
        token: sent as the API key.
        batch: the sessions; one is a list of user turns.
        concurrency: sessions under way at once.
        timeout_s: limit of one request.

    Returns:
        One outcome a request; a request that got no answer has status 0.
    """
    limit = asyncio.Semaphore(concurrency)
    headers, limit_s = {"authorization": f"Bearer {token}"}, aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(url, headers=headers, timeout=limit_s) as client:

        async def one(turns: list[str]) -> list[Outcome]:
            session_id, dialogue, outcomes = uuid.uuid4().hex, list[dict[str, str]](), list[Outcome]()
            async with limit:
                for question in turns:
                    dialogue.append({"role": "user", "content": question})
                    outcomes.append(await ask(client, session_id, dialogue))
                    dialogue.append({"role": "assistant", "content": outcomes[-1].answer or "-"})
            return outcomes

        return [outcome for outcomes in await asyncio.gather(*map(one, batch)) for outcome in outcomes]


async def ask(client: aiohttp.ClientSession, session_id: str, dialogue: Sequence[dict[str, str]]) -> Outcome:
    """One streamed request; the dialogue ends with the user's question."""
    body, question = {"model": "default", "stream": True, "messages": list(dialogue)}, dialogue[-1]["content"]
    try:
        async with client.post("/v1/chat/completions", json=body, headers={"x-session-id": session_id}) as response:
            answer = await _read(response)
            headers = response.headers
            return Outcome(
                session_id=session_id,
                trace_id=headers.get("x-serin-trace-id", ""),
                release_id=headers.get("x-serin-release", ""),
                track=headers.get("x-serin-track", ""),
                status=response.status,
                question=question,
                answer=answer,
            )
    except (aiohttp.ClientError, TimeoutError):
        return Outcome(session_id, "", "", "", 0, question, "")


async def _read(response: aiohttp.ClientResponse) -> str:
    parts = []
    async for line in response.content:
        data = line.decode().removeprefix("data:").strip()
        if response.status == 200 and data and data != "[DONE]":
            choices = json.loads(data).get("choices") or [{}]
            parts.append(choices[0].get("delta", {}).get("content") or "")
    return "".join(parts)
