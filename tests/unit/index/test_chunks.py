"""Cutting documents: nothing lost, nothing too long, headings kept."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serin.core.records import Document
from serin.index.chunks import chunk_document, sections
from serin.index.config import IndexConfig

LONG = "A sentence of some length that says something. " * 6


def document(text: str, title: str = "Guide") -> Document:
    return Document(id="guide.md", title=title, text=text, source="guide.md")


def texts(text: str, **config: int) -> list[str]:
    return [chunk.text for chunk in chunk_document(document(text), IndexConfig(**config))]


def test_a_short_document_is_one_chunk_and_reads_as_it_was() -> None:
    text = "# Phare lamp\n\nOf brass.\n\nPrice: 84 EUR."
    (chunk,) = chunk_document(document(text, "Phare lamp"), IndexConfig())
    assert chunk.text == text
    assert chunk.title == "Phare lamp"
    assert chunk.search_text == text  # the heading is not said twice


def test_a_long_document_is_cut_at_headings_and_chunks_know_their_path() -> None:
    text = f"# Guide\n\n{LONG}\n\n## Returns\n\n{LONG}\n\n### Lamps\n\n{LONG}\n\n## Delivery\n\n{LONG}"
    chunks = chunk_document(document(text), IndexConfig(max_chars=400, min_chars=20))
    assert [chunk.title for chunk in chunks] == [
        "Guide",
        "Guide > Returns",
        "Guide > Returns > Lamps",
        "Guide > Delivery",
    ]
    assert [chunk.ordinal for chunk in chunks] == [0, 1, 2, 3]
    assert chunks[2].text.startswith("### Lamps")
    assert chunks[2].search_text.startswith("Guide > Returns\n### Lamps")


def test_a_heading_alone_joins_what_follows() -> None:
    text = f"# Guide\n\n## Returns\n\n{LONG}\n\n## Delivery\n\n{LONG}"
    assert [part.split("\n")[0] for part in texts(text, max_chars=400)] == ["# Guide", "## Delivery"]


def test_long_sections_are_cut_at_blank_lines_then_sentences_then_words() -> None:
    paragraphs = "\n\n".join(f"Paragraph {i}. {'word ' * 20}".strip() for i in range(8))
    parts = texts(paragraphs, max_chars=300)
    assert all(part.startswith("Paragraph") for part in parts)
    sentences = "This is sentence one of many. " * 30
    assert all(part.endswith("many.") for part in texts(sentences, max_chars=200))
    assert all(part.split() == ["word"] * len(part.split()) for part in texts("word " * 200, max_chars=101))
    assert [len(part) for part in texts("x" * 250, max_chars=100, min_chars=10)] == [100, 100, 50]


def test_a_heading_in_a_code_fence_is_none_and_the_fence_stays_whole() -> None:
    fence = "```sh\n# not a heading\n\necho hi\n```"
    text = f"# Guide\n\n{LONG}\n\n{fence}\n\n{LONG}"
    assert [section.headings for section in sections(text)] == [("Guide",)]
    assert any(fence in part for part in texts(text, max_chars=340))


def test_an_unchanged_section_keeps_its_id_when_another_changes() -> None:
    def ids(last: str) -> list[str]:
        text = f"# Guide\n\n{LONG}\n\n## Returns\n\n{LONG}\n\n## Delivery\n\n{last}"
        return [chunk.id for chunk in chunk_document(document(text), IndexConfig(max_chars=400))]

    before, after = ids(LONG), ids(LONG.replace("something", "nothing"))
    assert before[:2] == after[:2]
    assert before[2] != after[2]


def test_the_same_text_in_two_documents_gives_two_ids() -> None:
    one = chunk_document(document("Same."), IndexConfig())[0]
    other = chunk_document(document("Same.").model_copy(update={"id": "other.md"}), IndexConfig())[0]
    assert one.id != other.id


@pytest.mark.parametrize("text", ["", " \n\n "])
def test_an_empty_document_has_no_chunks(text: str) -> None:
    assert chunk_document(document(text), IndexConfig()) == []


ALPHABET = st.sampled_from([*string.ascii_letters[:6], " ", " ", "\n", "\n\n", "# ", "## ", "```\n", ". ", "é", "🙂"])


@settings(max_examples=150, deadline=None)
@given(st.lists(ALPHABET, max_size=600).map("".join), st.integers(100, 400))
def test_no_text_is_lost_and_no_chunk_is_too_long(text: str, max_chars: int) -> None:
    parts = texts(text, max_chars=max_chars, min_chars=30)
    assert all(0 < len(part) <= max_chars for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())
