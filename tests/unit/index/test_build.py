"""Building an index: same input, same digest; only new text is embedded; a kill leaves nothing half-made."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from serin.core.artifacts import Artifact, ArtifactStore, Built
from serin.core.context import stage_context
from serin.core.digests import code_version
from serin.core.errors import ConfigError, InputError, IntegrityError
from serin.core.records import Document, write_jsonl
from serin.core.retrieval import IndexReader, read_info
from serin.index.build import build_index
from serin.index.config import IndexConfig
from serin.index.summary import summarise

WORDS = ["lamp", "kettle", "tent", "rug", "chair", "bench", "desk", "stove", "hammock", "trellis", "lantern", "pillow"]
KILLED = """
import sys
from serin.core.context import stage_context
from serin.index.build import build_index
from serin.index.config import IndexConfig

with stage_context("index", store_uri=sys.argv[1]) as context:
    build_index(IndexConfig(), context.open(sys.argv[2]), context)
"""


def some(number: int, start: int = 0) -> list[Document]:
    return [
        Document(id=f"{i}.md", title="", text=f"# {WORDS[i % 12]} {i}\n\nIt costs {i * 7 % 90} EUR.", source=f"{i}.md")
        for i in range(start, start + number)
    ]


def documents_in(store: str, rows: Sequence[Document], name: str = "") -> Artifact:
    with stage_context("data_prep", store_uri=store) as context:
        return context.produce(
            "documents",
            lambda out, _: Built({"n": write_jsonl(out / "documents.jsonl", rows)}),
            inputs={},
            config={"name": name},
        )


def build(store: str, documents: Artifact, **config: object) -> Artifact:
    with stage_context("index", store_uri=store) as context:
        return build_index(IndexConfig.load(config), documents, context)


def test_equal_documents_give_equal_digests_in_different_stores(tmp_path: Path) -> None:
    one, other = (str(tmp_path / name) for name in ("one", "other"))
    first = build(one, documents_in(one, some(5)))
    second = build(other, documents_in(other, some(5)))
    assert first.digest == second.digest
    assert first.manifest.files.keys() != second.manifest.files.keys()  # Lance's random names
    assert build(one, documents_in(one, some(6), "more")).digest != first.digest


def test_finished_work_is_found_again(tmp_path: Path) -> None:
    store = str(tmp_path)
    documents = documents_in(store, some(3))
    assert build(store, documents).manifest.created_at == build(store, documents).manifest.created_at


def test_only_new_text_is_embedded(tmp_path: Path) -> None:
    store = str(tmp_path)
    assert build(store, documents_in(store, some(8))).metadata["embedded"] == 8
    again = build(store, documents_in(store, some(10), "two more"))
    assert again.metadata["chunks"] == 10
    assert again.metadata["embedded"] == 2


def test_a_damaged_cache_costs_time_only(tmp_path: Path) -> None:
    store = str(tmp_path)
    build(store, documents_in(store, some(4)))
    (shard,) = (tmp_path / "embeddings").rglob("*.npz")
    shard.write_bytes(shard.read_bytes()[:200])
    index = build(store, documents_in(store, some(5), "one more"))
    assert index.metadata["embedded"] == 5
    assert IndexReader.open(index.path).search("rug 3", max_passages=1, mode="lexical")[0].document_id == "3.md"


def test_the_artefact_says_what_is_in_it(tmp_path: Path) -> None:
    store = str(tmp_path)
    french = [row.model_copy(update={"language": "fr"}) for row in some(3)]
    index = build(store, documents_in(store, french))
    assert index.metadata | {"documents": 3, "chunks": 3, "languages": {"fr": 3}} == index.metadata
    assert read_info(index.path).lexical_language == "French"
    assert "| Documents | 3 (fr 3) |" in summarise(index)


def test_every_language_of_the_word_index_works(tmp_path: Path) -> None:
    from serin.index.build import STEMMERS

    store = str(tmp_path)
    documents = documents_in(store, some(2))
    for language in ["", *STEMMERS]:
        index = build(store, documents, language=language)
        found = IndexReader.open(index.path).search("kettle", max_passages=1, mode="lexical")
        assert [hit.document_id for hit in found] == ["1.md"], language


def test_an_index_on_s3_opens_from_there(s3_bucket: str) -> None:
    store = f"s3://{s3_bucket}/store"
    index = build(store, documents_in(store, some(3)))
    opened = ArtifactStore(store).open(index.uri)
    assert IndexReader.open(opened.path).search("tent 2", max_passages=1)[0].document_id == "2.md"


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "holds no documents: an index needs Markdown"),
        ([some(1)[0].model_copy(update={"text": " "})], "hold no text"),
        ([some(1)[0]] * 2, "'0.md' occurs twice"),
        ([some(1)[0].model_copy(update={"metadata": {"valid_until": "28 March"}})], "not a date like 2025-12-31"),
    ],
)
def test_what_cannot_be_indexed_is_refused_and_leaves_nothing(
    tmp_path: Path, rows: list[Document], sentence: str
) -> None:
    store = str(tmp_path)
    with pytest.raises(InputError, match=sentence):
        build(store, documents_in(store, rows))
    assert not (tmp_path / "index").exists()


def test_settings_that_make_no_sense_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"min_chars \(300\) must be below max_chars \(200\)"):
        IndexConfig.load({"min_chars": 300, "max_chars": 200})
    with pytest.raises(ConfigError, match="'chunk_size' is not a setting of IndexConfig"):
        IndexConfig.load({"chunk_size": 100})
    with pytest.raises(ConfigError, match="'language' is 'xx'"):
        build(str(tmp_path), documents_in(str(tmp_path), some(1)), language="xx")


def test_a_build_killed_in_the_middle_is_completed_by_the_next(tmp_path: Path) -> None:
    store, clean = str(tmp_path / "store"), str(tmp_path / "clean")
    rows = some(1100)
    documents = documents_in(store, rows)
    process = subprocess.Popen([sys.executable, "-c", KILLED, store, documents.uri])
    cache = tmp_path / "store" / "embeddings"
    deadline = time.monotonic() + 120
    while not list(cache.rglob("*.npz")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list((tmp_path / "store").glob("index/*/manifest.json"))

    index = build(store, documents)
    assert 0 < index.metadata["embedded"] < len(rows)
    assert index.digest == build(clean, documents_in(clean, rows)).digest
    assert IndexReader.open(index.path).search("kettle 1009", max_passages=1)[0].document_id == "1009.md"
    assert not list((tmp_path / "store" / ".work").glob("index-*/"))


def test_an_index_damaged_on_disk_is_made_again(tmp_path: Path) -> None:
    store = str(tmp_path)
    documents = documents_in(store, some(3))
    index = build(store, documents)
    name = next(name for name in index.manifest.files if name.endswith(".lance"))
    (index.path / name).write_bytes(b"gone")
    with pytest.raises(IntegrityError):
        ArtifactStore(store).open(index.uri)
    assert build(store, documents).digest == index.digest


def test_the_component_runs_as_the_pipeline_calls_it(tmp_path: Path) -> None:
    from serin.index.component import index as component

    store = str(tmp_path / "store")
    documents = documents_in(store, some(3))

    class Output:
        def __init__(self, name: str, uri: str = "") -> None:
            self.path, self.metadata = str(tmp_path / name), {"uri": uri}

    outputs = {"index": Output("index.json"), "summary": Output("summary.md")}
    component.python_func(
        documents=Output("documents", documents.uri),
        store_uri=store,
        tracking_uri="",
        endpoint="assistant",
        lineage_id="run-1",
        config={"max_chars": 800.0},
        code_version=code_version("index"),
        **outputs,
    )
    assert json.loads((tmp_path / "index.json").read_text())["digest"] == outputs["index"].metadata["digest"]
    assert (tmp_path / "summary.md").read_text().startswith("# Index")
