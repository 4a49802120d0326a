"""From artefacts to the sample files of a phase: what each objective reads, and how much of it could be used."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serin.core.digests import digest_of_text
from serin.core.errors import InputError
from serin.core.prompts import Prompt
from serin.core.records import Conversation, Document, read_jsonl
from serin.finetune.config import FinetuneConfig
from serin.finetune.data import (
    Encoded,
    SampleFile,
    encode_conversations,
    encode_texts,
    require_trainable,
    save_pairs,
    save_samples,
)
from serin.finetune.documents import public_documents
from serin.finetune.objectives import add_reference
from serin.finetune.preferences import encode_preferences, load_preferences, require_pairs

TRAIN, VALIDATION, COUNTS = "train.safetensors", "validation.safetensors", "counts.json"
NOUNS = {"sft": "conversations", "pretrain": "documents", "dpo": "pairs of answers"}
HELD_OUT = 20
"""Every twentieth document, by its id's digest, is kept for the validation of ``pretrain``."""


@dataclass(frozen=True)
class Preparation:
    """The samples of one objective."""

    config: FinetuneConfig
    prompt: Prompt
    dataset: Path
    """Folder of the dataset."""
    documents: Path
    """Folder of the documents."""

    @property
    def noun(self) -> str:
        """What is read, for people."""
        return NOUNS[self.config.objective]

    def check(self) -> None:
        """Refuse data without anything to learn, before anything is started.

        Raises:
            InputError: saying what is missing.
        """
        if self.config.objective == "dpo":
            load_preferences(self.dataset)
        elif self.config.objective == "pretrain":
            if not any(document.text.strip() for document in self._documents()):
                raise InputError("The documents have no trainable token: the objective pretrain needs their text.")
        else:
            answers = (m.content for c in self._split("train") for m in c.messages if m.role == "assistant")
            if not any(answer.strip() for answer in answers):
                raise InputError(
                    "The dataset has no trainable token: its train split needs conversations with answers."
                )

    def write(self, folder: Path, base: Path) -> None:
        """Write the samples and how many records had to give something up.

        Args:
            folder: made here.
            base: the model that training starts from: its tokenizer, and with ``dpo`` the reference.
        """
        from transformers import AutoConfig, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False, local_files_only=True)
        folder.mkdir()
        write = {"sft": self._conversations, "pretrain": self._texts, "dpo": self._pairs}[self.config.objective]
        counts = write(folder, tokenizer, base)
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
        for name in (TRAIN, VALIDATION):
            SampleFile(folder / name).require_embeddings(int(config.get_text_config().vocab_size))
        (folder / COUNTS).write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")

    def _conversations(self, folder: Path, tokenizer: Any, base: Path) -> dict[str, int]:
        train = encode_conversations(tokenizer, self._split("train"), self.prompt, self.config.max_length)
        require_trainable(train, self.config.max_length)
        some = self._split("validation")[: self.config.validation_samples]
        validation = encode_conversations(tokenizer, some, self.prompt, self.config.max_length)
        save_samples(folder / TRAIN, train.samples)
        save_samples(folder / VALIDATION, validation.samples)
        return _counts(len(train.samples), train.num_shortened, train.num_left_out)

    def _texts(self, folder: Path, tokenizer: Any, base: Path) -> dict[str, int]:
        documents = [document for document in self._documents() if document.text.strip()]
        held_out = [document for document in documents if _is_held_out(document)]
        train = [document for document in documents if not _is_held_out(document)]
        if not train:
            train, held_out = held_out, []
        samples = encode_texts(tokenizer, [document.text for document in train], self.config.max_length)
        require_trainable(Encoded(samples), self.config.max_length)
        some = [document.text for document in held_out[: self.config.validation_samples]]
        save_samples(folder / TRAIN, samples)
        save_samples(folder / VALIDATION, encode_texts(tokenizer, some, self.config.max_length) if some else [])
        return _counts(len(samples), 0, 0)

    def _pairs(self, folder: Path, tokenizer: Any, base: Path) -> dict[str, int]:
        train, held_out = load_preferences(self.dataset)
        pairs = encode_preferences(tokenizer, train, self.prompt, self.config.max_length)
        require_pairs(pairs, self.config.max_length)
        some = held_out[: self.config.validation_samples]
        save_pairs(folder / TRAIN, pairs.pairs)
        save_pairs(folder / VALIDATION, encode_preferences(tokenizer, some, self.prompt, self.config.max_length).pairs)
        self._add_references(base, [folder / TRAIN, folder / VALIDATION])
        return _counts(len(pairs.pairs), pairs.num_shortened, pairs.num_left_out)

    def _add_references(self, base: Path, files: Sequence[Path]) -> None:
        """The base's log-probabilities, once; after this the base itself is not needed beside the model."""
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging as transformers_logging

        is_gpu = self.config.device != "cpu" and torch.cuda.is_available()
        device, attention = ("cuda", "sdpa") if is_gpu else ("cpu", "eager")
        transformers_logging.disable_progress_bar()
        model: Any = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=torch.float32,
            attn_implementation=attention,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
        )
        model.to(torch.device(device))
        for path in files:
            add_reference(path, model, precision=self.config.precision, device=device)

    def _split(self, name: str) -> list[Conversation]:
        return read_jsonl(self.dataset / f"{name}.jsonl", Conversation)

    def _documents(self) -> list[Document]:
        return public_documents(self.documents)


def _counts(samples: int, shortened: int, left_out: int) -> dict[str, int]:
    return {"samples": samples, "samples_shortened": shortened, "samples_left_out": left_out}


def _is_held_out(document: Document) -> bool:
    return int(digest_of_text(document.id)[:8], 16) % HELD_OUT == 0
