"""The tiny base: its tokenizer, its first weights, what it reads."""

from typing import Any

import pytest
import torch
from lamps import SMALL_TINY, conversation

from serin.core.errors import InputError
from serin.core.generation import Generator
from serin.core.records import Document
from serin.finetune.tiny import SPECIAL_TOKENS, corpus_of, pretraining_samples, train_tokenizer, write_untrained

CHATS = [conversation(number, passages=2) for number in range(30)]


def test_numbers_and_field_names_are_single_tokens() -> None:
    texts = ["A lamp. Price: 42 EUR. Stock: 999. Delay: 7 days."] * 20
    config = SMALL_TINY.model_copy(update={"vocab_size": 3072})
    tokenizer = train_tokenizer(texts, config)
    tokens = [tokenizer.decode([token]) for token in tokenizer("x Price: 42 EUR. Stock: 999.")["input_ids"]]
    assert tokens == ["x", " Price:", " 42", " EUR", ".", " Stock:", " 999", "."]


@pytest.mark.parametrize("copying_start", [True, False])
def test_the_copying_start_repeats_what_it_has_seen(copying_start: bool, tmp_path: Any) -> None:
    from transformers import LlamaForCausalLM

    config = SMALL_TINY.model_copy(
        update={"hidden_size": 128, "num_heads": 2, "vocab_size": 600, "copying_start": copying_start}
    )
    tokenizer = train_tokenizer(corpus_of([], CHATS), config)
    write_untrained(tmp_path, tokenizer, config, seed=0)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    once = torch.randint(len(SPECIAL_TOKENS), len(tokenizer), (16, 30), generator=torch.Generator().manual_seed(1))
    twice = torch.cat([once, once], dim=1)  # (rows, tokens)
    with torch.no_grad():
        guesses = model(input_ids=twice).logits[:, 30:-1].argmax(-1)
    right = float((guesses == twice[:, 31:]).float().mean())
    assert right > 0.8 if copying_start else right < 0.2


def test_the_engine_reads_it_without_the_librarys_model(tmp_path: Any) -> None:
    tokenizer = train_tokenizer(corpus_of([], CHATS), SMALL_TINY)
    write_untrained(tmp_path, tokenizer, SMALL_TINY, seed=0)
    assert not hasattr(Generator.for_decoding(tmp_path), "model")  # as it is where the library's classes are needed
    assert Generator.load(tmp_path).forward is not None


def test_the_corpus_is_documents_and_conversations_without_roles() -> None:
    document = Document(id="d", title="Lamps", text="# Lamps\n\nWe sell lamps.\n\nGood ones.", source="lamps.md")
    assert corpus_of([document], [conversation(1)]) == [
        "# Lamps We sell lamps. Good ones.",
        "Lamp 1 costs 8 EUR.\nWhat does lamp 1 cost?\nLamp 1 costs 8 EUR.",
    ]


def test_a_long_document_is_cut_at_blank_lines_below_its_title() -> None:
    text = "# Lamps\n\n" + "\n\n".join(f"Paragraph {number}. " + "word " * 100 for number in range(5))
    corpus = corpus_of([Document(id="d", title="Lamps", text=text, source="lamps.md")], [])
    assert len(corpus) > 1
    assert all(piece.startswith("# Lamps Paragraph") for piece in corpus)


def test_a_corpus_without_text_is_refused() -> None:
    with pytest.raises(InputError, match="holds no text"):
        corpus_of([], [])


def test_copies_beside_the_corpus_are_learned_the_second_time(tokenizer: Any) -> None:
    texts = corpus_of([], CHATS)
    config = SMALL_TINY.model_copy(update={"copy_fraction": 0.25})
    samples = pretraining_samples(tokenizer, texts, config, max_length=256, seed=0)
    assert len(samples) == 30 + 10
    for copy in samples[30:]:
        half = len(copy.ids) // 2
        assert copy.ids[:half] == copy.ids[half:]
        assert copy.learned == [False] * half + [True] * half
        assert min(copy.ids) >= len(SPECIAL_TOKENS)
    assert samples == pretraining_samples(tokenizer, texts, config, max_length=256, seed=0)
