import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from serin.core.artifacts import Built
from serin.core.context import stage_context
from serin.core.errors import ConfigError, InputError
from serin.core.prompts import Prompt
from serin.core.release import load_release, model_folder
from serin.core.serving import ServingConfig
from serin.core.tracking import prepare_database
from serin.release.config import ReleaseConfig
from serin.release.create import create_baseline, create_release, describe, differences, export, summary

FILES = {"base": "config.json", "model": "merged/config.json", "index": "index.json", "dataset": "train.jsonl"}


@contextmanager
def a_stage(folder, tracking_uri=""):
    with stage_context(
        "release", store_uri=str(folder / "store"), tracking_uri=tracking_uri, lineage_id="run-1"
    ) as context:
        yield context


def an_artifact(context, kind, text="one"):
    def build(output, scratch):
        (output / FILES[kind]).parent.mkdir(parents=True, exist_ok=True)
        (output / FILES[kind]).write_text(text, encoding="utf-8")
        return Built()

    return context.produce(kind, build, inputs={"text": text}, config={})


def parts(context, model="one"):
    return an_artifact(context, "model", model), an_artifact(context, "index"), an_artifact(context, "dataset")


def test_a_release_is_saved_and_journalled_with_the_digests_and_uris_of_its_parts(tmp_path):
    with a_stage(tmp_path) as context:
        model, index, dataset = parts(context)
        release = create_release(ReleaseConfig(), model, index, dataset, Prompt(), context)
        assert load_release(context.store.storage, release.id) == release
        (entry,) = context.journal.find(kind="release")
        assert entry.release_id == release.id
        assert entry.evidence["model"] == {"kind": "model", "digest": model.digest, "uri": model.uri}
        assert entry.evidence["data"]["digest"] == dataset.digest
        assert entry.lineage_id == "run-1"


def test_the_same_inputs_give_the_same_release_and_no_second_journal_entry(tmp_path):
    with a_stage(tmp_path) as context:
        first = create_release(ReleaseConfig(), *parts(context), Prompt(), context)
    with a_stage(tmp_path) as context:
        second = create_release(ReleaseConfig(), *parts(context), Prompt(), context)
        assert first == second
        assert len(context.journal.entries()) == 1


def test_anything_that_changes_makes_another_release(tmp_path):
    with a_stage(tmp_path) as context:
        model, index, dataset = parts(context)
        releases = [
            create_release(ReleaseConfig(), model, index, dataset, Prompt(), context),
            create_release(ReleaseConfig(), an_artifact(context, "model", "two"), index, dataset, Prompt(), context),
            create_release(ReleaseConfig(), model, index, dataset, Prompt(system="Be brief."), context),
            create_release(
                ReleaseConfig(serving=ServingConfig(max_passages=3)), model, index, dataset, Prompt(), context
            ),
            create_release(
                ReleaseConfig(guardrails={"max_input_chars": 100}), model, index, dataset, Prompt(), context
            ),
        ]
        assert len({release.id for release in releases}) == 5
        assert [differences(releases[0], other) for other in releases] == [
            [],
            ["model"],
            ["prompt_version"],
            ["serving"],
            ["guardrails_digest"],
        ]


def test_the_baseline_is_the_base_model_with_everything_else_the_candidates(tmp_path):
    with a_stage(tmp_path) as context:
        model, index, dataset = parts(context)
        candidate = create_release(ReleaseConfig(), model, index, dataset, Prompt(), context)
        base = an_artifact(context, "base")
        baseline = create_baseline(ReleaseConfig(), base, index, dataset, Prompt(), context)
        assert differences(candidate, baseline) == ["model"]
        assert [entry.decision for entry in context.journal.find(kind="release")] == ["created", "baseline"]
        assert model_folder(candidate, context.store) == model.path / "merged"
        assert model_folder(baseline, context.store) == base.path


def test_an_artifact_of_the_wrong_kind_is_refused_with_the_stage_that_makes_the_right_one(tmp_path):
    with a_stage(tmp_path) as context:
        model, index, dataset = parts(context)
        with pytest.raises(InputError, match="what the index stage made"):
            create_release(ReleaseConfig(), model, dataset, index, Prompt(), context)
        assert context.journal.entries() == []


def test_a_wrong_guardrail_policy_is_refused_before_anything_is_written(tmp_path):
    with a_stage(tmp_path) as context:
        model, index, dataset = parts(context)
        with pytest.raises(ConfigError, match="'max_chars' is not a setting"):
            create_release(ReleaseConfig(guardrails={"max_chars": 5}), model, index, dataset, Prompt(), context)
        assert context.store.storage.keys("releases/") == []


def test_an_exported_release_names_its_id_for_the_next_stage(tmp_path):
    with a_stage(tmp_path) as context:
        release = create_release(ReleaseConfig(), *parts(context), Prompt(), context)
        output = SimpleNamespace(path=str(tmp_path / "out" / "release"), metadata={})
        export(release, context, output)
        assert load_release(context.store.storage, output.metadata["release_id"]) == release
        assert json.loads((tmp_path / "out" / "release").read_text())["model"]["digest"] == release.model.digest
        assert release.short_id in summary(release, release)
        assert describe(release)["release_id"] == release.id


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own use of SQLAlchemy
def test_the_release_is_a_version_in_mlflow_under_the_alias_candidate(tmp_path):
    tracking_uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    prepare_database(tracking_uri)
    with a_stage(tmp_path, tracking_uri) as context:
        model, index, dataset = parts(context)
        create_baseline(ReleaseConfig(), an_artifact(context, "base"), index, dataset, Prompt(), context)
        release = create_release(ReleaseConfig(), model, index, dataset, Prompt(), context)
        create_release(ReleaseConfig(), model, index, dataset, Prompt(), context)
        client = context.tracker.client
        version = client.get_model_version_by_alias("assistant", "candidate")
        assert version.tags["serin.release_id"] == release.id
        assert len(client.search_model_versions("name = 'assistant'")) == 2


def test_the_component_makes_both_releases_and_points_its_outputs_at_them(tmp_path):
    from serin.release.component import release

    with a_stage(tmp_path) as context:
        made = dict(zip(("model", "index", "dataset"), parts(context), strict=True)) | {
            "base": an_artifact(context, "base")
        }
    inputs = {name: SimpleNamespace(metadata={"uri": artifact.uri}) for name, artifact in made.items()}
    outputs = {
        name: SimpleNamespace(path=str(tmp_path / name), metadata={}) for name in ("release", "baseline", "summary")
    }
    release.python_func(
        **inputs,
        **outputs,
        prompt={},
        store_uri=str(tmp_path / "store"),
        tracking_uri="",
        endpoint="assistant",
        lineage_id="run-1",
        config={"serving": {"max_passages": 3.0}},
    )
    with a_stage(tmp_path) as context:
        candidate, baseline = (
            load_release(context.store.storage, outputs[name].metadata["release_id"])
            for name in ("release", "baseline")
        )
    assert candidate.serving["max_passages"] == 3
    assert differences(candidate, baseline) == ["model"]
    assert candidate.short_id in (tmp_path / "summary").read_text(encoding="utf-8")
