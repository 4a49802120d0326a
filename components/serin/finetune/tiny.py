"""The base ``serin://tiny``: a byte-level BPE tokenizer trained on the corpus and a small Llama to pretrain."""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serin.core.errors import InputError
from serin.core.prompts import DEFAULT_SYSTEM
from serin.core.records import Conversation, Document
from serin.finetune.config import TinyConfig
from serin.finetune.copying import start_copying
from serin.finetune.data import Sample, encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
PIECES = r" ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+| ?\p{L}+:?|\s+"
NUM_NUMBERS, ALWAYS_COUNT = 1000, 200
PIECE_CHARS = 1000
SHORTEST_COPY, LONGEST_COPY = 6, 40
SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def corpus_of(documents: Iterable[Document], conversations: Iterable[Conversation]) -> list[str]:
    """What the tiny base reads: documents, and training conversations with their passages, as running text.

    Raises:
        InputError: there is no text at all.
    """
    texts = [piece for document in documents for piece in _pieces(document)]
    texts += [plain_text(conversation) for conversation in conversations]
    if not texts:
        raise InputError("The corpus holds no text: give documents or conversations to pretrain serin://tiny on.")
    return texts


def plain_text(conversation: Conversation) -> str:
    """A conversation without roles: its passages, then its turns, a line each."""
    passages = (_flat(passage) for passage in conversation.context)
    return "\n".join([*passages, *(message.content for message in conversation.messages)])


def train_tokenizer(texts: Sequence[str], config: TinyConfig) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer of the corpus; any text can be encoded and comes back exactly.

    Numbers of up to three digits are one token each, and a word keeps its colon: "Price: 42" is two tokens, so that
    the value's predecessor names it, which is what copying heads look for.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    always = [DEFAULT_SYSTEM, *(f" {number}" for number in range(NUM_NUMBERS))] * ALWAYS_COUNT
    tokenizer.train_from_iterator([*texts, *always], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=config.max_positions,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def pretraining_samples(
    tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str], config: TinyConfig, max_length: int, seed: int
) -> list[Sample]:
    """The corpus, and random copies beside it: random tokens, then the same again, of which the second are learned."""
    samples = encode_texts(tokenizer, texts, max_length)
    generator = random.Random(f"copies/{seed}")  # noqa: S311 (exercises, not secrets)
    for _ in range(round(len(samples) * config.copy_fraction / (1 - config.copy_fraction))):
        length = generator.randint(SHORTEST_COPY, LONGEST_COPY)
        ids = [generator.randrange(len(SPECIAL_TOKENS), len(tokenizer)) for _ in range(length)]
        samples.append(Sample(ids * 2, [False] * length + [True] * length))
    return samples


def write_untrained(folder: Path, tokenizer: "PreTrainedTokenizerFast", config: TinyConfig, seed: int) -> None:
    """Write the model with its initial weights, which the seed decides, and the tokenizer."""
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils import logging as transformers_logging

    torch.manual_seed(seed)
    model = LlamaForCausalLM(llama_config(tokenizer, config))
    if config.copying_start:
        start_copying(model)
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def llama_config(tokenizer: "PreTrainedTokenizerFast", config: TinyConfig) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=True,
        attention_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )


def _pieces(document: Document) -> list[str]:
    """The document on one line; a long one cut at blank lines, each piece below the title."""
    pieces: list[str] = []
    for paragraph in document.text.split("\n\n"):
        text = _flat(paragraph)
        if pieces and len(pieces[-1]) + len(text) < PIECE_CHARS:
            pieces[-1] = f"{pieces[-1]} {text}".strip()
        elif text:
            pieces.append(f"# {document.title} {text}" if pieces else text)
    return pieces


def _flat(text: str) -> str:
    return " ".join(text.split())
