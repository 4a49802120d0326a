"""Decoding with a causal language model on this machine: batches for evaluation, streams for the endpoint.

One ``Decoder`` does both.  Its rows decode together, one token each per step, over one key-value cache; rows join
at any step (their prompts are run once, padded on the left) and leave when they finish, so that evaluation keeps
its batch full and the endpoint takes new requests in while others are being answered.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from serin.core.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MAX_ROWS = 32
UNLIMITED = 1 << 20
"""Context of a model that names none, tokens."""
INCOMPLETE = "\ufffd"
"""What a decoder writes for bytes that are not yet a character."""


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


@dataclass(eq=False)
class Row:
    """One answer being decoded."""

    prompt: list[int]
    """Token ids."""
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    tokens: list[int] = field(default_factory=list)
    """What was decoded so far, without the end token."""
    finish_reason: str | None = None
    """None while it goes on; setting it takes the row out at the next step."""
    sampler: "torch.Generator | None" = None


class Generator:
    """A model with its tokenizer."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_context = int(getattr(model.config, "max_position_embeddings", 0) or UNLIMITED)
        self.end_ids = _end_ids(model, tokenizer)

    @classmethod
    def load(cls, model_dir: Path, num_threads: int | None = None) -> "Generator":
        """Load a Hugging Face model folder in float32, on the accelerator where there is one.

        Nothing is downloaded, no code from the folder runs, and only safetensors weights are read.

        Args:
            model_dir: holds config.json, *.safetensors and the tokenizer with its chat template.
            num_threads: CPU threads of the whole process; None leaves it alone.

        Raises:
            InputError: the folder is no such model.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        _check_folder(model_dir)
        transformers_logging.disable_progress_bar()
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        offline: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(model_dir, **offline)
            model = AutoModelForCausalLM.from_pretrained(
                model_dir, use_safetensors=True, dtype=torch.float32, **offline
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise InputError(f"{model_dir} cannot be loaded as a causal language model: {error}") from error
        if not tokenizer.chat_template:
            raise InputError(f"The tokenizer in {model_dir} has no chat template: add chat_template.jinja to it.")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(cast(Any, model).to(device).eval(), tokenizer)

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a prompt: the messages through the chat template, open for the assistant's turn."""
        ids = self.tokenizer.apply_chat_template(
            list(messages), tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return [int(token) for token in cast(list[int], ids)]

    def row(
        self, messages: Sequence[dict[str, str]], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Row:
        """A row for a decoder; its answer is cut where the model's context ends.

        Raises:
            InputError: the prompt alone fills the model's context.
        """
        prompt = self.encode(messages)
        room = self.max_context - len(prompt)
        if room < 1:
            raise InputError(
                f"The prompt has {len(prompt)} tokens and the model's context {self.max_context}: "
                "shorten the conversation or its passages."
            )
        return Row(prompt, min(max_new_tokens, room), temperature, seed)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, without special tokens and without a cut-off character at the end."""
        return self._text(tokens).rstrip(INCOMPLETE)

    def generate(
        self,
        batch: Sequence[Sequence[dict[str, str]]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        max_rows: int = MAX_ROWS,
    ) -> list[Generation]:
        """Answers to many conversations, in their order; the same arguments give the same answers.

        A prompt that fills the model's context gets an empty answer that ends by length, as one that no user
        would get an answer to.

        Args:
            batch: messages of each conversation.
            max_new_tokens: longest answer, tokens.
            temperature: 0 is greedy.
            seed: of sampling; None is 0.
            max_rows: how many decode together.
        """
        rows: list[Row | None] = []
        for number, messages in enumerate(batch):
            try:
                row_seed = (seed or 0) + number
                rows.append(self.row(messages, max_new_tokens=max_new_tokens, temperature=temperature, seed=row_seed))
            except InputError as error:
                logger.warning("Conversation %d gets no answer: %s", number, error)
                rows.append(None)
        self._run([row for row in rows if row is not None], max_rows)
        return [self._generation(row) for row in rows]

    def stream(
        self,
        messages: Sequence[dict[str, str]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[Delta]:
        """One answer in pieces, each made of whole characters; closing the iterator stops the decoding.

        Args:
            messages: the conversation.
            max_new_tokens: longest answer, tokens.
            temperature: 0 is greedy.
            seed: of sampling; None is 0.
            stop: texts before which the answer ends.

        Raises:
            InputError: the prompt alone fills the model's context.
        """
        row = self.row(messages, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed or 0)
        decoder, text = Decoder(self), TextStream(self, stop)
        decoder.join([row])
        while True:
            delta = text.advance(row)
            if delta.text or delta.finish_reason:
                yield delta
            if delta.finish_reason:
                return
            decoder.step()

    def _run(self, rows: list[Row], max_rows: int) -> None:
        waiting = sorted(rows, key=lambda row: len(row.prompt))  # the longest are taken first, from the end
        decoder = Decoder(self)
        while waiting or decoder.rows:
            if waiting and len(decoder.rows) <= max_rows // 2:
                room = max_rows - len(decoder.rows)
                decoder.join(waiting[-room:])
                del waiting[-room:]
            decoder.step()

    def _generation(self, row: Row | None) -> Generation:
        if row is None:
            return Generation("", 0, 0, "length")
        return Generation(self.decode(row.tokens), len(row.prompt), len(row.tokens), row.finish_reason or "length")

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Decoder:
    """Rows that decode together over one cache; not thread-safe."""

    def __init__(self, generator: Generator) -> None:
        self.rows: list[Row] = []
        self._generator = generator
        self._model = generator.model
        self._cache: DynamicCache | None = None
        self._mask: torch.Tensor | None = None  # (rows, cached tokens): 0 where a row is padded

    def join(self, rows: Sequence[Row]) -> None:
        """Take rows in: run their prompts and decode the first token of each."""
        import torch
        from transformers import DynamicCache

        rows = [row for row in rows if row.finish_reason is None]
        if not rows:
            return
        device = self._model.device
        length = max(len(row.prompt) for row in rows)
        # the pad token's value is irrelevant, since the mask hides it
        tokens = torch.tensor([[0] * (length - len(row.prompt)) + row.prompt for row in rows], device=device)
        mask = torch.tensor([[0] * (length - len(row.prompt)) + [1] * len(row.prompt) for row in rows], device=device)
        cache = DynamicCache()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._forward(tokens, mask, positions, cache)
        self._merge(cache, mask)
        self.rows += rows
        self._choose(rows, logits)

    def step(self) -> None:
        """Decode one more token of every row; rows that are finished leave."""
        import torch

        self._leave()
        if not self.rows:
            return
        device = self._model.device
        assert self._cache is not None
        assert self._mask is not None
        tokens = torch.tensor([[row.tokens[-1]] for row in self.rows], device=device)  # (rows, 1)
        positions = torch.tensor([[len(row.prompt) + len(row.tokens) - 1] for row in self.rows], device=device)
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        self._choose(self.rows, self._forward(tokens, self._mask, positions, self._cache))

    def _forward(
        self, tokens: "torch.Tensor", mask: "torch.Tensor", positions: "torch.Tensor", cache: "DynamicCache"
    ) -> "torch.Tensor":
        """Logits of the last position, (rows, vocabulary); the cache grows in place."""
        import torch

        with torch.inference_mode():
            output = self._model(
                input_ids=tokens,
                attention_mask=None if bool(mask.all()) else mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return output.logits[:, -1].float()

    def _choose(self, rows: Sequence[Row], logits: "torch.Tensor") -> None:
        greedy = logits.argmax(-1).tolist()
        for row, best, scores in zip(rows, greedy, logits, strict=True):
            token = best if row.temperature <= 0 else _sample(row, scores)
            if token in self._generator.end_ids:
                row.finish_reason = "stop"
                continue
            row.tokens.append(token)
            if len(row.tokens) >= row.max_new_tokens:
                row.finish_reason = "length"

    def _merge(self, cache: "DynamicCache", mask: "torch.Tensor") -> None:
        import torch

        if self._cache is None or self._mask is None:
            self._cache, self._mask = cache, mask
            return
        length = max(self._mask.shape[1], mask.shape[1])
        for mine, new in zip(_layers(self._cache), _layers(cache), strict=True):
            mine.keys = torch.cat([_padded(mine.keys, length), _padded(new.keys, length)])
            mine.values = torch.cat([_padded(mine.values, length), _padded(new.values, length)])
        self._mask = torch.cat([_padded(self._mask[..., None], length), _padded(mask[..., None], length)])[..., 0]

    def _leave(self) -> None:
        """Drop finished rows, and the columns in which every row that stays is padded."""
        import torch

        kept = [number for number, row in enumerate(self.rows) if row.finish_reason is None]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[number] for number in kept]
        if not kept or self._cache is None or self._mask is None:
            self._cache = self._mask = None
            return
        index = torch.tensor(kept, device=self._mask.device)
        mask = self._mask[index]
        start = int(mask.any(0).int().argmax())
        self._mask = mask[:, start:]
        for layer in _layers(self._cache):
            layer.keys = layer.keys[index, :, start:]
            layer.values = layer.values[index, :, start:]


class TextStream:
    """Turns a row's tokens into text as they come: whole characters only, and nothing past a stop text."""

    def __init__(self, generator: Generator, stop: Sequence[str] = ()) -> None:
        self._generator, self._stop = generator, tuple(text for text in stop if text)
        self._start = 0  # where the window begins that is decoded again
        self._read = 0  # tokens whose text was taken
        self._held = ""  # text that may be the beginning of a stop text

    def advance(self, row: Row) -> Delta:
        """The text since the last call; carries the finish reason once the row is finished."""
        self._held += self._new_text(row.tokens, final=row.finish_reason is not None)
        found = min((at for text in self._stop if (at := self._held.find(text)) >= 0), default=-1)
        if found >= 0:
            row.finish_reason, text, self._held = "stop", self._held[:found], ""
        else:
            keep = 0 if row.finish_reason else self._maybe_stop()
            cut = len(self._held) - keep
            text, self._held = self._held[:cut], self._held[cut:]
        return Delta(text, row.finish_reason, len(row.prompt), len(row.tokens))

    def _new_text(self, tokens: list[int], final: bool) -> str:
        # Tokens are decoded together with the ones before, because spaces and joined characters depend on them.
        before = self._generator._text(tokens[self._start : self._read])
        text = self._generator._text(tokens[self._start :])
        if final:
            return text.rstrip(INCOMPLETE)[len(before) :]
        if text.endswith(INCOMPLETE) or len(text) <= len(before):
            return ""
        self._start, self._read = self._read, len(tokens)
        return text[len(before) :]

    def _maybe_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = max((len(text) for text in self._stop), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-size:]) for text in self._stop):
                return size
        return 0


def _check_folder(model_dir: Path) -> None:
    if not (model_dir / "config.json").is_file():
        raise InputError(f"{model_dir} holds no config.json: give the folder of a Hugging Face model.")
    if not any(model_dir.glob("*.safetensors")):
        raise InputError(
            f"{model_dir} holds no safetensors weights: convert the model (save_pretrained writes them) first."
        )


def _end_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    configured: Any = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in [*ids, tokenizer.eos_token_id] if token is not None)


def _layers(cache: "DynamicCache") -> list[Any]:
    """The cache's layers, each with keys and values of (rows, heads, tokens, width).

    Raises:
        InputError: the model keeps another kind of state.
    """
    from transformers.cache_utils import DynamicLayer

    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer):
            raise InputError(f"A model with {type(layer).__name__} cannot be decoded here: use a plain transformer.")
    return list(cache.layers)


def _sample(row: Row, scores: "torch.Tensor") -> int:
    import torch

    if row.sampler is None:
        row.sampler = torch.Generator().manual_seed(row.seed)
    weights = torch.softmax(scores.cpu() / row.temperature, dim=-1)
    return int(torch.multinomial(weights, 1, generator=row.sampler))


def _padded(tensor: "torch.Tensor", length: int) -> "torch.Tensor":
    """The tensor with zeros before its second last dimension, up to a length."""
    import torch

    return torch.nn.functional.pad(tensor, (0, 0, length - tensor.shape[-2], 0))
