"""Constrained decoding: which tokens may come next for an answer to be the JSON that was asked for, by llguidance.

White space between JSON's tokens is not allowed, since models waste their tokens on it.  An answer that ends by
length is a beginning of valid JSON and no more.
"""

import json
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from serin.core.errors import InputError

if TYPE_CHECKING:
    import torch
    from llguidance import LLMatcher

    from serin.core.generation.generator import Generator

MAX_GRAMMARS = 64
"""Compiled schemas that are kept."""


class FormatError(InputError):
    """A response format that no answer can be held to; the text says why."""


class JsonConstraint:
    """Keeps one answer to a grammar; it follows the answer's tokens."""

    def __init__(self, matcher: "LLMatcher", vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def allowed(self) -> "torch.Tensor":
        """What may come next, (vocabulary,) of bool.

        Raises:
            FormatError: the grammar became too complex to follow.
        """
        import numpy as np
        import torch

        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        bits = np.unpackbits(packed, count=min(self._vocab_size, 8 * len(packed)), bitorder="little").view(np.bool_)
        if len(bits) < self._vocab_size:
            bits = np.concatenate((bits, np.zeros(self._vocab_size - len(bits), np.bool_)))
        return torch.from_numpy(bits)

    def accept(self, token: int) -> None:
        """Take a token in.

        Raises:
            FormatError: it was not allowed, or the grammar became too complex to follow.
        """
        self._matcher.consume_token(token)
        self._check()

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may come."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise FormatError(f"cannot be followed: {_first_line(self._matcher.get_error())}")


class Constraints:
    """Compiles response formats for one model; thread-safe."""

    def __init__(self, generator: "Generator") -> None:
        from llguidance.hf import from_tokenizer

        tokenizer: Any = generator.tokenizer
        self._vocab_size = generator.vocab_size
        try:
            self._tokenizer = from_tokenizer(
                tokenizer, n_vocab=max(self._vocab_size, len(tokenizer)), eos_token=sorted(generator.end_ids)
            )
        except ValueError as error:
            raise FormatError(f"cannot be followed with this model's tokenizer: {_first_line(str(error))}") from error
        self._grammars: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def constraint(self, response_format: dict[str, Any]) -> JsonConstraint:
        """A constraint for one answer.

        Args:
            response_format: OpenAI's ``{"type": "json_object"}`` or ``{"type": "json_schema", "json_schema": ...}``.

        Raises:
            FormatError: no answer can keep to it, or it uses what cannot be enforced.
        """
        schema: Any = {"type": "object"}
        if response_format["type"] == "json_schema":
            schema = response_format["json_schema"].get("schema", True)
        key = json.dumps(schema)
        with self._lock:
            matcher = self._grammars.get(key)
            if matcher is None:
                matcher = self._grammars[key] = self._compiled(schema)
            self._grammars.move_to_end(key)
            while len(self._grammars) > MAX_GRAMMARS:
                self._grammars.popitem(last=False)
        return JsonConstraint(matcher.deep_copy(), self._vocab_size)

    def _compiled(self, schema: Any) -> "LLMatcher":
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})
        except ValueError as error:
            raise FormatError(f"cannot be enforced: {_first_line(str(error))}") from error
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise FormatError(f"cannot be enforced: {_first_line(matcher.get_error())}")
        return matcher


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason was given"])[0].rstrip(".")
