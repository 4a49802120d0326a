"""Who finds what, and when: access labels, dates, and the dialogue behind a question."""

from datetime import date, timedelta
from pathlib import Path

import lancedb
import pytest

from serin.core.artifacts import Artifact, Built
from serin.core.context import stage_context
from serin.core.embedding import Embedder
from serin.core.errors import InputError
from serin.core.query import EARLIER_WEIGHT, Query, weights
from serin.core.records import Document, Message, write_jsonl
from serin.core.retrieval import ACCESS, TABLE, IndexReader, Mode, access_labels, epoch
from serin.core.serving import ServingConfig, search, search_query, today
from serin.index.build import build_index
from serin.index.config import IndexConfig

DOCUMENTS = [
    ("public.md", "# Discount\n\nEverybody gets a discount of 5 percent.", {}),
    ("staff.md", "# Staff discount\n\nStaff get a discount of 30 percent.", {"access": "staff"}),
    ("board.md", "# Board discount\n\nThe board gets a discount of 90 percent.", {"access": "board, team:finance"}),
    ("old.md", "# Old discount\n\nIn spring there was a discount of 50 percent.", {"valid_until": "2025-03-28"}),
    ("next.md", "# Coming discount\n\nSoon a discount of 70 percent.", {"valid_from": "9999-01-01"}),
    ("kettle.md", "# Merle kettle\n\nA kettle that whistles. Price: 39 EUR.", {}),
    ("lamp.md", "# Phare lamp\n\nA wall light of brass. Price: 84 EUR.", {}),
]
OPEN = {"public.md", "kettle.md", "lamp.md"}


def made(folder: Path, rows: list[tuple[str, str, dict[str, str]]]) -> Artifact:
    documents = [Document(id=n, title="", text=t, source=n, metadata=m) for n, t, m in rows]
    with stage_context("index", store_uri=str(folder)) as context:
        artifact = context.produce(
            "documents", lambda out, _: Built({"n": write_jsonl(out / "documents.jsonl", documents)}),
            inputs={}, config={"rows": [list(row[:2]) for row in rows]},
        )  # fmt: skip
        return build_index(IndexConfig(), artifact, context)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.load(num_threads=1)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return made(tmp_path_factory.mktemp("store"), DOCUMENTS)


@pytest.fixture(scope="module")
def reader(index: Artifact, embedder: Embedder) -> IndexReader:
    return IndexReader.open(index.path, embedder)


def found(reader: IndexReader, *labels: str, mode: Mode = "hybrid", at: date | None = None) -> set[str]:
    hits = reader.search("discount in percent", max_passages=20, min_score=-1, mode=mode, labels=set(labels), at=at)
    return {hit.document_id for hit in hits}


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_a_restricted_document_is_found_with_one_of_its_labels_only(reader: IndexReader, mode: Mode) -> None:
    restricted = {"staff.md", "board.md"}
    assert found(reader, mode=mode) & restricted == set()
    assert found(reader, "staff", mode=mode) & restricted == {"staff.md"}
    assert found(reader, "team:finance", mode=mode) & restricted == {"board.md"}
    assert found(reader, "staff", "board", "x", mode=mode) & restricted == restricted
    assert found(reader, "Staff", "staf", "board, team:finance", mode=mode) & restricted == set()


@pytest.mark.parametrize("label", ["' OR 1=1 --", "x'] OR true --", "", "staff'", "a" * 1000, "é"])
def test_no_label_reaches_the_tables_language(reader: IndexReader, label: str) -> None:
    for mode in ("hybrid", "dense", "lexical"):
        assert found(reader, label, mode=mode) == found(reader, mode=mode)


def test_what_a_caller_may_not_read_changes_nothing_of_what_he_gets(
    reader: IndexReader, embedder: Embedder, tmp_path: Path
) -> None:
    alone = IndexReader.open(made(tmp_path, [row for row in DOCUMENTS if "access" not in row[2]]).path, embedder)
    for query in ("discount in percent", "kettle", "what does staff get?"):
        ours, theirs = (one.search(query, max_passages=20, mode="dense") for one in (reader, alone))
        assert [(hit.document_id, round(hit.score, 5)) for hit in ours] == [
            (hit.document_id, round(hit.score, 5)) for hit in theirs
        ]


def test_labels_are_part_of_the_content_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    with_label, without = (
        made(tmp_path / name, [("a.md", "# A\n\nText of a document.", meta)])
        for name, meta in (("one", {"access": "staff"}), ("other", {}))
    )
    assert with_label.digest != without.digest
    assert with_label.metadata["restricted_chunks"] == 1
    with pytest.raises(InputError, match=r"Document a\.md: access holds"):
        made(tmp_path / "wrong", [("a.md", "# A\n\nText.", {"access": "a'b"})])
    assert access_labels("b, a  b") == ("a", "b")


def test_an_index_from_before_labels_still_opens_and_is_public(
    index: Artifact, embedder: Embedder, tmp_path: Path
) -> None:
    import shutil

    old = shutil.copytree(index.path, tmp_path / "old")
    lancedb.connect(old).open_table(TABLE).drop_columns([ACCESS])
    reader = IndexReader.open(old, embedder)
    assert {"staff.md", "board.md"} <= found(reader) == found(reader, "staff")


def test_the_endpoints_search_leaves_out_what_is_not_valid_today(reader: IndexReader) -> None:
    def documents(serving: ServingConfig, at: date | None = None) -> set[str]:
        return {hit.document_id for hit in search(reader, serving, "discount in percent", at=at)}

    serving = ServingConfig(max_passages=20, min_score=-1)
    assert documents(serving) == OPEN
    assert documents(serving, date(2025, 3, 28)) == OPEN | {"old.md"}
    unchecked = ServingConfig(max_passages=20, min_score=-1, check_dates=False)
    assert documents(unchecked) == documents(unchecked, date(2020, 1, 1)) == OPEN | {"old.md", "next.md"}
    assert reader.documents(today()) == OPEN
    assert reader.documents(None, {"staff"}) == OPEN | {"old.md", "next.md", "staff.md"}


def test_an_epoch_finds_what_its_day_finds_and_lasts_until_something_changes(
    index: Artifact, reader: IndexReader, tmp_path: Path
) -> None:
    last = date(2025, 3, 28)
    for day in (date(2020, 1, 1), last, last + timedelta(days=1), date(2026, 1, 1), date(9999, 1, 1)):
        assert (same := epoch(index.path, day)) is not None
        assert reader.documents(same) == reader.documents(day)
        assert epoch(index.path, same) == same
    assert epoch(index.path, date(2020, 1, 1)) == epoch(index.path, last) != epoch(index.path, last + timedelta(days=1))
    assert epoch(index.path, date(2025, 4, 1)) == epoch(index.path, date(2031, 7, 9))
    assert epoch(made(tmp_path, [("a.md", "# A\n\nText.", {})]).path, last) is None


def turns(*texts: str) -> list[Message]:
    roles = ("user", "assistant")
    return [Message(role=roles[i % 2], content=text) for i, text in enumerate(texts)]


def test_a_follow_up_is_searched_for_with_the_turn_that_it_follows(reader: IndexReader) -> None:
    dialogue = turns("Tell me about the brass wall light.", "It is called Phare.", "And the price?")
    query = search_query(dialogue, 3)
    assert query == Query("And the price?", ("Tell me about the brass wall light.",))
    assert reader.search(query, max_passages=1)[0].document_id == "lamp.md"
    switched = turns("Tell me about the brass wall light.", "It is Phare.", "What does the kettle that whistles cost?")
    assert reader.search(search_query(switched, 3), max_passages=1)[0].document_id == "kettle.md"


def test_earlier_turns_count_less_and_less_and_not_at_all_for_another_subject() -> None:
    query = Query("What does the kettle that whistles cost?", ("a", "b"))
    assert weights(query, [0.5, 0.1]) == pytest.approx([EARLIER_WEIGHT, EARLIER_WEIGHT / 2])
    assert weights(query, [0.1, 0.1]) == [0.0, 0.0]
    assert weights(Query("And that one?", ("a",)), [0.0]) == [EARLIER_WEIGHT]
    assert weights(Query("x"), []) == []


def test_a_dialogue_without_a_question_finds_nothing(reader: IndexReader) -> None:
    assert search_query([], 3) == Query("")
    assert search_query(turns("  "), 3) == Query("")
    assert reader.search(Query("", ("discount",)), max_passages=5) == []
