"""Rows, pages and HTML: what they become before they are cleaned."""

from pathlib import Path

import pytest

from serin.core.errors import InputError
from serin.data_prep.config import DataPrepConfig
from serin.data_prep.html import read_page
from serin.data_prep.pages import read_document
from serin.data_prep.readers import Row
from serin.data_prep.rows import Raw, UnusableRow, access_of, recognise
from serin.data_prep.sources import SourceFile


def shape(row: Row, **config: object) -> Raw | None:
    return recognise(row, "file.jsonl", 7, DataPrepConfig.load(config))


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Q", "response": "A"},
        {"question": "Q", "answer": "A"},
        {"prompt": "Q", "completion": "A"},
        {"input": "Q", "output": "A"},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        {"messages": '[{"role": "customer", "content": "Q"}, {"role": "Agent", "content": "A"}]'},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    ],
)
def test_questions_and_answers_in_many_forms_are_conversations(row: Row) -> None:
    raw = shape(row)
    assert raw is not None
    assert raw.kind == "conversation"
    assert raw.turns == [("user", "Q"), ("assistant", "A")]
    assert raw.record_id == "file.jsonl#7"


def test_a_configured_pair_comes_first() -> None:
    row = {"question": "no", "answer": "no", "frage": "Q", "antwort": "A"}
    raw = shape(row, question_column="frage", answer_column="antwort")
    assert raw is not None
    assert raw.turns == [("user", "Q"), ("assistant", "A")]


def test_ids_groups_languages_passages_and_short_columns_are_kept() -> None:
    row = {"id": 5, "question": "Q", "answer": "A", "group": "g", "lang": "FR-ch", "context": ["P"], "intent": "price"}
    raw = shape(row)
    assert raw is not None
    assert (raw.record_id, raw.group, raw.language, raw.context) == ("file.jsonl#5", "g", "fr", ["P"])
    assert raw.metadata == {"intent": "price"}
    custom = shape({**row, "customer": "c1"}, group_column="customer")
    assert custom is not None
    assert custom.group == "c1"


def test_text_is_a_document_and_document_ids_make_a_golden_question() -> None:
    document = shape({"doc_id": "d", "title": "T", "text": "Body", "valid_until": "2025-01-01"})
    assert document is not None
    assert (document.kind, document.record_id, document.metadata) == (
        "document",
        "file.jsonl#d",
        {"valid_until": "2025-01-01"},
    )
    golden = shape({"question": "Q", "document_ids": '["a.md", "b.md"]'})
    assert golden is not None
    assert (golden.kind, golden.document_ids) == ("golden", ["a.md", "b.md"])


def test_unknown_columns_are_nothing_and_unusable_ones_say_why() -> None:
    assert shape({"sku": 1, "stock": 4}) is None
    with pytest.raises(UnusableRow, match="role 'tool'"):
        shape({"messages": [{"role": "tool", "content": "x"}]})
    with pytest.raises(UnusableRow, match="'messages' is a int, not a list"):
        shape({"messages": 3})
    with pytest.raises(UnusableRow, match="not a JSON list"):
        shape({"messages": "[{"})


def page(name: str, text: str) -> Raw:
    return read_document(SourceFile(name=name, path=Path(name), sha256="", size=0), text)


def test_titles_come_from_front_matter_headings_or_the_name() -> None:
    assert page("a.md", "---\ntitle: Front\n---\n# Heading").title == "Front"
    assert page("a.md.gz", "Intro\n\n## Heading ##\n").title == "Heading"
    assert page("x/return_policy-wiki.txt", "Text").title == "return policy wiki"


def test_a_rule_of_dashes_is_no_front_matter() -> None:
    text = "---\nJust a sentence\n---\nMore"
    assert page("a.md", text).text == text


def test_html_becomes_markdown_without_menus_and_scripts() -> None:
    html = """<html lang="en-GB"><head><title> My
     page </title><style>p {}</style><meta name="valid_until" content="2025-03-28"></head><body>
    <header>Site</header><nav>Menu</nav><script>alert(1)</script>
    <main><h1>Fees</h1>loose text<p>One <b>bold</b> word &amp; more</p>
    <div><h2>List</h2><ul><li>First <a href="/x">link</a></li><li>Second<ul><li>Inner</li></ul></li></ul></div>
    <ol><li>Step</li><li>Next</li></ol>
    <table><tr><th>Size</th><th>Price</th></tr><tr><td>L</td><td>12</td></tr></table>
    <pre>a
      b</pre></main><footer>Foot</footer></body></html>"""
    read = read_page(html)
    assert (read.title, read.language, read.metadata) == ("My page", "en", {"valid_until": "2025-03-28"})
    assert read.text.split("\n\n") == [
        "# Fees",
        "loose text",
        "One bold word & more",
        "## List",
        "- First link\n- Second\n  - Inner",
        "1. Step\n2. Next",
        "| Size | Price |\n| L | 12 |",
        "```\na\n      b\n```",
    ]


@pytest.mark.parametrize("html", ["", "just words", "<p>unclosed", "<html></html>", "<!-- only -->"])
def test_odd_html_is_read_without_complaint(html: str) -> None:
    assert read_page(html).text in ("", "just words", "unclosed")


@pytest.mark.parametrize(
    ("front", "labels"),
    [("access: staff", "staff"), ("access: [staff, legal]", "legal, staff"), ("access: staff legal", "legal, staff")],
)
def test_a_page_is_restricted_however_its_labels_are_written(front: str, labels: str) -> None:
    assert page_of(f"---\n{front}\n---\n# Margins\n\nSecret.\n").metadata["access"] == labels


@pytest.mark.parametrize(
    "front", ["access: {team: staff}", "access: []", "access: [1]", "access: 'a!b'", "access: true"]
)
def test_a_page_whose_restriction_cannot_be_read_is_refused_and_never_public(front: str) -> None:
    with pytest.raises(InputError, match="must not become public"):
        page_of(f"---\n{front}\n---\n# Margins\n\nSecret.\n")


def page_of(text: str, name: str = "a.md") -> Raw:
    return read_document(SourceFile(name, Path(name), "0" * 64, len(text)), text)


def test_a_web_page_and_a_row_carry_their_labels_too() -> None:
    html = '<html><head><meta name="access" content="staff"></head><body><p>Secret.</p></body></html>'
    assert page_of(html, "a.html").metadata["access"] == "staff"
    assert access_of({"access": ["b", "a"]}) == {"access": "a, b"}
    assert access_of({"text": "x"}) == {}
