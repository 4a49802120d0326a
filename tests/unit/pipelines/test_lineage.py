"""Lineage in both directions, from records of a small store."""

import json
from pathlib import Path
from typing import Any

import pytest
from pages import stands_alone
from typer.testing import CliRunner
from worlds import context_of, release_of

from serin.core.artifacts import Artifact, ArtifactStore, Built, Origin
from serin.core.errors import ConfigError, InputError, IntegrityError
from serin.core.events import EndpointEvent, write_events
from serin.core.journal import Journal
from serin.core.records import Document, write_jsonl
from serin.core.release import Release, load_release, save_release
from serin.core.serving import ServingConfig
from serin_pipelines.cli import app
from serin_pipelines.lineage import lineage

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


def artifact(store: ArtifactStore, kind: str, name: str, *sources: Artifact, ids: tuple[str, ...] = ()) -> Artifact:
    def build(output: Path, _: Path) -> Built:
        file = {"documents": "documents.jsonl", "dataset": "train.jsonl"}.get(kind, "it.txt")
        if ids:
            write_jsonl(output / file, [Document(id=one, title=one, text=name, source=one) for one in ids])
        else:
            (output / file).write_text(f"{kind} {name}", encoding="utf-8")
        return Built()

    return store.produce(
        kind,
        build,
        inputs={one.manifest.kind: one.digest for one in sources},
        sources={one.manifest.kind: one.uri for one in sources},
        config={"name": name},
        code="test",
        origin=Origin(lineage_id=f"run-{name}", mlflow_run_id=""),
    )[0]


def world(store: ArtifactStore, name: str, ids: tuple[str, ...] = ("returns", "delivery")) -> Release:
    documents = artifact(store, "documents", name, ids=ids)
    dataset = artifact(store, "dataset", name, ids=(f"chat-{name}",))
    base = artifact(store, "base", name, documents)
    model, index = artifact(store, "model", name, base, dataset), artifact(store, "index", name, documents)
    release = release_of(model, index, dataset, ServingConfig(max_new_tokens=8))
    save_release(store.storage, release)
    journal = Journal(store.storage, "assistant")
    journal.append("release", release_id=release.id, decision="made", lineage_id=f"run-{name}")
    journal.append("promotion", release_id=release.id, decision="promoted", lineage_id=f"run-{name}")
    return release


def event(release: Release, trace_id: str = TRACE) -> EndpointEvent:
    return EndpointEvent(
        trace_id=trace_id, time="2026-01-02T03:04:05.000+00:00", session_id="s", endpoint="assistant",
        release_id=release.id, track="champion", status=200, question="Q?", answer="A.",
    )  # fmt: skip


def found(identifier: str, store: ArtifactStore) -> dict[str, Any]:
    return lineage(identifier, store.uri, "")


def test_a_trace_and_its_answers_id_lead_to_release_artefacts_and_decisions(store: ArtifactStore) -> None:
    release = world(store, "one")
    write_events(store.storage, "assistant", [event(release)])
    for identifier in (TRACE, f"chatcmpl-{TRACE}"):
        result = found(identifier, store)
        assert (result["kind"], result["release"]) == ("trace", release.id)
        assert result["event"]["answer"] == "A."
        assert {one["kind"] for one in result["artifacts"].values()} == {
            "documents",
            "dataset",
            "base",
            "model",
            "index",
        }
        assert [entry["kind"] for entry in result["decisions"]] == ["release", "promotion"]
        assert result["complete"]


def test_what_was_written_since_the_last_question_is_seen(store: ArtifactStore) -> None:
    first = world(store, "one")
    assert found(first.id[:12], store)["release"] == first.id
    second = world(store, "two")
    write_events(store.storage, "assistant", [event(second)])
    assert found(second.id[:12], store)["releases"][0]["serving"] == ["assistant"]
    assert found(first.id[:12], store)["releases"][0]["serving"] == []
    assert found(TRACE, store)["release"] == second.id


def test_a_document_leads_to_the_releases_trained_on_it_and_those_that_answer_from_it(store: ArtifactStore) -> None:
    first, second = world(store, "one"), world(store, "two", ids=("returns", "new"))
    result = found("returns", store)
    assert result["kind"] == "document"
    assert [(one["release"], one["how"]) for one in result["releases"]] == [
        (first.id, ["trained on it", "answers from it"]),
        (second.id, ["trained on it", "answers from it"]),
    ]
    assert [one["release"] for one in found("new", store)["releases"]] == [second.id]
    assert len(result["held_by"]) == 2
    conversation = found("chat-one", store)["releases"]
    assert [(one["release"], one["how"]) for one in conversation] == [
        (first.id, ["trained on it", "evaluated with it"])
    ]


def test_a_model_an_index_and_a_run_lead_to_their_releases(store: ArtifactStore) -> None:
    first, second = world(store, "one"), world(store, "two")
    for part in ("model", "index"):
        result = found(getattr(first, part).digest[:16], store)
        assert (result["kind"], [one["release"] for one in result["releases"]]) == (part, [first.id])
    assert found("run-two", store)["release"] == second.id


def test_a_missing_artefact_is_named_and_the_lineage_not_complete(store: ArtifactStore) -> None:
    release = world(store, "one")
    base = next(uri for uri, one in found(release.id, store)["artifacts"].items() if one["kind"] == "base")
    (Path(base.removeprefix("file://")) / "manifest.json").unlink()
    result = found(release.id, store)
    assert (result["complete"], result["missing"]) == (False, [base])
    shown = CliRunner().invoke(app, ["lineage", release.id, "--store", store.uri]).stdout
    assert "MISSING" in shown


def test_an_edited_entry_is_told_and_not_shown(store: ArtifactStore) -> None:
    release = world(store, "one")
    assert found(release.id, store)["complete"]
    entry = Path(store.uri.removeprefix("file://")) / "endpoints/assistant/journal/00000002.json"
    entry.write_text(entry.read_text().replace('"promoted"', '"improved"'))
    with pytest.raises(IntegrityError, match="Entry 2 of the journal of 'assistant' was edited"):
        found(release.id, store)


def test_a_damaged_catalogue_is_made_again(store: ArtifactStore, own_home: Path) -> None:
    release = world(store, "one")
    assert found(release.id, store)["release"] == release.id
    (file,) = (own_home / "cache" / "lineage").glob("*.db")
    file.write_bytes(b"no database " * 500)
    assert found(release.id, store)["release"] == release.id


def test_a_half_written_release_hides_no_other(store: ArtifactStore) -> None:
    release = world(store, "one")
    store.storage.write("releases/" + "f" * 64 + "/release.json", b"{")
    assert found(release.id, store)["release"] == release.id
    with pytest.raises(IntegrityError, match="cannot be read"):
        load_release(store.storage, "f" * 64)


@pytest.mark.parametrize("identifier", ["", "deadbeef", "nobody knows", TRACE, f"chatcmpl-{TRACE}"])
def test_what_leads_nowhere_is_told_in_one_sentence(store: ArtifactStore, identifier: str) -> None:
    world(store, "one")
    with pytest.raises(InputError):
        found(identifier, store)


def test_the_command_gives_the_same_as_json_and_as_a_tree(store: ArtifactStore) -> None:
    release = world(store, "one")
    done = CliRunner().invoke(app, ["lineage", "returns", "--store", store.uri, "--json"])
    assert json.loads(done.stdout)["release"] == release.id
    shown = CliRunner().invoke(app, ["lineage", "returns", "--store", store.uri]).stdout
    assert "trained on it, answers from it, serves assistant" in " ".join(shown.split())


def test_a_page_shows_the_answer_its_origins_and_every_decision(store: ArtifactStore, tmp_path: Path) -> None:
    release = world(store, "one")
    write_events(store.storage, "assistant", [event(release)])
    file = tmp_path / "lineage.html"
    asked = ["lineage", TRACE, "--store", store.uri, "--html", str(file)]
    assert CliRunner().invoke(app, asked).exit_code == 0
    text = file.read_text(encoding="utf-8")
    assert stands_alone(text).pictures == 2  # wide and narrow
    for name in ("Answer", "Release", "Index", "Dataset", "Documents"):
        assert f">{name}</text>" in text
    assert release.id[:12] in text
    assert text.count('<span class="dot') == len(found(TRACE, store)["decisions"])
    wrong = CliRunner().invoke(app, [*asked[:-1], str(tmp_path)])
    assert isinstance(wrong.exception, ConfigError)


def test_a_store_of_another_kind_of_run_keeps_its_own_catalogue(store: ArtifactStore, tmp_path: Path) -> None:
    release = world(store, "one")
    other = ArtifactStore(str(tmp_path / "other"))
    context_of(other.uri, "release")
    with pytest.raises(InputError):
        found(release.id, other)
    assert found(release.id, store)["release"] == release.id
