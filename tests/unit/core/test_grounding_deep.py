"""The deep score: the reader beside its evidence, its torch twin, and the claims that it learns from."""

import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from serin.core.errors import InputError
from serin.core.grounding import ground
from serin.core.grounding.evidence import (
    CAPITAL,
    EVIDENCE_PIECES,
    context_of,
    evidence_for,
    forms_of,
    marked_pieces,
    sentences_with_spans,
)
from serin.core.grounding.model import DEEP_WEIGHTS, GroundingModel
from serin.core.grounding.reader import apply_network, padded_rows, read_claims, row_of, word_logits
from serin.core.grounding.words import read
from serin.core.pieces import tokenizer

KETTLE = (
    "The Alpine kettle holds two litres and boils in four minutes. It costs 89.00 EUR. Its lid is not dishwasher safe. "
    "Orders above 50 EUR are delivered free of charge within three working days by Maria Keller's team in Lyon."
)
OTHER = "Gift cards are valid for two years from the day on which they were bought and cannot be paid out."
CONTEXT = (OTHER, KETTLE)


@pytest.mark.parametrize(
    ("true", "false", "flag"),
    [
        ("The kettle holds two litres.", "The kettle holds five litres.", "number_mismatch"),
        ("The kettle boils in 4 minutes.", "The kettle boils in 9 minutes.", "number_mismatch"),
        (
            "Orders above 50 EUR are delivered free.",
            "Orders above 50 EUR are never delivered free.",
            "negation_mismatch",
        ),
        ("They are sent by Maria Keller's team.", "They are sent by Oskar Brandt's team.", None),
    ],
)
def test_a_changed_fact_scores_less_than_the_true_one(true: str, false: str, flag: str | None):
    held, changed = ground(true, CONTEXT, deep=True), ground(false, CONTEXT, deep=True)
    assert changed.support_score < held.support_score - 0.1
    assert flag not in held.flags
    assert flag is None or flag in changed.flags


def test_the_deep_score_is_another_than_the_fast_one_and_repeats():
    answer = "The Alpine kettle boils in four minutes and its lid is safe."
    assert ground(answer, CONTEXT, deep=True) == ground(answer, CONTEXT, deep=True)
    assert ground(answer, CONTEXT, deep=True) != ground(answer, CONTEXT)


def test_the_edges_are_those_of_the_fast_score():
    for answer, context in (("", CONTEXT), ("The kettle boils.", ()), ("Yes, sure!", CONTEXT), ("?!", CONTEXT)):
        assert ground(answer, context, deep=True) == ground(answer, context)
    assert 0 <= ground("日本語の答え", ["日本語の文書"], deep=True).support_score <= 1


def test_the_reader_doubts_the_changed_word_most():
    answer = "The Alpine kettle holds nine litres and boils in four minutes."
    words = read(answer)
    doubts = [false for false, _, _ in word_logits(words, answer, CONTEXT)]
    assert words[int(np.argmax(doubts))].text == "nine"


def test_evidence_holds_what_the_claim_is_about_and_fits():
    claim, _ = marked_pieces("The kettle boils in four minutes.")
    chosen = tokenizer().decode([piece & (CAPITAL - 1) for piece in evidence_for(claim, context_of(CONTEXT))])
    assert "boils in four minutes" in chosen
    long = context_of(tuple(f"The kettle number {n} boils in four minutes and costs {n} EUR." for n in range(60)))
    assert 0 < len(evidence_for(claim, long)) <= EVIDENCE_PIECES
    assert evidence_for(claim, context_of(())) == ()


def test_sentences_keep_their_places_and_long_ones_are_cut():
    text = "One kettle. " + "word " * 150 + "\nThe last line"
    parts = sentences_with_spans(text)
    assert [text[spans[0][0] : spans[-1][1]] for _, spans in (parts[0], parts[-1])] == ["One kettle.", "The last line"]
    assert len(parts) == 5
    assert max(len(pieces) for pieces, _ in parts) <= 60


def test_numbers_in_words_and_digits_and_forms_of_a_word_are_one_form():
    two, digit, word, other = (forms_of(marked_pieces(text)[0]) for text in ("two", "2", "order", "orders"))
    assert two == digit
    assert word == other
    assert two != word


def test_a_very_long_answer_takes_bounded_time():
    started = time.thread_time()
    ground("kettle 89 not Lyon. " * 100, ["kettle 89 not Lyon. " * 4_000], deep=True)
    assert time.thread_time() - started < 20


def test_the_models_over_the_reader_are_not_read_as_the_fast_ones(tmp_path: Path):
    with pytest.raises(InputError, match="other features"):
        GroundingModel.load(DEEP_WEIGHTS)


def test_rows_read_together_give_what_each_gives_alone():
    claims = [marked_pieces(text)[0] for text in ("The kettle boils.", "It costs 89 EUR and holds two litres.")]
    together = read_claims(claims, CONTEXT)
    for claim, logits in zip(claims, together, strict=True):
        np.testing.assert_allclose(read_claims([claim], CONTEXT)[0], logits, atol=1e-4)
        np.testing.assert_allclose(np.exp(logits).sum(axis=1), 1, atol=1e-5)


def test_the_numpy_network_gives_what_torch_gives():
    torch = pytest.importorskip("torch")
    from serin.core.grounding.training.reader import Reader, tensors

    torch.manual_seed(0)
    network = Reader().eval()
    context = context_of(CONTEXT)
    claims = [marked_pieces(text)[0] for text in ("The kettle boils.", "Gift cards cannot be paid out.")]
    rows = [row_of(claim, evidence_for(claim, context)) for claim in claims]
    with torch.inference_mode():
        wanted = network(*tensors(rows)).log_softmax(-1).numpy()
    found = apply_network(*padded_rows(rows), network.arrays())
    for row, one, other in zip(rows, found, wanted, strict=True):
        np.testing.assert_allclose(one[: len(row.ids)], other[: len(row.ids)], atol=2e-5)


def test_made_claims_are_labelled_where_they_are_false():
    from serin.core.grounding.training import claims as made

    texts = made.Texts({source: [f"{KETTLE} {OTHER}"] * 3 for source in made.SOURCES},
        [(KETTLE, "How many litres does it hold?", ["two", "two", "89.00 EUR"])], ["Oskar Brandt", "Graz"],
        ["A sentence of quite another text."])  # fmt: skip
    rng, kinds = random.Random(2), Counter[str]()
    for _ in range(150):
        draft = made._asked(texts, rng) if rng.random() < 0.2 else made._stated(texts, rng)
        claim = draft and made._claim(draft, rng)
        if not claim:
            continue
        kinds[claim.kind] += 1
        assert len(claim.pieces) == len(claim.labels)
        wanted = {"true": 0, "answered": 0, "gone": 1, "other": 1, "half": 1}.get(claim.kind, 2)
        assert max(claim.labels) == wanted
    assert {"true", "number", "name", "negation", "gone", "other", "answered_falsely"} <= kinds.keys()
