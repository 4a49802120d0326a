"""serin release key, sign, verify and diff, as a user types them."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from worlds import artifact_of, passed_gate, release_of

from serin.core.artifacts import Artifact, ArtifactStore
from serin.core.errors import ConfigError, IntegrityError
from serin.core.journal import Journal
from serin.core.release import Release, save_release
from serin.core.serving import ServingConfig
from serin_pipelines.cli import app


def serin(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments])


def answer(*arguments: str) -> dict[str, Any]:
    done = serin(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


def saved(store: ArtifactStore, max_new_tokens: int = 8) -> Release:
    def made(kind: str, **sources: Artifact) -> Artifact:
        return artifact_of(store, kind, lambda target: (target / "it.txt").write_text("it"), sources)

    dataset = made("dataset")
    parts = made("model", base=made("base"), dataset=dataset), made("index", documents=made("documents")), dataset
    release = release_of(*parts, ServingConfig(max_new_tokens=max_new_tokens))
    save_release(store.storage, release)
    return release


def test_a_key_is_made_once_readable_by_its_owner_and_signs(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, release = tmp_path / "release.pem", saved(store)
    key = answer("release", "key", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert isinstance(serin("release", "key", str(file)).exception, ConfigError)
    monkeypatch.setenv("SERIN_SIGNING_KEY_FILE", str(file))
    signed = answer("release", "sign", release.short_id, "--store", store.uri)
    assert signed["public_key"] == key["public_key"]
    asked = ("release", "verify", release.id, "--store", store.uri, "--require-signature", "--without-gate")
    verdict = answer(*asked, "--trusted-key", f"ours={key['public_key']}")
    assert verdict["passed"]
    assert "signed by ours." in [check["message"] for check in verdict["checks"]]
    other = answer("release", "key", str(tmp_path / "other.pem"))
    assert isinstance(serin(*asked, "--trusted-key", f"other={other['public_key']}").exception, IntegrityError)


def test_signing_without_a_key_says_how_to_make_one(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERIN_SIGNING_KEY", "SERIN_SIGNING_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    error = serin("release", "sign", saved(store).id, "--store", store.uri).exception
    assert isinstance(error, ConfigError)
    assert "serin release key" in str(error)


def test_verify_names_the_part_that_was_changed_and_still_prints_every_check(store: ArtifactStore) -> None:
    release = saved(store)
    passed_gate(store.uri, release.id)
    assert answer("release", "verify", release.id, "--store", store.uri)["passed"]
    (Path(release.index.uri.removeprefix("file://")) / "it.txt").write_text("IT")
    done = serin("release", "verify", release.id, "--store", store.uri, "--json")
    assert isinstance(done.exception, IntegrityError)
    assert "(index" in str(done.exception)
    checks = {check["name"]: check["passed"] for check in json.loads(done.stdout)["checks"]}
    assert checks["gate"]
    assert checks["model"]
    assert not checks["index"]


def test_diff_says_in_words_what_changed(store: ArtifactStore) -> None:
    one, other = saved(store), saved(store, max_new_tokens=9)
    done = serin("release", "diff", one.short_id, other.short_id, "--store", store.uri)
    assert done.exit_code == 0
    assert done.stdout.split("\n")[:2] == ["serving", "  max_new_tokens was 8 and is 9."]
    found = answer("release", "diff", one.id, other.id, "--store", store.uri)
    assert found["changes"] == [{"part": "serving", "text": "max_new_tokens was 8 and is 9."}]


def test_list_says_how_each_release_was_made_its_last_gate_and_which_serves(store: ArtifactStore) -> None:
    one, other = saved(store), saved(store, max_new_tokens=9)
    journal = Journal(store.storage, "assistant")
    journal.append("release", release_id=one.id, decision="created")
    passed_gate(store.uri, one.id)
    journal.append("promotion", release_id=one.id, decision="promote")
    journal.append("release", release_id=other.id, decision="imported")
    found = answer("release", "list", "--store", store.uri)
    assert found["releases"] == [other.id, one.id]  # newest first
    assert [(about["how"], about["gate"]) for about in found["about"]] == [("imported", ""), ("created", "pass")]
    assert found["champion"] == one.id
    shown = serin("release", "list", "--store", store.uri).stdout
    (line,) = (line for line in shown.splitlines() if one.id in line)
    assert line.split()[-2:] == ["pass", "champion"]
