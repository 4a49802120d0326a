"""Samples and batches."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lamps import conversation

from serin.core.errors import InputError
from serin.core.prompts import Prompt, render
from serin.core.records import Conversation, Message
from serin.finetune.data import (
    IGNORED,
    SampleFile,
    batches_from,
    encode_conversations,
    encode_texts,
    epoch_batches,
    require_trainable,
    save_samples,
)

LENGTHS = st.lists(st.integers(2, 90), min_size=1, max_size=60)


def learned_text(tokenizer: Any, sample: Any) -> str:
    return tokenizer.decode([token for token, flag in zip(sample.ids, sample.learned, strict=True) if flag])


def test_only_the_answers_and_their_end_are_learned(tokenizer: Any) -> None:
    chat = Conversation(
        id="two",
        messages=(
            Message(role="user", content="Hello?"),
            Message(role="assistant", content="Hi."),
            Message(role="user", content="Price?"),
            Message(role="assistant", content="7 EUR."),
        ),
        context=("A lamp costs 7 EUR.",),
    )
    [sample] = encode_conversations(tokenizer, [chat], Prompt(), 256).samples
    assert learned_text(tokenizer, sample) == "Hi.<|end|>7 EUR.<|end|>"


def test_a_sample_starts_with_exactly_what_is_served(tokenizer: Any) -> None:
    chat = conversation(3)
    [sample] = encode_conversations(tokenizer, [chat], Prompt(), 256).samples
    messages = render(Prompt(), chat.messages[:-1], chat.context)
    served = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert sample.ids[: len(served)] == list(served)
    assert not any(sample.learned[: len(served)])
    assert all(sample.learned[len(served) :])


def test_a_long_conversation_loses_context_and_never_its_answer(tokenizer: Any) -> None:
    long, short = conversation(5, passages=60), conversation(5)
    encoded = encode_conversations(tokenizer, [long, short], Prompt(), 128)
    assert encoded.num_shortened == 1
    assert all(len(sample.ids) <= 128 for sample in encoded.samples)
    answers = {learned_text(tokenizer, sample) for sample in encoded.samples}
    assert answers == {"Lamp 5 costs 12 EUR.<|end|>"}


def test_a_long_dialogue_loses_its_early_turns(tokenizer: Any) -> None:
    turns = [
        Message(role=role, content=f"{role} turn {number} about lamps and prices")  # type: ignore[arg-type]
        for number in range(12)
        for role in ("user", "assistant")
    ]
    chat = Conversation(id="long", messages=tuple(turns))
    [sample] = encode_conversations(tokenizer, [chat], Prompt(), 200).samples
    assert len(sample.ids) <= 200
    assert learned_text(tokenizer, sample).endswith("assistant turn 11 about lamps and prices<|end|>")


def test_an_answer_that_cannot_fit_is_left_out_and_counted(tokenizer: Any) -> None:
    chat = Conversation(
        id="huge", messages=(Message(role="user", content="?"), Message(role="assistant", content="lamp " * 400))
    )
    encoded = encode_conversations(tokenizer, [chat], Prompt(), 128)
    assert (encoded.samples, encoded.num_left_out) == ([], 1)
    with pytest.raises(InputError, match="longer than max_length=128"):
        require_trainable(encoded, 128)


def test_blank_answers_leave_nothing_to_train(tokenizer: Any) -> None:
    chat = Conversation(id="b", messages=(Message(role="user", content="?"), Message(role="assistant", content=" ")))
    encoded = encode_conversations(tokenizer, [chat], Prompt(), 128)
    with pytest.raises(InputError, match="no trainable token"):
        require_trainable(encoded, 128)


def test_a_template_that_refuses_the_messages_is_named(tiny_folder: Path) -> None:
    from transformers import AutoTokenizer

    strict = AutoTokenizer.from_pretrained(tiny_folder)
    strict.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(InputError, match=r"chat template refuses conversation 'c1': no system turns"):
        encode_conversations(strict, [conversation(1)], Prompt(), 128)


def test_texts_are_cut_without_losing_a_token(tokenizer: Any) -> None:
    text = "Lamp 1 costs 8 EUR. " * 40
    samples = encode_texts(tokenizer, [text], 64)
    assert tokenizer.decode([token for sample in samples for token in sample.ids]) == text + "<|end|>"
    assert max(len(sample.ids) for sample in samples) == 64


def test_any_text_survives_the_tokenizer(tokenizer: Any) -> None:
    text = "Café 1 234,50 € — naïve 日本語 🙂\n\ttabs"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_batch_pads_on_the_right_and_ignores_padding(tokenizer: Any, tmp_path: Path) -> None:
    encoded = encode_conversations(tokenizer, [conversation(1), conversation(2, passages=3)], Prompt(), 256)
    save_samples(tmp_path / "samples", encoded.samples)
    samples = SampleFile(tmp_path / "samples")
    ids, labels = samples.batch([0, 1], pad_id=0)
    length = len(encoded.samples[0].ids)
    assert ids.shape == labels.shape == (2, len(encoded.samples[1].ids))
    assert ids[0, :length].tolist() == encoded.samples[0].ids
    assert (labels[0, length:] == IGNORED).all()
    assert int((labels[0] != IGNORED).sum()) == encoded.samples[0].num_learned


@given(LENGTHS, st.integers(16, 200), st.integers(0, 5))
def test_every_sample_is_in_one_batch_within_the_budget(lengths: list[int], budget: int, epoch: int) -> None:
    batches = epoch_batches(lengths, budget, seed=1, epoch=epoch)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


@given(LENGTHS, st.integers(0, 70))
def test_batches_from_the_middle_are_those_of_an_unbroken_run(lengths: list[int], start: int) -> None:
    unbroken = list(itertools.islice(batches_from(lengths, 100, 1, 0), start + 5))
    assert list(itertools.islice(batches_from(lengths, 100, 1, start), 5)) == unbroken[start:]


def test_order_depends_on_seed_and_epoch() -> None:
    lengths = list(range(2, 60))
    first = epoch_batches(lengths, 100, seed=1, epoch=0)
    assert first == epoch_batches(lengths, 100, seed=1, epoch=0)
    assert first != epoch_batches(lengths, 100, seed=2, epoch=0)
    assert first != epoch_batches(lengths, 100, seed=1, epoch=1)
