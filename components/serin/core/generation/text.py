"""Token ids into text as they come: whole characters only, and nothing past a stop text."""

import codecs
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from serin.core.generation.rows import Delta, Row, TokenScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from serin.core.generation.generator import Generator

INCOMPLETE = "\ufffd"
"""What a decoder writes for bytes that are not yet a character."""
PROBE = "Ça va, 12,50 € 🚲 日本?  It's\n\tok"


class Detokenizer(Protocol):
    """Text of one answer's tokens, piece by piece."""

    def advance(self, tokens: Sequence[int], final: bool) -> str:
        """Text that is new since the last call; without ``final`` whole characters only."""
        ...


class Vocabulary:
    """The bytes of a byte-level tokenizer's tokens; ``of`` gives None for other tokenizers."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer: Any = tokenizer
        self._bytes = {character: byte for byte, character in _byte_characters().items()}
        self._hidden = {number for number, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        self._known: dict[int, bytes] = {}

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "Vocabulary | None":
        """The tokenizer's, if its decoder does nothing but join bytes."""
        from tokenizers.decoders import ByteLevel

        if not isinstance(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None), ByteLevel):
            return None
        vocabulary = cls(tokenizer)
        probe = tokenizer.encode(PROBE)
        joined = b"".join(map(vocabulary.bytes_of, probe)).decode("utf-8", "replace")
        return vocabulary if joined == decoded(tokenizer, probe) else None

    def bytes_of(self, token: int) -> bytes:
        """A token's bytes; none for a special one."""
        known = self._known.get(token)
        if known is None:
            text = "" if token in self._hidden else self._tokenizer.convert_ids_to_tokens(token) or ""
            joined = [self._bytes.get(character) for character in text]
            known = text.encode() if None in joined else bytes(byte for byte in joined if byte is not None)
            self._known[token] = known
        return known


class ByteText:
    """Text by joining bytes: a step takes a microsecond."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._bytes_of = vocabulary.bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._read = 0

    def advance(self, tokens: Sequence[int], final: bool) -> str:
        """See ``Detokenizer``."""
        data = b"".join([self._bytes_of(token) for token in tokens[self._read :]])
        self._read = len(tokens)
        if not final:
            return self._decoder.decode(data)
        whole = self._decoder.decode(data)
        return whole if self._decoder.getstate()[0] else whole.rstrip(INCOMPLETE)


class WindowText:
    """Text by decoding a window of tokens again, since spaces and joined characters depend on those before."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._start = 0  # where the window begins that is decoded again
        self._read = 0  # tokens whose text was taken

    def advance(self, tokens: Sequence[int], final: bool) -> str:
        """See ``Detokenizer``."""
        before = decoded(self._tokenizer, tokens[self._start : self._read])
        text = decoded(self._tokenizer, tokens[self._start :])
        if final:
            return text.rstrip(INCOMPLETE)[len(before) :]
        if text.endswith(INCOMPLETE) or len(text) <= len(before):
            return ""
        self._start, self._read = self._read, len(tokens)
        return text[len(before) :]


class TextStream:
    """Turns a row's tokens into pieces of an answer."""

    def __init__(self, generator: "Generator", stop: Sequence[str] = ()) -> None:
        self._generator, self._stop = generator, tuple(text for text in stop if text)
        self._text = generator.detokenizer()
        self._held = ""  # text that may be the beginning of a stop text
        self._given = 0  # characters
        self._scored: list[tuple[int, dict[str, Any]]] = []  # entries with where their token's text begins
        self._num_scored = 0

    def advance(self, row: Row) -> Delta:
        """The text since the last call; carries the finish reason once the row is finished."""
        start = self._given + len(self._held)
        self._held += self._text.advance(row.tokens, row.finish_reason is not None)
        if row.logprobs is not None:
            self._score(row, start)
        found = min((at for text in self._stop if (at := self._held.find(text)) >= 0), default=-1)
        if found >= 0:
            row.finish_reason, text, self._held = "stop", self._held[:found], ""
        elif row.finish_reason is not None or not self._stop:
            text, self._held = self._held, ""
        else:
            cut = len(self._held) - self._maybe_stop()
            text, self._held = self._held[:cut], self._held[cut:]
        self._given += len(text)
        return Delta(text, row.finish_reason, len(row.prompt), len(row.tokens), self._entries(text, row))

    def _score(self, row: Row, start: int) -> None:
        for token, scores in zip(row.tokens[self._num_scored :], row.scores[self._num_scored :], strict=False):
            self._scored.append((start, self._entry(token, scores)))
        self._num_scored = len(row.scores)

    def _entries(self, text: str, row: Row) -> tuple[dict[str, Any], ...]:
        """Entries of the tokens whose text begins in what was given; at the end of an answer also the silent ones."""
        if not self._scored or not (text or row.finish_reason):
            return ()
        ready = [entry for start, entry in self._scored if start < self._given or (row.finish_reason == "length")]
        self._scored = [] if row.finish_reason else self._scored[len(ready) :]
        return tuple(ready)

    def _entry(self, token: int, scores: TokenScores) -> dict[str, Any]:
        """OpenAI's entry of ``choice.logprobs.content``."""
        entry = self._generator.token_entry(token, scores.chosen)
        entry["top_logprobs"] = [self._generator.token_entry(other, score) for other, score in scores.alternatives]
        return entry

    def _maybe_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = max((len(text) for text in self._stop), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-size:]) for text in self._stop):
                return size
        return 0


def decoded(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int]) -> str:
    """Text of token ids, without special tokens; a cut-off character at the end is a replacement character."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


@cache
def _byte_characters() -> dict[int, str]:
    """Byte-level BPE's printable stand-in for each byte (Radford et al. 2019): itself where it is printable."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
