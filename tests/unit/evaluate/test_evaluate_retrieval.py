"""The evaluation finds what the endpoint finds: by date, and once until something changes."""

from pathlib import Path

from serin.core.artifacts import Built
from serin.core.context import StageContext, stage_context
from serin.core.prompts import Prompt
from serin.core.records import Conversation, Document, GoldenQuestion, Message, write_jsonl
from serin.core.release import Part, Release
from serin.core.serving import ServingConfig
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.retrieval import Found, ask_index
from serin.index.build import build_index
from serin.index.config import IndexConfig

DOCUMENTS = (
    ("now.md", "# Autumn\n\nIn autumn there is a discount of 5 percent on lamps.", {"valid_from": "2025-01-01"}),
    ("old.md", "# Spring\n\nIn spring there was a discount of 50 percent on lamps.", {"valid_until": "2025-03-28"}),
    ("staff.md", "# Staff\n\nStaff get a discount of 30 percent on lamps.", {"access": "staff"}),
)
QUESTIONS = (("g1", "now.md"), ("g2", "old.md"), ("g3", "missing.md"))


def made(context: StageContext, *, check_dates: bool) -> Found:
    documents = [Document(id=n, title="", text=t, source=n, metadata=m) for n, t, m in DOCUMENTS]

    def dataset(output: Path, _: Path) -> Built:
        turns = (Message(role="user", content="Is there a discount on lamps?"), Message(role="assistant", content="5"))
        write_jsonl(output / "test.jsonl", [Conversation(id=f"c{n}", messages=turns, group=f"g{n}") for n in range(3)])
        asked = [GoldenQuestion(id=n, question="discount on lamps", document_ids=(d,)) for n, d in QUESTIONS]
        return Built({"n": write_jsonl(output / "golden.jsonl", asked)})

    source = context.produce(
        "documents", lambda out, _: Built({"n": write_jsonl(out / "documents.jsonl", documents)}),
        inputs={}, config={"of": "dates"},
    )  # fmt: skip
    index = build_index(IndexConfig(), source, context)
    data = context.produce("dataset", dataset, inputs={}, config={"of": "dates"})
    serving = ServingConfig(check_dates=check_dates, max_passages=5, min_score=0.0)
    release = Release(
        model=Part(kind="model", digest="0" * 64, uri="file:///nowhere"), index=Part.of(index), data=Part.of(data),
        prompt=Prompt(), guardrails={},
        serving=serving.dump(), code_version="test",
    )  # fmt: skip
    config = EvaluateConfig(num_conversations=3, num_retrieved=3)
    return ask_index(config, release, data, context)


def test_what_is_out_of_date_or_restricted_is_neither_found_nor_asked_for(tmp_path: Path) -> None:
    with stage_context("evaluate", store_uri=tmp_path.as_uri()) as context:
        found = made(context, check_dates=True)
        assert all("5 percent" in one.texts[0] and len(one.texts) == 1 for one in found.passages.values())
        assert {one.id for one in found.golden} == {"g1", "g3"}, "g2 could be answered by nobody; g3 is a miss"
        assert found.artifact.metadata["num_questions_out_of_date"] == 1
        assert made(context, check_dates=True).artifact.uri == found.artifact.uri
        unchecked = made(context, check_dates=False)
        assert {one.id for one in unchecked.golden} == {"g1", "g2", "g3"}
        assert {len(one.texts) for one in unchecked.passages.values()} == {2}
