"""Fixtures of the fine-tune stage's tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lamps import SMALL_TINY, Inputs, MakeInputs, Recorder, conversation

from serin.core.artifacts import ArtifactStore, Built
from serin.core.prompts import Prompt
from serin.core.records import Conversation, Document, write_jsonl
from serin.finetune.tiny import corpus_of, train_tokenizer, write_untrained


@pytest.fixture
def make_inputs(tmp_path: Path) -> MakeInputs:
    """Make a store with a dataset of these training conversations and one document."""

    def make(train: Sequence[Conversation] | None = None, folder: str = "store") -> Inputs:
        store = ArtifactStore(str(tmp_path / folder), cache=tmp_path / "cache")
        chosen = [conversation(number) for number in range(40)] if train is None else train

        def write_dataset(output: Path, scratch: Path) -> Built:
            write_jsonl(output / "train.jsonl", chosen)
            write_jsonl(output / "validation.jsonl", [conversation(number) for number in range(40, 46)])
            write_jsonl(output / "test.jsonl", [conversation(number) for number in range(46, 50)])
            return Built()

        def write_documents(output: Path, scratch: Path) -> Built:
            text = "We sell lamps.\n\nEvery lamp has a price in EUR."
            write_jsonl(output / "documents.jsonl", [Document(id="d1", title="Lamps", text=text, source="lamps.md")])
            return Built()

        made = {}
        for kind, build in (("dataset", write_dataset), ("documents", write_documents)):
            inputs = {"rows": str(len(chosen)), "first": str(chosen[:1])}
            made[kind], _ = store.produce(kind, build, inputs=inputs, config={}, code="1")
        return Inputs(store, made["dataset"], made["documents"], Prompt(), Recorder())

    return make


@pytest.fixture
def inputs(make_inputs: MakeInputs) -> Inputs:
    """The stage's inputs with forty training conversations."""
    return make_inputs()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny base as a folder."""
    folder = tmp_path_factory.mktemp("tiny") / "base"
    texts = corpus_of([], [conversation(number) for number in range(40)])
    write_untrained(folder, train_tokenizer(texts, SMALL_TINY), SMALL_TINY, seed=0)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny_folder: Path) -> Any:
    """The tiny base's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder)
