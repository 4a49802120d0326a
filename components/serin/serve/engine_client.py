"""The gateway's side of an engine: chat requests over pooled HTTP connections, always streamed."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

CONNECT_TIMEOUT_S = 2.0


class EngineError(Exception):
    """An engine that cannot be reached, refuses, breaks off or takes too long.

    Args:
        status: the HTTP status that stands for it.
        message: what happened.
        code: the engine's error code, where it gave one.
    """

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class EngineRequest:
    """What an engine is asked."""

    messages: Sequence[dict[str, str]]
    max_tokens: int
    temperature: float
    seed: int | None
    stop: tuple[str, ...]
    top_p: float = 1.0
    n: int = 1
    logprobs: int | None = None
    """Alternatives per token; None: no log-probabilities."""
    response_format: dict[str, Any] | None = None
    model: str | None = None
    """The engine's model or adapter; None: its only one."""


@dataclass(frozen=True)
class EnginePiece:
    """A piece of an answer; the finish reason and the token counts come at its end."""

    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    index: int = 0
    """Which of ``n`` choices it belongs to."""
    logprobs: tuple[dict[str, Any], ...] = ()
    """OpenAI's entries of ``choice.logprobs.content`` for the piece's tokens."""


class EngineClient:
    """Asks one engine.

    Args:
        session: shared by all clients of the gateway.
        url: the engine's.
        silence_s: longest wait for the next piece.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, silence_s: float) -> None:
        self._session, self.url = session, url
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=silence_s)

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EnginePiece, None]:
        """The answer's pieces; closing the iterator closes the connection, which stops the decoding.

        Raises:
            EngineError: at any point.
        """
        body = {
            "messages": list(request.messages),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "stop": list(request.stop),
            "stream": True,
            "stream_options": {"include_usage": True},
            **({} if request.seed is None else {"seed": request.seed}),
        }
        url = f"{self.url}/v1/chat/completions"
        try:
            async with self._session.post(url, json=body, timeout=self._timeout) as response:
                if response.status != 200:
                    raise await _refusal(response)
                async for piece in _pieces(response):
                    yield piece
        except TimeoutError as error:
            raise EngineError(504, "The engine was silent for too long.") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise EngineError(502, f"The engine cannot be reached ({type(error).__name__}).") from error

    async def healthy(self) -> bool:
        """Whether the engine answers."""
        try:
            timeout = aiohttp.ClientTimeout(total=CONNECT_TIMEOUT_S)
            async with self._session.get(f"{self.url}/health", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            return False


async def _pieces(response: aiohttp.ClientResponse) -> AsyncIterator[EnginePiece]:
    finish_reason = None
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            return
        chunk = json.loads(line[6:])
        if error := chunk.get("error"):
            raise EngineError(502, str(error.get("message")))
        if usage := chunk.get("usage"):
            yield EnginePiece("", finish_reason, usage["prompt_tokens"], usage["completion_tokens"])
            continue
        choice = chunk["choices"][0]
        finish_reason = choice["finish_reason"]
        if text := choice["delta"].get("content"):
            yield EnginePiece(text)
    raise EngineError(502, "The engine broke off in the middle of an answer.")


async def _refusal(response: aiohttp.ClientResponse) -> EngineError:
    try:
        error = (await response.json(content_type=None))["error"]
        return EngineError(response.status, str(error["message"]), error.get("code"))
    except (ValueError, KeyError, TypeError):
        return EngineError(502, f"The engine answered with status {response.status}.")
