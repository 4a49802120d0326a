"""Releases that are found, verified and brought from one store to another."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serin.core.artifacts import ArtifactStore, Built
from serin.core.context import StageContext, stage_context
from serin.core.errors import InputError, IntegrityError
from serin.core.prompts import Prompt
from serin.core.release import Release, load_release, open_part
from serin.release.config import ReleaseConfig
from serin.release.create import create_baseline, create_release, refresh
from serin.release.resolve import resolve, summary

FILES = {"base": "config.json", "model": "merged/config.json", "index": "index.json", "dataset": "train.jsonl"}


@contextmanager
def a_stage(store: Path | str, lineage_id: str = "run-1") -> Iterator[StageContext]:
    with stage_context("release", store_uri=str(store), lineage_id=lineage_id) as context:
        yield context


def an_artifact(context: StageContext, kind: str, text: str = "one"):
    def build(output: Path, scratch: Path) -> Built:
        (output / FILES[kind]).parent.mkdir(parents=True, exist_ok=True)
        (output / FILES[kind]).write_text(text, encoding="utf-8")
        return Built()

    return context.produce(kind, build, inputs={"text": text}, config={})


def trained(store: Path | str, model: str = "tuned", lineage_id: str = "run-1") -> tuple[Release, Release]:
    """Candidate and baseline of a training run."""
    with a_stage(store, lineage_id) as context:
        shared = (an_artifact(context, "index"), an_artifact(context, "dataset"), Prompt(), context)
        baseline = create_baseline(ReleaseConfig(), an_artifact(context, "base"), *shared)
        return create_release(ReleaseConfig(), an_artifact(context, "model", model), *shared), baseline


def crown(store: Path | str, release: Release) -> None:
    with a_stage(store) as context:
        context.journal.append("promotion", release_id=release.id, decision="promoted")


def test_a_release_keeps_its_id_and_gets_its_parts_in_the_other_store(tmp_path: Path) -> None:
    candidate, baseline = trained(tmp_path / "staging")
    with a_stage(tmp_path / "prod", "run-2") as context:
        found = resolve(candidate.short_id, str(tmp_path / "staging"), "ada", context)
        assert (found.release.id, found.baseline.id, found.imported) == (candidate.id, baseline.id, True)
        here = load_release(context.store.storage, candidate.id)
        for part in (here.model, here.index, here.data):
            assert part.uri.startswith(context.store.uri)
            open_part(part, context.store)
        assert found.dataset.uri == here.data.uri
        assert [(entry.kind, entry.decision) for entry in context.journal.entries()] == [
            ("release", "imported"), ("release", "baseline"), ("approval", "asked for"),
        ]  # fmt: skip
        assert context.journal.entries()[-1].approved_by == "ada"
        assert context.journal.entries()[-1].evidence["model"]["digest"] == candidate.model.digest
        assert candidate.model.digest[:12] in summary(found)


def test_a_release_travels_to_an_object_store(tmp_path: Path, s3_bucket: str) -> None:
    candidate, _ = trained(tmp_path / "staging")
    with a_stage(f"s3://{s3_bucket}/prod") as context:
        found = resolve(candidate.id, str(tmp_path / "staging"), "", context)
        assert found.release.id == candidate.id
        assert open_part(found.release.model, context.store).digest == candidate.model.digest


def test_resolving_twice_in_one_run_writes_nothing_twice(tmp_path: Path) -> None:
    candidate, _ = trained(tmp_path / "staging")
    for _ in range(2):
        with a_stage(tmp_path / "prod", "run-2") as context:
            resolve(candidate.id, str(tmp_path / "staging"), "ada", context)
    assert len(context.journal.entries()) == 3


def test_without_an_id_it_is_the_champion_and_nothing_is_journalled(tmp_path: Path) -> None:
    candidate, baseline = trained(tmp_path)
    crown(tmp_path, candidate)
    with a_stage(tmp_path, "run-2") as context:
        before = len(context.journal.entries())
        found = resolve("", "", "", context)
        assert (found.release.id, found.baseline.id, found.imported) == (candidate.id, baseline.id, False)
        assert len(context.journal.entries()) == before


def test_an_endpoint_without_champion_says_what_to_do(tmp_path: Path) -> None:
    with a_stage(tmp_path) as context, pytest.raises(InputError, match="no champion: name a release"):
        resolve("", "", "", context)


def test_a_damaged_part_stops_the_promotion_before_anything_is_written(tmp_path: Path) -> None:
    candidate, _ = trained(tmp_path / "staging")
    store = ArtifactStore(str(tmp_path / "staging"))
    (open_part(candidate.model, store).path / "merged/config.json").write_text("other")
    with a_stage(tmp_path / "prod") as context:
        with pytest.raises(IntegrityError, match="is not what its manifest says"):
            resolve(candidate.id, str(tmp_path / "staging"), "ada", context)
        assert context.journal.entries() == []


def test_an_artifact_that_differs_under_one_key_is_refused(tmp_path: Path) -> None:
    candidate, _ = trained(tmp_path / "staging")
    staging, prod = ArtifactStore(str(tmp_path / "staging")), ArtifactStore(str(tmp_path / "prod"))
    model = open_part(candidate.model, staging)

    def other(output: Path, scratch: Path) -> Built:
        (output / "other.json").write_text("{}")
        return Built()

    manifest = model.manifest
    prod.produce(manifest.kind, other, inputs=manifest.inputs, config=manifest.config, code=manifest.code_version)
    with pytest.raises(IntegrityError, match="two builds of one key differ"):
        prod.adopt(model)


def test_a_refreshed_release_differs_from_the_champion_in_its_index_and_is_judged_by_the_first_baseline(
    tmp_path: Path,
) -> None:
    candidate, baseline = trained(tmp_path / "staging")
    crown(tmp_path / "staging", candidate)
    with a_stage(tmp_path / "staging", "run-2") as context:
        fresh, champion, dataset = refresh(an_artifact(context, "index", "new documents"), context)
        assert champion.id == candidate.id
        assert fresh.id != candidate.id
        assert (fresh.model, fresh.data) == (candidate.model, candidate.data)
        assert fresh.index.digest != candidate.index.digest
        assert dataset.digest == candidate.data.digest
    with a_stage(tmp_path / "prod", "run-3") as context:
        assert resolve(fresh.id, str(tmp_path / "staging"), "", context).baseline.id == baseline.id


def test_the_same_index_again_is_the_champion_itself(tmp_path: Path) -> None:
    candidate, _ = trained(tmp_path)
    crown(tmp_path, candidate)
    with a_stage(tmp_path, "run-2") as context:
        assert refresh(an_artifact(context, "index"), context)[0].id == candidate.id


def test_what_is_no_index_cannot_refresh_a_champion(tmp_path: Path) -> None:
    candidate, _ = trained(tmp_path)
    crown(tmp_path, candidate)
    with a_stage(tmp_path) as context, pytest.raises(InputError, match="is of the kind 'dataset'"):
        refresh(an_artifact(context, "dataset"), context)


def test_a_release_without_baseline_needs_a_champion_to_be_judged_by(tmp_path: Path) -> None:
    with a_stage(tmp_path / "staging") as context:
        parts = (an_artifact(context, "model"), an_artifact(context, "index"), an_artifact(context, "dataset"))
        alone = create_release(ReleaseConfig(), *parts, Prompt(), context)
    with a_stage(tmp_path / "prod") as context, pytest.raises(InputError, match="nothing to judge it by"):
        resolve(alone.id, str(tmp_path / "staging"), "ada", context)
