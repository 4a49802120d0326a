import time

import pytest

from serin.core.abstention import abstentions


def marked(text: str) -> str:
    """The text with what abstains in brackets."""
    for one in reversed(abstentions(text)):
        text = f"{text[: one.start]}[{text[one.start : one.end]}]{text[one.end :]}"
    return text


@pytest.mark.parametrize(
    "text",
    [
        "[I'm sorry, but I don't have that information].",
        "It is red. [I do not have any information on when it opens]; it costs 8.5 EUR.",
        "[I don't know], it is red.",
        "[I do not have details of its lid, handle and cord], but it is red.",
        "[Unfortunately I could\nnot find its price]! Ask them.",
        "Oui, [je ne sais pas si elle est rouge], mais elle coûte 8 €.",
        "[I’m not sure] however.",
        "We cannot offer refunds, and I didn't know that it is red. You do not know.",
        "",
    ],
)
def test_a_clause_of_not_knowing_ends_where_the_next_claim_begins(text: str) -> None:
    assert marked(text.replace("[", "").replace("]", "")) == text


def test_a_lack_of_information_is_told_from_not_knowing() -> None:
    text = "I have no information about it. I don't know. Je n'ai pas d'informations."
    assert [one.is_lack for one in abstentions(text)] == [True, False, True]


LONG = ["i " * 20_000, "I'm sorry " * 4_000 + "I do not know", "I do not have " + "x " * 20_000]


@pytest.mark.parametrize("text", LONG)
def test_a_long_text_takes_bounded_time(text: str) -> None:
    started = time.thread_time()
    abstentions(text)
    assert time.thread_time() - started < 2
