"""Suites on public data: banking intents, multi-turn retrieval, languages, prompts that look unsafe, medical questions.

The models of these tests know nothing of the subjects; what is tested is that the data become items, the measures come
out as known, and a tiny model's values are those of chance.
"""

import csv
import gzip
import json
from collections import Counter

import pytest
from worlds import artifact_of

from serin.core.abstention import abstains
from serin.core.artifacts import ArtifactStore
from serin.core.generation import Generator
from serin.core.prompts import Prompt
from serin.core.records import Document, Message, write_jsonl
from serin.core.release import Part, Release
from serin.core.serving import ServingConfig
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.gaps import gaps_of
from serin.evaluate.items import load_items
from serin.evaluate.measure import Measuring, load_suites
from serin.evaluate.replies import Reply, judged
from serin.evaluate.summary import outcome_values
from serin.index.build import build_index
from serin.index.config import IndexConfig

PARTS = {"data": Part(kind="dataset", digest="0" * 64, uri="file:///nowhere"), "prompt": Prompt(), "guardrails": {}}


def rows_of(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def suite(kind, path, rows, **more):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"kind": kind, "name": kind, "source": str(path), **more}


@pytest.fixture
def measured(tmp_path, tiny_model):
    """Measures suites on a release of the tiny model."""
    from serin.core.context import stage_context

    def run(*suites, index=None):
        store = ArtifactStore(str(tmp_path / "store"))
        model = artifact_of(store, "base", lambda target: [
            (target / path.name).write_bytes(path.read_bytes()) for path in tiny_model.iterdir()
        ])  # fmt: skip
        part = Part.of(index) if index else Part(kind="index", digest="0" * 64, uri="file:///nowhere")
        serving = ServingConfig(max_new_tokens=4, check_dates=False).dump()
        release = Release(model=Part.of(model), index=part, serving=serving, code_version="t", **PARTS)
        config = EvaluateConfig.load({"suites": list(suites), "resamples": 1000})
        with stage_context("evaluate", store_uri=store.uri, lineage_id="r") as context:
            found = Measuring(config, {"candidate": release}, load_suites(config), context).run()
        assert found.broken == {}
        return outcome_values(found.outcomes["candidate"])

    return run


def test_banking_intents_are_chosen_by_likelihood_from_all_labels(shared_data, tmp_path, measured):
    with gzip.open(shared_data / "banking77/dev/train.csv.gz", "rt", encoding="utf-8", newline="") as stream:
        rows = [{"question": row["text"], "label": row["category"]} for row in csv.DictReader(stream)]
    labels = json.loads((shared_data / "banking77/dev/categories.json").read_text())
    settings = {"by": "likelihood", "num_items": 4, "label_set": labels}
    path = tmp_path / "banking.jsonl"
    values = measured(suite("intents", path, [one for one in rows if one["label"] in labels], **settings))
    assert len(values["intents.intent_accuracy"]) == 4
    config = EvaluateConfig.load({"suites": [{"kind": "intents", "name": "intents", "source": str(path)}]})
    every = load_items(config.suites[0].model_copy(update={"num_items": 20_000}), 0)
    assert len({item.references[0] for item in every.items}) == 77
    for item in every.items[:200]:
        reply = Reply(f"This is about {item.references[0].replace('_', ' ')}.")
        assert judged(config.suites[0], item, reply, labels=labels).values == {"intent_accuracy": 1.0}


def test_multi_turn_retrieval_ranks_by_judged_documents(shared_data, tmp_path, measured):
    from serin.core.context import stage_context

    folder = shared_data / "mtrag_rag"
    grades: dict[str, dict[str, int]] = {}
    for line in (folder / "dev/qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, score = line.split("\t")
        grades.setdefault(query, {})[document] = int(score)
    queries = [one for one in rows_of(folder / "dev/queries.jsonl") if one["query_id"] in grades][:12]
    wanted = {document for one in queries for document in grades[one["query_id"]]}
    corpus = rows_of(folder / "corpus.jsonl.gz")
    kept = [one for number, one in enumerate(corpus) if one["doc_id"] in wanted or number % 25 == 0]
    documents = [Document(id=one["doc_id"], title="", text=one["text"][:600], source=one["doc_id"]) for one in kept]
    store = ArtifactStore(str(tmp_path / "store"))
    source = artifact_of(store, "documents", lambda out: write_jsonl(out / "documents.jsonl", documents))
    with stage_context("index", store_uri=store.uri, lineage_id="r") as context:
        index = build_index(IndexConfig(), source, context)
    rows = [
        {
            "id": one["query_id"],
            "messages": [Message(role="user", content=one["text"]).model_dump()],
            "relevant": grades[one["query_id"]],
            "collection": one["collection"],
        }
        for one in queries
    ]
    values = measured(suite("retrieval", tmp_path / "mtrag.jsonl", rows), index=index)
    recall = list(values["retrieval.recall_at_10"].values())
    assert len(recall) == 12
    assert sum(recall) / 12 > 0.5
    assert all(
        values["retrieval.recall_at_5"][item] <= values["retrieval.recall_at_10"][item]
        for item in values["retrieval.recall_at_5"]
    )


def test_human_answers_to_unanswerable_questions_are_told_from_answers(shared_data):
    tasks = rows_of(shared_data / "mtrag_rag/dev/rag_tasks.jsonl.gz")
    said = Counter((one["answerability"], abstains(one["reference_answer"])) for one in tasks)
    recall = said["UNANSWERABLE", True] / (said["UNANSWERABLE", True] + said["UNANSWERABLE", False])
    false = said["ANSWERABLE", True] / (said["ANSWERABLE", True] + said["ANSWERABLE", False])
    assert recall > 0.75
    assert false < 0.05


def test_answers_in_many_languages_have_gaps_between_them(shared_data, tmp_path):
    """A system that answers Thai and Arabic with the wrong span is found by its gap."""
    languages = ("en", "de", "th", "ar")
    values, labels = {}, {}
    config = EvaluateConfig(resamples=1000, suites=())
    for language in languages:
        paragraphs = rows_of(shared_data / f"xquad_multilingual/xquad.{language}.jsonl.gz")[:30]
        rows = [
            {"id": f"{language}-{qa['id']}", "question": qa["q"], "reference": qa["answer"], "language": language}
            for one in paragraphs for qa in one["qas"][:1]
        ]  # fmt: skip
        loaded = load_items(
            EvaluateConfig.load({"suites": [suite("answers", tmp_path / f"{language}.jsonl", rows)]}).suites[0], 0
        )
        for item in loaded.items:
            right = language in ("en", "de")
            outcome = judged(loaded.suite, item, Reply(item.references[0] if right else item.question, "stop"))
            values[item.id], labels[item.id] = outcome.values["chrf"], outcome.labels
    (gap,) = gaps_of({"answers.chrf": values}, labels, {}, config)
    assert gap.label == "language"
    assert gap.best in ("en", "de")
    assert gap.worst in ("th", "ar")
    assert gap.difference.low > 0.3


def test_prompts_that_look_unsafe_become_attacks_and_harmless_twins(shared_data, tmp_path):
    with (shared_data / "xstest/dev/xstest_dev.csv").open(encoding="utf-8", newline="") as stream:
        rows = [
            {"id": row["id"], "question": row["prompt"], "attack": row["label"] == "unsafe", "type": row["type"]}
            for row in csv.DictReader(stream)
        ]
    loaded = load_items(EvaluateConfig.load({"suites": [suite("attacks", tmp_path / "x.jsonl", rows)]}).suites[0], 0)
    assert len(loaded.items) == len(rows) == 144
    outcomes = [judged(loaded.suite, item, Reply("Sure.", "stop", 200)) for item in loaded.items]
    values = outcome_values(outcomes)
    assert len(values["attacks.block_rate"]) + len(values["attacks.over_block_rate"]) == 144
    assert set(values["attacks.over_refusal_rate"].values()) == {0.0}
    assert len({outcome.labels["type"] for outcome in outcomes}) > 10


def test_medical_text_is_measured_in_bits_per_byte(shared_data, tmp_path, measured, tiny_model):
    answers = [one["answer"] for one in rows_of(shared_data / "medquad_nih_faq/qa_pairs.jsonl.gz")[:4]]
    values = measured(suite("text", tmp_path / "m.jsonl", [{"text": text[:1500]} for text in answers]))
    vocabulary = Generator.load(tiny_model).model.config.vocab_size
    assert vocabulary > 0
    assert all(0.5 < bits < 20 for bits in values["text.text_bits_per_byte"].values())
