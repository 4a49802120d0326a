"""The stage as a whole: what becomes of each file, the same digests everywhere, clear refusals, kills survived."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.data_prep.builders import chat, write_lines

from serin.core.artifacts import Artifact
from serin.core.errors import ConfigError, InputError, StorageError
from serin.core.records import SPLITS, Conversation, Document, GoldenQuestion, read_jsonl
from serin.data_prep.prepare import Prepared
from serin.data_prep.summary import summarise

Run = Callable[..., Prepared]
KILLED = """
import sys
from serin.core.context import stage_context
from serin.data_prep.config import DataPrepConfig
from serin.data_prep.prepare import prepare

with stage_context("data_prep", store_uri=sys.argv[1]) as context:
    prepare(DataPrepConfig(), sys.argv[2], context)
"""


def conversations(dataset: Artifact) -> dict[str, Conversation]:
    return {row.id: row for name in SPLITS for row in read_jsonl(dataset.path / f"{name}.jsonl", Conversation)}


def documents(prepared: Prepared) -> dict[str, Document]:
    return {row.id: row for row in read_jsonl(prepared.documents.path / "documents.jsonl", Document)}


def rejected(prepared: Prepared) -> list[tuple[str, int, str]]:
    lines = (prepared.dataset.path / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["source"], row["row"], row["reason"]) for row in map(json.loads, lines)]


def test_every_kind_of_file_becomes_what_its_content_says(source: Path, run: Run) -> None:
    prepared = run(source)
    found = documents(prepared)
    assert set(found) == {
        "catalogue.jsonl.gz#kettle",
        "documents/garden-week.md",
        "documents/lille.html",
        "documents/returns.txt",
    }
    promotion = found["documents/garden-week.md"]
    assert promotion.title == "Garden Week"
    assert promotion.text.startswith("# Garden Week\n\n20 percent")
    assert promotion.metadata == {"valid_from": "2025-03-14", "valid_until": "2025-03-28"}
    assert found["documents/lille.html"].language == "fr"
    assert found["documents/lille.html"].text == "# Magasin de Lille\n\nOuvert de 9 h à 19 h, fermé le dimanche."
    rows = conversations(prepared.dataset)
    assert {"chat-0", "chat-100", "pairs.csv#2"} <= set(rows)
    (golden,) = read_jsonl(prepared.dataset.path / "golden.jsonl", GoldenQuestion)
    assert golden.document_ids == ("catalogue.jsonl.gz#kettle",)


def test_personal_data_is_masked_but_what_the_documents_publish_stays(source: Path, run: Run) -> None:
    rows = conversations(run(source).dataset)
    assert rows["pairs.csv#4"].question == "Where is my refund? I am <EMAIL>"
    assert "help@shop.example" in rows["pairs.csv#3"].answer
    assert rows["pairs.csv#2"].answer == "Call support phone and give the order number."


def test_masking_everywhere_covers_documents_too(source: Path, run: Run) -> None:
    prepared = run(source, mask_pii="all")
    assert "<EMAIL>" in documents(prepared)["documents/garden-week.md"].text
    assert "help@shop.example" not in (prepared.dataset.path / "train.jsonl").read_text(encoding="utf-8")


def test_a_conversation_without_an_answer_is_listed_with_its_line(source: Path, run: Run) -> None:
    assert ("pairs.csv", 5, "no answer") in rejected(run(source))


def test_a_template_never_straddles_two_splits(source: Path, run: Run) -> None:
    prepared = run(source)
    groups = {
        name: {row.group for row in read_jsonl(prepared.dataset.path / f"{name}.jsonl", Conversation)}
        for name in SPLITS
    }
    assert all(groups.values())
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["validation"]
    rows = conversations(prepared.dataset)
    assert rows["pairs.csv#2"].group == rows["pairs.csv#3"].group == "how do i cancel order x"


def test_the_same_source_gives_the_same_digests_wherever_it_lies(
    source: Path, run: Run, tmp_path: Path, s3_bucket: str, own_home: Path
) -> None:
    import boto3

    for path in source.rglob("*"):
        if path.is_file():
            boto3.client("s3").upload_file(str(path), s3_bucket, f"in/{path.relative_to(source).as_posix()}")
    moved = shutil.copytree(source, tmp_path / "moved" / "elsewhere")
    results = [
        run(source, store=str(tmp_path / "one")),
        run(moved, store=str(tmp_path / "two")),
        run(f"s3://{s3_bucket}/in", store=str(tmp_path / "three")),
        run(f"s3://{s3_bucket}/in/", store=f"s3://{s3_bucket}/store"),
    ]
    assert len({result.dataset.digest for result in results}) == 1
    assert len({result.documents.digest for result in results}) == 1
    assert len({result.dataset.manifest.key for result in results}) == 1
    assert not list((own_home / "cache" / "sources").glob("*/"))  # copies are gone


def test_finished_work_is_found_again_and_a_changed_byte_is_not(source: Path, run: Run) -> None:
    first = run(source)
    assert run(source).dataset.manifest.created_at == first.dataset.manifest.created_at
    assert run(source, default_language="fr").dataset.manifest.key != first.dataset.manifest.key
    (source / "documents" / "returns.txt").write_text("Lamps can be returned within 31 days.", encoding="utf-8")
    assert run(source).documents.digest != first.documents.digest


def test_unknown_files_are_listed_as_skipped(source: Path, run: Run) -> None:
    (source / "logo.png").write_bytes(b"\x89PNG\x00")
    (source / ".DS_Store").write_bytes(b"\x00")
    write_lines(source / "stock.jsonl", [{"sku": 1, "stock": 2}, {"sku": 2, "stock": 0}])
    prepared = run(source)
    assert prepared.dataset.metadata["skipped"] == {
        "logo.png": "unknown extension",
        "stock.jsonl": "no known columns among sku, stock",
    }
    page = summarise(prepared.dataset, prepared.documents)
    assert "| logo.png | skipped: unknown extension |" in page
    assert "no answer 1" in page


def test_excluded_files_are_not_read(source: Path, run: Run) -> None:
    (source / "documents" / "draft.md").write_bytes(b"\xff broken")
    assert "documents/draft.md" not in documents(run(source, exclude=["*/draft.md"]))


def test_documents_alone_can_be_prepared_on_request(source: Path, run: Run) -> None:
    with pytest.raises(InputError, match="holds no usable conversation in 3 files"):
        run(source / "documents")
    prepared = run(source / "documents", require_conversations=False)
    assert len(documents(prepared)) == 3
    assert prepared.dataset.metadata["splits"] == {"train": 0, "validation": 0, "test": 0}


def test_a_single_file_is_a_source(source: Path, run: Run) -> None:
    assert run(source / "chats.jsonl").dataset.metadata["files"] == {"chats.jsonl": {"conversation": 20}}


def test_golden_questions_follow_a_removed_duplicate_and_reject_unknown_documents(source: Path, run: Run) -> None:
    shutil.copy(source / "documents" / "returns.txt", source / "documents" / "returns-copy.txt")
    golden = [
        {"id": "a", "question": "Return period?", "document_ids": ["documents/returns.txt"]},
        {"id": "b", "question": "Kettle?", "document_ids": ["kettle"]},
        {"id": "c", "question": "Boats?", "document_ids": ["documents/boats.md"]},
    ]
    write_lines(source / "golden.jsonl", golden)
    prepared = run(source)
    rows = read_jsonl(prepared.dataset.path / "golden.jsonl", GoldenQuestion)
    assert {row.id: row.document_ids for row in rows} == {
        "a": ("documents/returns-copy.txt",),
        "b": ("catalogue.jsonl.gz#kettle",),
    }
    assert ("golden.jsonl", 3, "unknown document") in rejected(prepared)
    assert ("documents/returns.txt", 0, "duplicate") in rejected(prepared)


def test_pages_that_differ_in_their_dates_or_numbers_are_no_duplicates(source: Path, run: Run) -> None:
    text = (source / "documents" / "garden-week.md").read_text(encoding="utf-8")
    (source / "documents" / "next-year.md").write_text(text.replace("2025", "2026"), encoding="utf-8")
    (source / "documents" / "more.md").write_text(text.replace("20 percent", "30 percent"), encoding="utf-8")
    assert {"documents/next-year.md", "documents/more.md", "documents/garden-week.md"} <= set(documents(run(source)))


def broken(source: Path, name: str, data: bytes) -> Path:
    (source / name).write_bytes(data)
    return source


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl, line 2, is not JSON .*each line must be one"),
        ("a.jsonl", b"[1, 2]\n", r"a\.jsonl, line 1, holds a JSON list, not an object"),
        ("a.md", b"caf\xe9 au lait", r"a\.md is not utf-8: byte 3 is 0xe9\..*cp1252"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "caf\xe9"}\n', r"a\.jsonl is not utf-8: byte 28 is 0xe9"),
        ("a.md", b"\x89PNG\r\n\x1a\n\x00\x00", r"a\.md is a binary file with the name of a markdown file"),
        ("a.csv", b"PK\x03\x04\x00\x00", r"a\.csv is a binary file"),
        ("a.txt", "Hallo".encode("utf-16"), r"a\.txt is UTF-16: convert it to UTF-8"),
        ("a.csv", b"question,answer\na,b,c\n", r"a\.csv, line 2, has 3 fields where the header has 2"),
        ("a.csv", b"question,answer\na\n", r"a\.csv, line 2, has 1 fields where the header has 2"),
        ("a.csv", b'question,answer\n"a,b\n', r"a\.csv, near line \d, is not CSV"),
        ("a.parquet", b"PAR1 no", r"a\.parquet is not readable Parquet"),
        ("a.md.gz", b"not gzip", r"a\.md\.gz is not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:-12], r"a\.jsonl\.gz is not a whole gzip file"),
        ("a.md", b"---\ntitle: [\n---\nText", r"front matter of a\.md is not YAML"),
        ("a.md", b"---\nvalid_until: soon\n---\nText", r"a\.md: valid_until is 'soon', not a date like"),
        ("a.jsonl", b'{"text": "x", "valid_from": "1/2/25"}', r"a\.jsonl, row 1: valid_from is '1/2/25'"),
        (
            "a.md",
            b"---\nvalid_from: 2025-02-02\nvalid_until: 2025-02-01\n---\nText",
            r"valid_until \(2025-02-01\) is before valid_from",
        ),
    ],
)
def test_a_broken_file_is_refused_by_name_and_place_and_nothing_is_written(
    source: Path, run: Run, tmp_path: Path, name: str, data: bytes, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        run(broken(source, name, data))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store" / "dataset").exists()
    assert not (tmp_path / "store" / "documents").exists()


def test_sources_without_anything_to_use_are_refused(tmp_path: Path, run: Run, s3_bucket: str) -> None:
    with pytest.raises(InputError, match="does not exist: give a folder"):
        run(tmp_path / "missing")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="is empty: put Markdown"):
        run(empty)
    with pytest.raises(InputError, match="is empty: put Markdown"):
        run(f"s3://{s3_bucket}/nothing")
    with pytest.raises(StorageError, match="does not exist"):
        run("s3://no-such-bucket-anywhere/x")
    (empty / "photo.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(InputError, match=r"None of the 1 files .* \(photo\.jpg: unknown extension\)"):
        run(empty)
    write_lines(empty / "chats.jsonl", [chat(1, "Hello?", "", "a")])
    with pytest.raises(InputError, match=r"None of the 2 files .* \(no answer: 1; "):
        run(empty)


def test_settings_that_make_no_sense_are_refused_by_name(source: Path, run: Run) -> None:
    with pytest.raises(ConfigError, match="'encoding' is 'utf-7000'"):
        run(source, encoding="utf-7000")
    with pytest.raises(ConfigError, match="must leave something for the test"):
        run(source, train_fraction=0.9, validation_fraction=0.1)
    with pytest.raises(ConfigError, match="set both or neither"):
        run(source, question_column="q")
    with pytest.raises(ConfigError, match="'chunk' is not a setting"):
        run(source, chunk=1)


def test_windows_files_are_read_when_told(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "windows"
    folder.mkdir()
    lines = "frage;antwort\nKostet das Müsli 3 €?;Ja – nur heute, für “Kenner”.\n"
    (folder / "chats.csv").write_bytes(lines.encode("cp1252"))
    prepared = run(folder, encoding="cp1252", question_column="frage", answer_column="antwort")
    (row,) = conversations(prepared.dataset).values()
    assert row.answer == "Ja – nur heute, für “Kenner”."


def test_a_run_killed_in_the_middle_is_completed_by_the_next(tmp_path: Path, run: Run) -> None:
    source, events = tmp_path / "large", tmp_path / "events.jsonl"
    words = ["lamp", "tent", "rug", "chair", "bench", "desk", "stove"]
    rows = [
        chat(i, f"Is the {words[i % 7]} number {i} still there?", f"Yes, {i % 50} of {i} are.", f"g{i % 40}")
        for i in range(4000)
    ]
    write_lines(source / "chats.jsonl", rows)
    store = tmp_path / "store"
    command = [sys.executable, "-c", KILLED, str(store), str(source)]
    process = subprocess.Popen(command, env={**os.environ, "SERIN_EVENTS": str(events)})
    deadline = time.monotonic() + 60
    while not (events.exists() and "cleaning 4000" in events.read_text(encoding="utf-8")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(store.glob("*/*/manifest.json"))

    prepared = run(source, store=str(store))
    assert prepared.dataset.digest == run(source, store=str(tmp_path / "clean")).dataset.digest
    assert not list((store / ".work").glob("*/"))


def test_the_component_runs_as_the_pipeline_calls_it(source: Path, tmp_path: Path) -> None:
    from serin.data_prep.component import data_prep as component

    class Output:
        def __init__(self, name: str) -> None:
            self.path, self.metadata = str(tmp_path / "outputs" / name), {}

    outputs = {name: Output(name) for name in ("dataset", "documents", "summary")}
    (tmp_path / "outputs").mkdir()
    component.python_func(
        source_uri=str(source),
        store_uri=str(tmp_path / "store"),
        tracking_uri="",
        endpoint="assistant",
        lineage_id="run-1",
        config={},
        window_start="",
        window_end="",
        **outputs,
    )
    assert outputs["dataset"].metadata["kind"] == "dataset"
    assert outputs["documents"].metadata["kind"] == "documents"
    assert Path(outputs["summary"].path).read_text().startswith("# Data")


def test_data_that_we_did_not_write_is_prepared_from_one_folder(shared_data: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    for name in (
        "bitext_customer_support/dev/sft_dev.csv.gz",
        "abcd_retail_guidelines/policy_docs.jsonl",
        "taubench_retail/store/return_policy_wiki.md",
    ):
        shutil.copyfile(shared_data / name, folder / Path(name).name)
    prepared = run(folder)
    facts = prepared.dataset.metadata
    assert sum(facts["splits"].values()) > 3500
    assert min(facts["splits"].values()) > 250
    assert len(documents(prepared)) == 56
    assert facts["languages"] == {"en": sum(facts["splits"].values())}
    assert "{{" not in (prepared.dataset.path / "train.jsonl").read_text(encoding="utf-8")
