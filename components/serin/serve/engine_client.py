"""What the gateway asks of whatever serves a release's model, and what it gets; the backends are in ``backends``."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class EngineError(Exception):
    """A backend that cannot be reached, refuses, breaks off or takes too long.

    Args:
        status: the HTTP status that stands for it.
        message: what happened.
        code: the backend's error code, where it gave one.
        param: the field of the request that it is about, where the backend named one.
        retry_after_s: when to ask again, where that is known.
        retryable: whether another try, or another server, may do better.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.retry_after_s, self.retryable = retry_after_s, retryable


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
    """The engine's model or adapter; None: the one that serves the release."""
    once: bool = False
    """Whether it is asked no second time where the first try fails."""


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


class Backend(Protocol):
    """Where a release's model is served; no part of the release."""

    def stream(self, request: EngineRequest) -> AsyncGenerator[EnginePiece, None]:
        """The answer's pieces; closing the generator lets the backend stop.

        Raises:
            EngineError: at any point.
        """
        ...

    async def healthy(self) -> bool:
        """Whether it answers."""
        ...

    @property
    def alive(self) -> bool:
        """Whether there is any use in asking; False: it must be started again."""
        ...

    @property
    def pid(self) -> int | None:
        """Process id of an engine of our own."""
        ...

    @property
    def url(self) -> str:
        """Where it is; the first of several."""
        ...

    def state(self) -> dict[str, Any]:
        """What operators see of it, as JSON values; no secrets."""
        ...

    async def restart(self) -> None:
        """Start it again after it ended.

        Raises:
            SerinError: it does not start.
        """
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    async def close(self) -> None:
        """End it, or let go of it."""
        ...
