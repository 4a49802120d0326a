"""A model with its tokenizer: whole answers to many conversations, one answer as a stream, rows for a decoder."""

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from serin.core.errors import InputError
from serin.core.generation.decoder import Decoder
from serin.core.generation.rows import UNLIMITED, Constraint, Delta, Generation, Row
from serin.core.generation.text import (
    INCOMPLETE,
    ByteText,
    Detokenizer,
    TextStream,
    Vocabulary,
    WindowText,
    decoded,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from serin.core.generation.constraints import Constraints
    from serin.core.generation.llama import LlamaForward
    from serin.core.generation.lora import Adapter

logger = logging.getLogger(__name__)

MAX_ROWS = 32


class Generator:
    """A model with its tokenizer."""

    max_context: int
    """Tokens of prompt and answer together."""
    end_ids: frozenset[int]
    """Tokens that end an answer."""
    model: "PreTrainedModel"
    """Absent where the generator is for decoding only."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_context = int(getattr(model.config, "max_position_embeddings", 0) or UNLIMITED)
        configured: Any = getattr(model.generation_config, "eos_token_id", None)
        self.end_ids = _end_ids(configured, tokenizer)

    @classmethod
    def for_decoding(cls, model_dir: Path, num_threads: int | None = None) -> "Generator":
        """Like ``load``, without the library's model where the weights can be read directly.

        That saves the library's modules: two thirds of the time to start and 150 MiB.
        """
        from serin.core.generation.bare import load_bare

        _check_folder(model_dir)
        bare = load_bare(model_dir, num_threads)
        if bare is None:
            return cls.load(model_dir, num_threads)
        generator = cls.__new__(cls)
        generator.tokenizer, generator.max_context = bare.tokenizer, bare.max_context
        generator.end_ids = _end_ids(bare.end_ids, bare.tokenizer)
        generator.forward = bare.forward
        generator.vocab_size = bare.forward.vocab_size
        return generator

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
        _check_folder(model_dir)  # first of all: the imports take seconds
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as transformers_logging

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

    @cached_property
    def forward(self) -> "LlamaForward | None":
        """The model's fast forward pass; None where the library's own is used."""
        from serin.core.generation.llama import LlamaForward

        return LlamaForward.of(self.model)

    @cached_property
    def constraints(self) -> "Constraints":
        """Compiles response formats; making it takes about a second for a large vocabulary.

        Raises:
            FormatError: the tokenizer is of a kind that no constraint can follow.
        """
        from serin.core.generation.constraints import Constraints

        return Constraints(self)

    @cached_property
    def vocab_size(self) -> int:
        """Rows of the model's embeddings."""
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.weight.shape[0])

    def adapter(self, name: str, folder: Path) -> "Adapter":
        """Read a LoRA adapter of this model.

        Raises:
            InputError: it is none that can be applied, or the model is not of a known architecture.
        """
        from serin.core.generation.lora import load_adapter

        if self.forward is None:
            kind = getattr(self.model.config, "model_type", "unknown")
            raise InputError(f"Adapters cannot be applied to a model of type {kind}: merge the adapter into the model.")
        return load_adapter(self.forward, name, folder)

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a prompt: the messages through the chat template, open for the assistant's turn."""
        ids = self.tokenizer.apply_chat_template(
            list(messages), tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return [int(token) for token in cast(list[int], ids)]

    def row(
        self,
        messages: Sequence[dict[str, str]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        top_p: float = 1.0,
        logprobs: int | None = None,
        constraint: Constraint | None = None,
        adapter: "Adapter | None" = None,
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
        return Row(
            prompt,
            min(max_new_tokens, room),
            temperature,
            seed,
            top_p=top_p,
            logprobs=logprobs,
            constraint=constraint,
            adapter=adapter,
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, without special tokens and without a cut-off character at the end."""
        return decoded(self.tokenizer, tokens).rstrip(INCOMPLETE)

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

        Raises:
            ArithmeticError: the model's scores are not numbers.
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
            ArithmeticError: the model's scores are not numbers.
        """
        row = self.row(messages, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed or 0)
        decoder, text = Decoder(self), TextStream(self, stop)
        decoder.join([row])
        while True:
            decoder.step()
            if row.error is not None:
                raise row.error
            delta = text.advance(row)
            if delta.text or delta.finish_reason:
                yield delta
            if delta.finish_reason:
                return

    def detokenizer(self) -> Detokenizer:
        """For one answer."""
        return WindowText(self.tokenizer) if self._vocabulary is None else ByteText(self._vocabulary)

    def token_entry(self, token: int, logprob: float) -> dict[str, Any]:
        """A token as OpenAI's log-probabilities show it; bytes only where the tokenizer tells them."""
        if self._vocabulary is None:
            return {"token": decoded(self.tokenizer, [token]), "logprob": logprob, "bytes": None}
        data = self._vocabulary.bytes_of(token)
        text = data.decode("utf-8", "replace") if data else str(self.tokenizer.convert_ids_to_tokens(token))
        return {"token": text, "logprob": logprob, "bytes": list(data)}

    @cached_property
    def _vocabulary(self) -> Vocabulary | None:
        return Vocabulary.of(self.tokenizer)

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
        if row.error is not None:
            raise row.error
        return Generation(self.decode(row.tokens), len(row.prompt), len(row.tokens), row.finish_reason or "length")


def _check_folder(model_dir: Path) -> None:
    if not (model_dir / "config.json").is_file():
        raise InputError(f"{model_dir} holds no config.json: give the folder of a Hugging Face model.")
    if not any(model_dir.glob("*.safetensors")):
        raise InputError(
            f"{model_dir} holds no safetensors weights: convert the model (save_pretrained writes them) first."
        )


def _end_ids(configured: Any, tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in [*ids, tokenizer.eos_token_id] if token is not None)
