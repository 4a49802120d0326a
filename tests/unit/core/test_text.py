import pytest

from serin.core.grounding import ground
from serin.core.text import exact_match, is_refusal, normalise, numbers, support_score, token_f1, words


def test_normalise_folds_case_quotes_dashes_and_spaces():
    assert normalise("  L’Été\u00a0—  ＡＢＣ ") == "l'été - abc"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Where's my order?", ["where", "s", "my", "order"]),
        ("l'article coûte 89,00 €", ["l", "article", "coûte", "89"]),
        ("Где мой заказ", ["где", "мой", "заказ"]),
        ("...", []),
        ("model B12-40L", ["model", "b12", "40l"]),
    ],
)
def test_words_are_unicode_words_with_numbers_by_value(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("89,00 €", ["89"]),
        ("EUR 89.00", ["89"]),
        ("€89", ["89"]),
        ("1 299,50", ["1299.5"]),
        ("1\u202f299,50 €", ["1299.5"]),
        ("1\u00a0299", ["1299"]),
        ("1,299.50", ["1299.5"]),
        ("1.299,50", ["1299.5"]),
        ("1'299.50", ["1299.5"]),
        ("1,299", ["1299"]),
        ("0,500 kg", ["0.5"]),
        ("10 000 000", ["10000000"]),
        ("12.03.2026", ["12", "3", "2026"]),
        ("on 2026-03-12 at 9:30", ["2026", "3", "12", "9", "30"]),
        ("1,2,3 and 4", ["1", "2", "3", "4"]),
        ("no digits", []),
        ("5.", ["5"]),
    ],
)
def test_numbers_of_any_notation_have_one_form(text, expected):
    assert numbers(text) == expected


def test_token_f1_ignores_articles_punctuation_and_number_notation():
    assert token_f1("The kettle: 89,00 EUR!", "kettle 89.00 eur") == 1.0
    assert exact_match("The kettle: 89,00 EUR!", "kettle 89.00 eur")


def test_token_f1_is_the_harmonic_mean_of_precision_and_recall():
    assert token_f1("red kettle", "red steel kettle now") == pytest.approx(2 * 2 / 6)
    assert token_f1("red red", "red") == pytest.approx(2 / 3)


def test_token_f1_of_empty_texts():
    assert token_f1("", "") == 1.0
    assert token_f1("", "something") == 0.0


def test_support_score_is_the_grounding_score():
    passages = ["The kettle holds two litres.", "It costs 89,00 €."]
    assert support_score("The kettle holds two litres", passages) > 0.7
    assert support_score("The kettle costs 99", passages) < support_score("The kettle costs 89", passages)
    assert support_score("The kettle costs 89", passages) == ground("The kettle costs 89", passages).support_score


def test_support_score_at_its_edges():
    assert support_score("", ["kettle"]) == 0.0
    assert support_score("kettle", []) == 0.0
    assert support_score("kettle", ["", " "]) == 0.0
    assert support_score("Yes.", ["kettle"]) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "I cannot find that in our documents. A colleague will help you.",
        "Sorry, I can't answer this.",
        "I'm unable to confirm this.",
        "I'm sorry, I don't know.",
        "We don't have that information.",
        "I do not have any information about this.",
        "I do not have specific information about that model.",
        "The passages do not say.",
        "Je ne trouve pas cette information ; un collègue vous aidera.",
        "Je n’ai pas cette information.",
        "Je ne peux pas répondre à cette question.",
        "Aucune information à ce sujet.",
    ],
)
def test_refusals_in_english_and_french_are_recognised(answer):
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "You cannot return worn shoes.",
        "We cannot give a refund after 30 days.",
        "Vous ne pouvez pas retourner cet article.",
        "We could not deliver your parcel on Monday.",
        "Please provide your order number and I can help.",
    ],
)
def test_answers_with_a_no_in_them_are_not_refusals(answer):
    assert not is_refusal(answer)
