import pytest

from serin.evaluate.similarity import chrf, keeps_schema, named_label, parsed_json, rouge_l, rouge_n

KNOWN = [
    ("the cat sat on the mat", "the cat is on the mat", 0.833333, 0.6, 0.833333, 0.645779),
    (
        "It costs 12 euros and ships in two days.",
        "The kettle costs 12 euros; it ships within 2 days.",
        0.631579, 0.235294, 0.526316, 0.415064,
    ),
    ("a b c d e f", "a c e g", 0.6, 0.0, 0.6, 0.170455),
    ("hello world", "goodbye moon", 0.0, 0.0, 0.0, 0.061728),
    ("x", "x y z x", 0.4, 0.0, 0.4, 0.294118),
]  # fmt: skip
"""Answer, reference, and what rouge-score 0.1.2 (F-measures, no stemmer) and sacreBLEU 2.6.0 (sentence chrF2) say."""


@pytest.mark.parametrize(("answer", "reference", "first", "second", "longest", "characters"), KNOWN)
def test_rouge_and_chrf_are_those_of_the_libraries(answer, reference, first, second, longest, characters):
    measured = (rouge_n(answer, reference, 1), rouge_n(answer, reference, 2), rouge_l(answer, reference))
    assert measured == pytest.approx((first, second, longest), abs=1e-6)
    assert chrf(answer, reference) == pytest.approx(characters, abs=1e-6)


def test_accents_split_no_word_and_empty_texts_share_nothing():
    assert rouge_n("la matinée", "matinée la", 1) == 1.0
    assert chrf("Le colis arrive demain matin", "Le colis arrivera demain dans la matinée") == pytest.approx(0.551134)
    assert (rouge_n("", "", 1), rouge_l("", "a"), chrf("", "a"), chrf("", "")) == (0.0, 0.0, 0.0, 0.0)


def test_json_may_stand_in_a_fence_and_must_be_the_whole_answer():
    assert parsed_json('{"a": 1}') == (True, {"a": 1})
    assert parsed_json('```json\n{"a": 1}\n```') == (True, {"a": 1})
    assert parsed_json('Here it is: {"a": 1}') == (False, None)
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    assert keeps_schema('{"a": 1}', schema)
    assert not keeps_schema('{"a": "1"}', schema)
    assert not keeps_schema("a: 1", schema)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("card_arrival", "card_arrival"),
        ("The intent is Card Arrival.", "card_arrival"),  # which holds the label "card" as well
        ("card", "card"),
        ("card or lost_card?", "lost_card"),
        ("exchange_rate or top_up", None),
        ("something else", None),
        ("", None),
    ],
)
def test_an_answer_names_one_label_or_none(answer, expected):
    assert named_label(answer, ["card_arrival", "card", "lost_card", "exchange_rate", "top_up"]) == expected
