"""Cleaning: wrong decoding undone, good text left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serin.data_prep.cleaning import clean_line, clean_markdown, placeholders_as_words, repair_mojibake

GOOD = [
    "Où êtes-vous ? Ça va, à bientôt…",
    "CAFÉ» et «HYVÄ»",
    "SKÅ™, AHÅ™ – the new sofa",
    "Straße, Ærø, naïve, señor, Łódź",
    "日本語 и русский",
    "Ã is a letter, 3 × 4 ± 5 °C",
]


@pytest.mark.parametrize("text", GOOD)
def test_good_text_stays(text: str) -> None:
    assert repair_mojibake(text) == text


@pytest.mark.parametrize("wrong", ["cp1252", "latin-1"])
@pytest.mark.parametrize(
    "text", ["Où êtes-vous ? Ça coûte 12 €", "l’été “chaud” – déjà", "Čeština, Straße", "Привет, мир"]
)
def test_text_that_was_read_wrongly_is_repaired(text: str, wrong: str) -> None:
    misread = "".join(
        bytes([byte]).decode(wrong) if wrong == "latin-1" or byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(byte)
        for byte in text.encode()
    )
    assert repair_mojibake(misread) == text
    assert clean_line(misread) == clean_line(text)


def test_twice_misread_text_is_repaired() -> None:
    assert repair_mojibake("é".encode().decode("cp1252").encode().decode("cp1252")) == "é"


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_ascii_is_never_repaired(text: str) -> None:
    assert repair_mojibake(text) == text


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("ÂÃâ€™¡\x1f\x81\u00a0\u0302A\r\n "))))
def test_cleaning_twice_is_cleaning_once_and_leaves_no_control_characters(text: str) -> None:
    once = clean_line(text)
    assert clean_line(once) == once
    assert not any(ord(character) < 32 and character != "\n" for character in once)


def test_white_space_and_composed_characters_are_unified() -> None:
    assert clean_line("  a\u00a0\u202f b\t c \r\n\r\n\r\n\r\n e\u0301\u200b ") == "a b c\n\né"


def test_markdown_keeps_the_indentation_that_means_something() -> None:
    text = "# T  \n\n- one\n    - two  \n\n\n\n```\n  code   here\n```\n"
    assert clean_markdown(text) == "# T\n\n- one\n    - two\n\n```\n  code here\n```"


def test_placeholders_are_written_as_words() -> None:
    assert placeholders_as_words("Call {{Customer Support Phone}} or {{ website_name }}.") == (
        "Call customer support phone or website name."
    )
    assert placeholders_as_words("a {single} brace, {{}} and {{\n}}") == "a {single} brace, {{}} and {{\n}}"
