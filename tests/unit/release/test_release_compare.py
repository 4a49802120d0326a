"""What two releases differ in, in words."""

from pathlib import Path

import pytest
from worlds import artifact_of, context_of, release_of

from serin.core.artifacts import Artifact, ArtifactStore
from serin.core.records import Document, write_jsonl
from serin.core.release import Release
from serin.core.serving import ServingConfig
from serin.index.build import build_index
from serin.index.config import IndexConfig
from serin.release.compare import changes

BEFORE = {"returns": "Send it back within 30 days.", "delivery": "Two days.", "old": "Closed on Sundays."}
AFTER = {"returns": "Send it back within 14 days.", "delivery": "Two days.", "new": "Open on Sundays."}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


def index_of(store: ArtifactStore, documents: dict[str, str], max_chars: int = 800) -> Artifact:
    records = [Document(id=name, title=name, text=text, source=name) for name, text in documents.items()]
    artifact = artifact_of(
        store, "documents", lambda target: write_jsonl(target / "documents.jsonl", records), documents=documents
    )
    return build_index(IndexConfig(min_chars=0, max_chars=max_chars), artifact, context_of(store.uri, "index"))


def text_artifact(store: ArtifactStore, kind: str, text: str) -> Artifact:
    return artifact_of(store, kind, lambda target: (target / "it.txt").write_text(text), text=text)


def release(store: ArtifactStore, index: Artifact, model: str = "a", **serving: int) -> Release:
    made = release_of(
        text_artifact(store, "model", model), index, text_artifact(store, "dataset", "d"), ServingConfig(**serving)
    )
    return Release.model_validate(made.model_dump())


def test_a_release_differs_in_nothing_from_itself(store: ArtifactStore) -> None:
    one = release(store, index_of(store, BEFORE))
    assert changes(one, one, store) == []


def test_documents_that_came_went_or_changed_are_named(store: ArtifactStore) -> None:
    first, second = release(store, index_of(store, BEFORE)), release(store, index_of(store, AFTER))
    found = changes(first, second, store)
    assert {change.part for change in found} == {"index"}
    texts = [change.text for change in found]
    assert "1 document added: new." in texts
    assert "1 document removed: old." in texts
    assert "1 document changed: returns." in texts


def test_settings_of_a_part_prompt_rails_serving_and_code_are_told_apart(store: ArtifactStore) -> None:
    index = index_of(store, BEFORE)
    first = release(store, index, max_new_tokens=8)
    second = Release.model_validate(
        release(store, index_of(store, AFTER, max_chars=400), "b", max_new_tokens=16).model_dump()
        | {
            "code_version": "later",
            "guardrails": {**first.guardrails, "max_input_chars": 10},
            "prompt": {**first.prompt.model_dump(), "system": "Be brief."},
        }
    )
    by_part: dict[str, list[str]] = {}
    for change in changes(first, second, store):
        by_part.setdefault(change.part, []).append(change.text)
    assert set(by_part) == {"model", "index", "prompt", "guardrails", "serving", "code"}
    assert "Setting max_chars was 800 and is 400." in by_part["index"]
    assert by_part["serving"] == ["max_new_tokens was 8 and is 16."]
    assert by_part["guardrails"] == ["max_input_chars was 4000 and is 10."]
    assert by_part["prompt"][0].endswith("and is 'Be brief.'.")
    assert by_part["code"] == ["Code test became later."]


def test_a_part_that_is_gone_is_compared_by_its_digest_and_that_is_said(store: ArtifactStore) -> None:
    index = index_of(store, BEFORE)
    first, second = release(store, index, "a"), release(store, index, "b")
    gone = Path(second.model.uri.removeprefix("file://")) / "manifest.json"
    gone.unlink()
    (change,) = changes(first, second, store)
    assert change.part == "model"
    assert "cannot be read, so its digest is all that is known" in change.text
