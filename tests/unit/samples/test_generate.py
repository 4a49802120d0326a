"""The sample source: repeatable, true to its documents, and without leaks between phrasing families."""

import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from serin.core.errors import ConfigError
from serin.core.records import Conversation, GoldenQuestion, read_jsonl
from serin.samples.generate import make_conversations, write_samples
from serin.samples.passages import DOCUMENTS, Past, load_passages

ABSTAINING = {"unknown", "unknown-goods", "unknown-product", "missing"}


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return make_conversations(random.Random(7), 3000)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("samples")
    write_samples(target, num_conversations=600)
    return target


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(written, tmp_path):
    write_samples(tmp_path / "again", num_conversations=600)
    assert digests(tmp_path / "again") == digests(written)
    write_samples(tmp_path / "other", seed=8, num_conversations=600)
    assert digests(tmp_path / "other" / "documents") == digests(written / "documents")
    assert digests(tmp_path / "other" / "conversations") != digests(written / "conversations")


def test_writing_again_replaces_what_was_there(written, tmp_path):
    (tmp_path / "conversations").mkdir()
    (tmp_path / "conversations" / "stale.jsonl").write_text("left over\n")
    write_samples(tmp_path, num_conversations=600)
    assert digests(tmp_path) == digests(written)


def test_too_few_conversations_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 100"):
        write_samples(tmp_path, num_conversations=3)
    assert not any(tmp_path.iterdir())


def test_summary_counts_what_was_written(tmp_path):
    summary = write_samples(tmp_path, num_conversations=600)
    rows = [row for path in (tmp_path / "conversations").iterdir() for row in read_jsonl(path, Conversation)]
    assert summary.conversations == len(rows) == 600 + sum(summary.flaws.values())
    assert summary.documents == len(load_passages()) > 100
    assert set(summary.flaws) == {"exact-duplicate", "near-duplicate", "empty-answer", "mojibake", "personal-data"}
    assert all(summary.flaws.values())


def test_ids_are_unique(written):
    rows = [row for path in (written / "conversations").iterdir() for row in read_jsonl(path, Conversation)]
    assert max(Counter(row.id for row in rows).values()) == 1


def test_flaws_are_there_to_be_found(written):
    rows = [row for path in (written / "conversations").iterdir() for row in read_jsonl(path, Conversation)]
    said = [turn.content for row in rows for turn in row.messages]
    assert any(row.answer == "" for row in rows)
    assert any("Ã" in text for text in said)
    assert any("@example.org" in text for text in said)
    assert any("4111 1111 1111 1111" in text for text in said)


def test_every_number_of_an_answer_stands_in_its_context(conversations):
    checked = 0
    for row in conversations:
        answers = " ".join(turn.content for turn in row.messages if turn.role == "assistant")
        known = set(re.findall(r"\d+", " ".join(row.context)))
        assert set(re.findall(r"\d+", answers)) <= known, row
        checked += bool(re.search(r"\d", answers))
    assert checked > 1500


def test_a_phrasing_never_occurs_in_two_groups(conversations):
    """Names and values aside, each question belongs to one group, so a split by group leaks no template."""
    slots = {passage.subject.lower() for passage in load_passages() if "#" not in passage.id}
    subjects = sorted(slots, key=len, reverse=True)
    names = re.compile("|".join(map(re.escape, subjects)))
    groups: dict[str, set[str]] = defaultdict(set)
    for row in conversations:
        for turn in row.messages:
            if turn.role == "user":
                groups[names.sub("…", turn.content.lower())].add(row.group)
    shared = {question: found for question, found in groups.items() if len(found) > 1}
    assert not shared


@pytest.mark.parametrize("language", ["en", "fr"])
def test_no_phrasing_is_written_twice(language):
    phrasings = json.loads((DOCUMENTS.parent / "phrasings.json").read_text(encoding="utf-8"))[language]
    specs = [*phrasings["facts"].values(), *phrasings["other"].values()]
    asked = [
        question for spec in specs for form in ("questions", "nouns", "clauses") for question in spec.get(form, [])
    ]
    asked += [turn["question"] for turn in phrasings["first_turns"]]
    asked += [question for questions in phrasings["follow_up"].values() for question in questions]
    assert [question for question, count in Counter(asked).items() if count > 1] == []
    assert {len(questions) for questions in phrasings["follow_up"].values()} <= {len(phrasings["first_turns"])}


def test_abstaining_answers_have_no_passage_with_the_fact(conversations):
    for row in conversations:
        if row.metadata["intent"] == "missing":
            assert "colleague" in row.answer
            assert not any(passage.splitlines()[0].removeprefix("# ") in row.question for passage in row.context)


def test_one_product_has_many_prices_over_time(conversations):
    prices: dict[str, set[str]] = defaultdict(set)
    for row in conversations:
        for passage in row.context:
            if price := re.search(r"# (.+)\n[\s\S]*Price: (\d+) EUR", passage):
                prices[price[1]].add(price[2])
    assert min(len(found) for found in prices.values()) >= 5


def test_shares_of_languages_dialogues_and_abstentions(conversations):
    size = len(conversations)
    assert 0.05 < sum(row.language == "fr" for row in conversations) / size < 0.1
    assert sum(len(row.messages) > 2 for row in conversations) > 100
    assert 0.03 < sum(row.metadata["intent"] in ABSTAINING for row in conversations) / size < 0.15
    assert len({row.group for row in conversations}) > 900


def test_no_placeholder_is_left(conversations):
    assert not [row for row in conversations for turn in row.messages if re.search(r"[{}]", turn.content)]


def test_golden_questions_name_documents_that_exist(written):
    golden = read_jsonl(written / "golden" / "golden.jsonl", GoldenQuestion)
    known = {passage.id for passage in load_passages(written / "documents")}
    assert len(golden) >= 80
    assert {name for question in golden for name in question.document_ids} <= known


def test_documents_are_what_was_committed_and_hold_current_values(written):
    assert digests(written / "documents") == digests(DOCUMENTS)
    lantern = next(passage for passage in load_passages(written / "documents") if "luciole" in passage.id)
    assert lantern.fields["Price"] == "89 EUR"
    assert "Price: 89 EUR" in (written / "documents/catalogue/lighting/luciole-lantern.md").read_text()


def test_passages_keep_the_text_of_their_documents():
    for passage in load_passages():
        path = DOCUMENTS / passage.id.removeprefix("documents/")
        if path.suffix == ".md":
            assert passage.text == path.read_text(encoding="utf-8").strip()
        assert passage.title


def test_past_versions_keep_title_and_fields_and_change_values():
    passages = load_passages()
    past, rng = Past(passages), random.Random(1)
    for passage in passages:
        before = past.of(passage, rng)
        assert (before.id, before.title, list(before.fields)) == (passage.id, passage.title, list(passage.fields))
    lantern = next(passage for passage in passages if "luciole" in passage.id)
    assert len({past.of(lantern, rng).fields["Price"] for _ in range(20)}) > 5


def test_catalogue_has_forty_to_sixty_products_and_stays_small():
    products = [passage for passage in load_passages() if passage.area == "catalogue"]
    assert 40 <= len(products) <= 60
    wanted = {"Price", "Stock", "Colours", "Size", "Delivery", "Warranty", "SKU"}
    assert all(set(product.fields) == wanted for product in products)
    assert len({product.fields["SKU"] for product in products}) == len(products)
    assert sum(path.stat().st_size for path in DOCUMENTS.parent.rglob("*") if path.is_file()) < 300_000
