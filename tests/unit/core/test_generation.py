from pathlib import Path

import pytest

from serin.core.errors import InputError
from serin.core.generation import Decoder, Generator, Row, TextStream

QUESTIONS = (
    "Where is my order?",
    "Can I return the kettle that I bought three weeks ago, and what does that cost me?",
    "Ça coûte combien ?",
    "Hello",
    "The copper kettle costs 39.90 euros and is in stock. Where is it? " * 3,
)


@pytest.fixture(scope="module")
def generator(tiny_model: Path) -> Generator:
    return Generator.load(tiny_model)


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def test_a_batch_answers_as_the_library_does_row_by_row(generator: Generator):
    import torch

    answers = generator.generate([chat(q) for q in QUESTIONS], max_new_tokens=24, max_rows=3)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        prompt = torch.tensor([generator.encode(chat(question))])
        reference = generator.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False
        )
        tokens = [t for t in reference[0, prompt.shape[1] :].tolist() if t not in generator.end_ids]
        assert answer.text == generator.decode(tokens)
        assert answer.prompt_tokens == prompt.shape[1]
        assert answer.completion_tokens == len(tokens)


def test_a_stream_adds_up_to_the_batch_answer(generator: Generator):
    for question in QUESTIONS:
        whole = generator.generate([chat(question)], max_new_tokens=32)[0]
        deltas = list(generator.stream(chat(question), max_new_tokens=32))
        assert "".join(delta.text for delta in deltas) == whole.text
        assert deltas[-1].finish_reason == whole.finish_reason
        assert all(delta.finish_reason is None for delta in deltas[:-1])


def test_rows_that_join_later_are_answered_as_if_alone(generator: Generator):
    alone = [generator.generate([chat(q)], max_new_tokens=20)[0].text for q in QUESTIONS]
    decoder = Decoder(generator)
    rows = [generator.row(chat(q), max_new_tokens=20) for q in QUESTIONS]
    for row in rows:
        decoder.join([row])
        decoder.step()
        decoder.step()
    while decoder.rows:
        decoder.step()
    assert [generator.decode(row.tokens) for row in rows] == alone


def test_pieces_never_split_a_character(generator: Generator):
    text = "Ça coûte 12,50 € à midi 🚲 日本"
    tokens = generator.tokenizer.encode(text, add_special_tokens=False)
    stream, row, pieces = TextStream(generator), Row([1], 100), []
    for token in tokens:
        row.tokens.append(token)
        pieces.append(stream.advance(row).text)
    assert len(tokens) > len(text) / 2
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_is_cut_off_at_the_end_is_left_out(generator: Generator):
    tokens = generator.tokenizer.encode("ok 日", add_special_tokens=False)[:-1]
    row = Row([1], len(tokens), tokens=list(tokens), finish_reason="length")
    assert TextStream(generator).advance(row).text == generator.decode(tokens) == "ok "


def test_a_stop_text_across_pieces_ends_the_answer_before_it(generator: Generator):
    stream, row, text = TextStream(generator, ["order left"]), Row([1], 100), ""
    for token in generator.tokenizer.encode("Your order came. Your order left us.", add_special_tokens=False):
        row.tokens.append(token)
        text += stream.advance(row).text
        if row.finish_reason:
            break
    assert text == "Your order came. Your "
    assert row.finish_reason == "stop"


def test_sampling_repeats_with_its_seed(generator: Generator):
    def sample(seed: int) -> str:
        return generator.generate([chat("Hello")], max_new_tokens=20, temperature=1.0, seed=seed)[0].text

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_closing_a_stream_stops_it(generator: Generator):
    stream = generator.stream(chat("Hello"), max_new_tokens=200)
    next(stream)
    stream.close()
    assert list(stream) == []


def test_a_prompt_beyond_the_context_is_refused_alone_and_empty_in_a_batch(generator: Generator):
    long = "Where is my order? " * 400
    with pytest.raises(InputError, match="512"):
        list(generator.stream(chat(long), max_new_tokens=5))
    answers = generator.generate([chat(long), chat("Hello")], max_new_tokens=5)
    assert (answers[0].text, answers[0].finish_reason) == ("", "length")
    assert answers[1].completion_tokens > 0


def test_an_answer_ends_where_the_context_does(generator: Generator):
    question = "a" * 300
    prompt = len(generator.encode(chat(question)))
    answer = generator.generate([chat(question)], max_new_tokens=1000)[0]
    assert prompt + answer.completion_tokens <= 512


def test_a_folder_without_safetensors_is_refused(tmp_path: Path, tiny_model: Path):
    with pytest.raises(InputError, match=r"config\.json"):
        Generator.load(tmp_path)
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"no")
    with pytest.raises(InputError, match="safetensors"):
        Generator.load(tmp_path)


def test_a_damaged_weights_file_is_refused(tmp_path: Path, tiny_model: Path):
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be loaded"):
        Generator.load(tmp_path)
