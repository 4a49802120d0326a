"""What rows in one batch may and may not do to each other."""

import math
import random
import time
from pathlib import Path

import pytest

from serin.core.errors import InputError
from serin.core.generation import Decoder, Generator, Row, TextStream
from serin.core.generation.llama import LlamaForward
from serin.core.generation.slots import BLOCK

WORDS = ("order", "kettle", "days", "return", "copper", "late", "euros", "stock", "where", "please")


@pytest.fixture(scope="module")
def generator(tiny_model: Path) -> Generator:
    return Generator.load(tiny_model)


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def questions(number: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 40))) for _ in range(number)]


def finish(decoder: Decoder, most: int = 2000) -> int:
    steps = 0
    while decoder.rows:
        decoder.step()
        steps += 1
        assert steps < most
    return steps


def tokens_alone(generator: Generator, row: Row) -> list[int]:
    alone = row.another(0)
    decoder = Decoder(generator)
    decoder.join([alone])
    finish(decoder)
    return alone.tokens


def make_model(kind: str, **options):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    config = AutoConfig.for_model(
        kind, vocab_size=400, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, initializer_range=0.3, eos_token_id=0,
        **options,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


BIASED = {"attention_bias": True, "mlp_bias": True}


def give_biases(model) -> None:
    """A new model's biases are zero."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(0, 0.3)


@pytest.mark.parametrize(
    ("kind", "options"), [("llama", {}), ("llama", BIASED), ("mistral", {}), ("qwen2", {}), ("qwen3", {})]
)
def test_the_fast_forward_pass_computes_what_the_library_does(kind: str, options):
    import torch

    model = make_model(kind, **options)
    give_biases(model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert LlamaForward.of(model) is not None
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", BIASED),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}),
        ("qwen3", {"tie_word_embeddings": True}),
    ],
)
def test_a_plain_folder_decodes_without_the_librarys_model(generator: Generator, tmp_path: Path, kind: str, options):
    model = make_model(kind, **options)
    give_biases(model)
    model.save_pretrained(tmp_path)
    generator.tokenizer.save_pretrained(tmp_path)
    bare, loaded = Generator.for_decoding(tmp_path), Generator.load(tmp_path)
    assert not hasattr(bare, "model")
    assert (bare.end_ids, bare.max_context, bare.vocab_size) == (loaded.end_ids, loaded.max_context, loaded.vocab_size)
    asked = [chat(question) for question in questions(4)]
    assert bare.generate(asked, max_new_tokens=30) == loaded.generate(asked, max_new_tokens=30)


def test_a_plain_folder_with_damaged_weights_is_refused(tiny_model: Path, tmp_path: Path):
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:4], whole[:100], whole[: len(whole) // 2], b"\xff" * 200, b""):
        weights.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be loaded"):
            Generator.for_decoding(tmp_path)


def test_a_folder_that_is_not_plain_is_left_to_the_library(generator: Generator, tmp_path: Path):
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    make_model("llama", rope_parameters=scaled).save_pretrained(tmp_path)
    generator.tokenizer.save_pretrained(tmp_path)
    loaded = Generator.for_decoding(tmp_path)
    assert hasattr(loaded, "model")
    assert loaded.forward is not None


def test_weights_that_change_later_are_those_that_decode(tiny_model: Path):
    import torch

    generator = Generator.load(tiny_model)
    before = generator.generate([chat("Hello")], max_new_tokens=12)[0].text
    with torch.no_grad():
        for weight in generator.model.parameters():
            weight.mul_(1.3)
    after = generator.generate([chat("Hello")], max_new_tokens=12)[0].text
    fresh = Generator(generator.model, generator.tokenizer).generate([chat("Hello")], max_new_tokens=12)[0].text
    assert before != after == fresh


def test_another_architecture_is_decoded_by_the_library(generator: Generator):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(2)
    end = generator.tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=256, initializer_range=0.4,
        bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    other = Generator(GPT2LMHeadModel(config).eval(), generator.tokenizer)
    assert other.forward is None
    asked = questions(5)
    answers = other.generate([chat(question) for question in asked], max_new_tokens=16, max_rows=3)
    for question, answer in zip(asked, answers, strict=True):
        prompt = torch.tensor([other.encode(chat(question))])
        whole = other.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False)
        assert answer.text == other.decode([t for t in whole[0, prompt.shape[1] :].tolist() if t not in other.end_ids])
    with pytest.raises(InputError, match="gpt2"):
        other.adapter("a", Path("anywhere"))


def test_rows_that_come_and_go_at_random_leave_greedy_answers_as_they_are(generator: Generator):
    draw = random.Random(3)
    rows = [generator.row(chat(question), max_new_tokens=draw.randint(1, 40)) for question in questions(40, seed=4)]
    alone = [tokens_alone(generator, row) for row in rows]
    decoder, waiting, cancelled = Decoder(generator, prefix_cache_bytes=1 << 20), list(rows), []
    while waiting or decoder.rows:
        joining = [waiting.pop() for _ in range(min(len(waiting), draw.randint(0, 3)))]
        decoder.join(joining)
        if decoder.rows and draw.random() < 0.1:
            row = draw.choice(list(decoder.rows))
            if row.finish_reason is None:
                row.finish_reason = "cancelled"
                cancelled.append(row)
        decoder.step()
    assert cancelled
    for row, expected in zip(rows, alone, strict=True):
        assert row.tokens == expected[: len(row.tokens)]
        assert row.finish_reason == "cancelled" or len(row.tokens) == len(expected)


def test_rows_may_be_cancelled_from_another_thread(generator: Generator):
    from threading import Thread

    draw = random.Random(8)
    rows = [generator.row(chat(question), max_new_tokens=200) for question in questions(60, seed=9)]
    alone = [tokens_alone(generator, row) for row in rows[:8]]
    decoder = Decoder(generator, prefix_cache_bytes=1 << 20)
    decoder.join(rows)

    def cancel() -> None:
        for row in draw.sample(rows[8:], 52):
            time.sleep(0.001)
            row.finish_reason = row.finish_reason or "cancelled"

    canceller = Thread(target=cancel)
    canceller.start()
    finish(decoder)
    canceller.join()
    assert [row.tokens for row in rows[:8]] == alone


def test_company_changes_scores_by_rounding_only(generator: Generator):
    rows = [generator.row(chat(question), max_new_tokens=10, logprobs=0) for question in questions(12, seed=5)]
    alone = []
    for row in rows:
        copy, decoder = row.another(0), Decoder(generator)
        decoder.join([copy])
        finish(decoder)
        alone.append([score.chosen for score in copy.scores])
    decoder = Decoder(generator)
    decoder.join(rows)
    finish(decoder)
    for row, scores in zip(rows, alone, strict=True):
        assert [score.chosen for score in row.scores] == pytest.approx(scores, abs=1e-4)


def test_sampling_depends_on_the_seed_and_not_on_the_company(generator: Generator):
    rows = [
        generator.row(chat(question), max_new_tokens=12, temperature=0.9, top_p=0.9, seed=number)
        for number, question in enumerate(questions(6, seed=6))
    ]
    alone = [tokens_alone(generator, row) for row in rows]
    decoder = Decoder(generator)
    decoder.join(rows)
    finish(decoder)
    assert [row.tokens for row in rows] == alone


def test_a_small_top_p_leaves_the_likeliest_token_only(generator: Generator):
    greedy = generator.row(chat("Hello"), max_new_tokens=15)
    nucleus = generator.row(chat("Hello"), max_new_tokens=15, temperature=1.0, top_p=1e-6, seed=7)
    decoder = Decoder(generator)
    decoder.join([greedy, nucleus])
    finish(decoder)
    assert nucleus.tokens == greedy.tokens


def test_choices_of_one_prompt_are_what_each_would_be_alone(generator: Generator):
    first = generator.row(chat(questions(1)[0]), max_new_tokens=12, temperature=1.0, seed=11)
    rows = [first, first.another(1), first.another(2)]
    alone = [tokens_alone(generator, row) for row in rows]
    decoder = Decoder(generator)
    decoder.join([generator.row(chat("Hello"), max_new_tokens=30)])
    decoder.step()
    decoder.join(rows)
    finish(decoder)
    assert [row.tokens for row in rows] == alone
    assert len({tuple(row.tokens) for row in rows}) == 3


def test_prompts_that_begin_alike_are_not_run_again(generator: Generator):
    start = "The copper kettle costs 39.90 euros and is in stock. " * 6
    decoder = Decoder(generator, prefix_cache_bytes=1 << 20)
    rows, run = [generator.row(chat(start + end), max_new_tokens=10) for end in ("Where?", "Why so?")], []
    for row in rows:
        decoder.join([row])
        run.append(decoder.prompt_tokens)
        finish(decoder)
    assert run[0] == len(rows[0].prompt)
    assert run[1] < len(rows[1].prompt) / 2
    assert (len(rows[1].prompt) - run[1]) % BLOCK == 0
    assert rows[1].tokens == tokens_alone(generator, rows[1])


def test_long_prompts_are_run_in_parts_while_others_decode(generator: Generator):
    decoder = Decoder(generator)
    running = generator.row(chat("Hello"), max_new_tokens=60)
    decoder.join([running])
    decoder.step()
    long = [generator.row(chat("kettle " * 130 + end), max_new_tokens=5) for end in "abcd"]
    alone = [tokens_alone(generator, row) for row in long]
    decoder.join(long)
    seen = []
    while any(not row.tokens for row in long):
        decoder.step()
        seen.append((len(running.tokens), sum(bool(row.tokens) for row in long)))
    assert len({begun for _, begun in seen}) > 2, "all prompts were run at once"
    assert seen[-1][0] > seen[0][0], "the running row waited for the prompts"
    finish(decoder)
    assert [row.tokens for row in long] == alone


def test_a_row_without_finite_scores_fails_alone(generator: Generator):
    row = generator.row(chat("Hello"), max_new_tokens=10)
    expected = tokens_alone(generator, row)
    broken = generator.row(chat("Where is it?"), max_new_tokens=10)
    weight = generator.forward.embedding
    unused = next(t for t in range(len(weight)) if t not in {*row.prompt, *expected, *broken.prompt})
    broken.prompt[-1] = unused
    kept = weight[unused].clone()
    try:
        weight[unused] = math.nan
        head = generator.forward._head
        assert head.data_ptr() != weight.data_ptr(), "the test needs a head of its own"
        decoder = Decoder(generator, prefix_cache_bytes=1 << 20)
        decoder.join([broken, row])
        finish(decoder)
    finally:
        weight[unused] = kept
    assert isinstance(broken.error, ArithmeticError)
    assert row.tokens == expected


def test_tokens_beyond_the_model_fail_alone(generator: Generator):
    decoder, bad, good = Decoder(generator), Row([10**6], 5), generator.row(chat("Hello"), max_new_tokens=5)
    decoder.join([bad, good])
    finish(decoder)
    assert isinstance(bad.error, InputError)
    assert good.tokens


def test_log_probabilities_are_the_models_own(generator: Generator):
    import torch

    row = generator.row(chat("Where is my order?"), max_new_tokens=12, temperature=0.7, seed=5, logprobs=3)
    decoder = Decoder(generator)
    decoder.join([row])
    finish(decoder)
    with torch.inference_mode():
        logits = generator.model(torch.tensor([row.prompt + row.tokens])).logits[0, len(row.prompt) - 1 :]
    for token, scores, expected in zip(row.tokens, row.scores, logits.log_softmax(-1), strict=False):
        assert scores.chosen == pytest.approx(float(expected[token]), abs=1e-4)
        assert [score for _, score in scores.alternatives] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)


def test_entries_of_log_probabilities_come_with_their_text_and_end_where_it_does(generator: Generator):
    from serin.core.generation.rows import TokenScores

    stream, row, entries, text = TextStream(generator, ["left us"]), Row([1], 100, logprobs=0), [], ""
    for token in generator.tokenizer.encode("Your order came. It left us.", add_special_tokens=False):
        row.tokens.append(token)
        row.scores.append(TokenScores(-1.0, ()))
        delta = stream.advance(row)
        text += delta.text
        entries += delta.logprobs
        if row.finish_reason:
            break
    assert text == "Your order came. It "
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode().strip() == text.strip()
