"""What is decoded: a row for each answer, and the pieces and answers that come of it."""

import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from serin.core.generation.lora import Adapter

UNLIMITED = 1 << 20
"""Context of a model that names none, tokens."""


@dataclass(frozen=True)
class Generation:
    """One answer."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    """``stop``: the model ended it; ``length``: it reached the limit, or the prompt filled the context."""


@dataclass(frozen=True)
class Delta:
    """A piece of a streamed answer; the last one carries the finish reason."""

    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: tuple[dict[str, Any], ...] = ()
    """OpenAI's entries of ``choice.logprobs.content`` for the piece's tokens, where they were asked for."""


class Constraint(Protocol):
    """Which tokens may come next in one answer; it remembers the tokens that came."""

    def allowed(self) -> "torch.Tensor":
        """What may come next, (vocabulary,) of bool; an end token is allowed where the answer may end."""
        ...

    def accept(self, token: int) -> None:
        """Take a token in that was allowed."""
        ...

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may come."""
        ...


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities at one token, from the model's own distribution before temperature, top-p and constraints."""

    chosen: float
    alternatives: tuple[tuple[int, float], ...]
    """The likeliest tokens and theirs, best first."""


@dataclass(eq=False)
class Row:
    """One answer being decoded."""

    prompt: list[int]
    """Token ids.  Rows that share the very list (and the adapter) and join together share its computation."""
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    top_p: float = 1.0
    logprobs: int | None = None
    """Alternatives wanted at each token; None: no log-probabilities."""
    constraint: Constraint | None = None
    adapter: "Adapter | None" = None
    """Low-rank weights that this row adds to the model's."""
    tokens: list[int] = field(default_factory=list)
    """What was decoded so far, without the end token."""
    scores: list[TokenScores] = field(default_factory=list)
    """One for each token, where log-probabilities were asked for."""
    finish_reason: str | None = None
    """None while it goes on; setting it takes the row out at the next step."""
    error: Exception | None = None
    """Why it could not be decoded, with the finish reason ``error``."""
    _random: random.Random | None = None

    @property
    def position(self) -> int:
        """Of the newest token: how many tokens came before it."""
        return len(self.prompt) + len(self.tokens) - 1

    def another(self, number: int) -> "Row":
        """A row for another answer to the same prompt, with a seed of its own; a constraint would be shared."""
        return replace(
            self, seed=self.seed + number, tokens=[], scores=[], finish_reason=None, error=None, _random=None
        )

    def uniform(self) -> float:
        """The row's next random number in [0, 1): the seed decides, not the rows beside it."""
        if self._random is None:
            self._random = random.Random(self.seed)  # noqa: S311 (sampling, not secrets)
        return self._random.random()

    def fail(self, error: Exception) -> None:
        """End the row with an error."""
        self.error, self.finish_reason = error, "error"
