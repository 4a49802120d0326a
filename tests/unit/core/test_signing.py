import base64
import json

import pytest

from serin.core.artifacts import MANIFEST, ArtifactStore, Built, Origin
from serin.core.errors import ConfigError, IntegrityError, SerinError
from serin.core.journal import Journal
from serin.core.policy import default_policy
from serin.core.prompts import Prompt
from serin.core.release import Part, Release, load_release, save_release
from serin.core.signing import Signer, copy_signatures, envelopes_of, new_key, sign_release, signed_by
from serin.core.verification import (
    REQUIREMENTS_VARIABLE,
    ReleaseRequirements,
    environment_requirements,
    links_behind,
    manifests_behind,
    require_verified,
    verify_release,
)


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def signer(monkeypatch):
    monkeypatch.setenv("SERIN_SIGNING_KEY", new_key()[0])
    return Signer.from_environment()


def an_artifact(store, kind, text="one", **sources):
    """An artefact, made of other artefacts or of a source."""

    def build(output, _):
        (output / "file.txt").write_text(text, encoding="utf-8")
        return Built()

    made_of = {"source": "5" * 64} if kind in ("dataset", "documents") else {}
    made, _ = store.produce(
        kind,
        build,
        inputs={"text": text, **made_of, **{name: one.digest for name, one in sources.items()}},
        config={},
        code="1",
        sources={name: one.uri for name, one in sources.items()},
        origin=Origin("run-1", ""),
    )
    return made


def a_model(store, text="one"):
    return an_artifact(store, "model", text, base=an_artifact(store, "base"), dataset=an_artifact(store, "dataset"))


def a_release(store, **changes):
    index = an_artifact(store, "index", documents=an_artifact(store, "documents"))
    parts = {"model": a_model(store), "index": index, "data": an_artifact(store, "dataset")}
    values = {name: Part.of(part) for name, part in parts.items()} | changes
    release = Release(prompt=Prompt(), guardrails=default_policy().dump(), serving={}, code_version="1", **values)
    save_release(store.storage, release)
    return release


def passed_gate(store, release, policy_version="p1"):
    def build(output, _):
        (output / "results.json").write_text("{}", encoding="utf-8")
        return Built()

    evaluation, _ = store.produce(
        "evaluation", build, inputs={"candidate_release": release.id}, config={}, code="1", origin=Origin("run-1", "")
    )
    journal = Journal(store.storage, "assistant")
    journal.append(
        "gate",
        release_id=release.id,
        decision="pass",
        evidence={"evaluation": {"uri": evaluation.uri, "digest": evaluation.digest}},
        policy_version=policy_version,
    )
    return journal, evaluation


def failures(checks):
    return {check.name: check.message for check in checks if not check.passed}


def test_a_signature_is_checked_with_the_public_key_alone(store, signer, monkeypatch):
    release = a_release(store)
    sign_release(release, store.storage, signer)
    monkeypatch.delenv("SERIN_SIGNING_KEY")
    assert signed_by(release, envelopes_of(store.storage, release.id), {"ci": signer.public_key}) == (["ci"], [])


def test_the_same_key_signs_a_release_once(store, signer):
    release = a_release(store)
    assert sign_release(release, store.storage, signer) == sign_release(release, store.storage, signer)
    assert len(envelopes_of(store.storage, release.id)) == 1


def test_a_key_is_pem_or_raw_base64_and_a_wrong_one_is_never_shown(monkeypatch, tmp_path):
    raw = base64.b64encode(bytes(range(32))).decode()
    monkeypatch.setenv("SERIN_SIGNING_KEY", raw)
    by_text = Signer.from_environment().public_key
    monkeypatch.delenv("SERIN_SIGNING_KEY")
    (tmp_path / "key").write_text(f"{raw}\n")
    monkeypatch.setenv("SERIN_SIGNING_KEY_FILE", str(tmp_path / "key"))
    assert Signer.from_environment().public_key == by_text
    monkeypatch.setenv("SERIN_SIGNING_KEY", "hunter2-is-my-secret")
    with pytest.raises(ConfigError, match="holds no ed25519 key") as error:
        Signer.from_environment()
    assert "hunter2" not in str(error.value)


def test_no_key_in_the_environment_means_no_signature(monkeypatch):
    monkeypatch.delenv("SERIN_SIGNING_KEY", raising=False)
    assert Signer.from_environment() is None


def test_a_statement_that_was_edited_after_signing_does_not_hold(store, signer):
    release = a_release(store)
    envelope = sign_release(release, store.storage, signer)
    statement = json.loads(base64.b64decode(envelope.payload))
    statement["predicate"]["signed_at"] = "2031-01-01T00:00:00+00:00"
    forged = envelope.model_copy(update={"payload": base64.b64encode(json.dumps(statement).encode()).decode()})
    names, problems = signed_by(release, [forged], {"ci": signer.public_key})
    assert names == []
    assert "changed after it was signed" in problems[0]


def test_the_signature_of_another_release_does_not_serve_this_one(store, signer):
    release, other = a_release(store), a_release(store, model=Part.of(a_model(store, "two")))
    envelope = sign_release(other, store.storage, signer)
    assert signed_by(release, [envelope], {"ci": signer.public_key})[0] == []


def test_a_release_without_any_trusted_signature_is_refused_where_one_is_required(store, signer):
    release = a_release(store)
    required = ReleaseRequirements(require_signature=True, trusted_keys={"ci": signer.public_key})
    found = failures(verify_release(release, store, None, required))
    assert "Sign it with a trusted key" in found["signature"]
    sign_release(release, store.storage, Signer.from_environment())
    assert failures(verify_release(release, store, None, required)) == {}
    stranger = ReleaseRequirements(require_signature=True, trusted_keys={"other": new_key()[1]})
    assert "not trusted here" in failures(verify_release(release, store, None, stranger))["signature"]
    nobody = ReleaseRequirements(require_signature=True)
    assert "no key is trusted" in failures(verify_release(release, store, None, nobody))["signature"]


@pytest.mark.parametrize("part", ["model", "index", "data"])
def test_one_changed_byte_is_found_and_the_part_named(store, part):
    release = a_release(store)
    path = store.open(getattr(release, part).uri).path / "file.txt"
    path.write_text("onf", encoding="utf-8")
    checks = verify_release(release, store, None)
    assert list(failures(checks)) == [part]
    with pytest.raises(IntegrityError, match=f"{part}: .*file.txt is not what its manifest says"):
        require_verified(checks, release)


def test_a_byte_changed_anywhere_in_what_a_release_rests_on_is_found(store, signer):
    release = a_release(store)
    sign_release(release, store.storage, signer)
    journal, evaluation = passed_gate(store, release)
    journal.append("release", release_id=release.id, decision="created", evidence={"behind": links_behind(release)})
    trusted = ReleaseRequirements(require_signature=True, trusted_keys={"ci": signer.public_key})
    assert failures(verify_release(release, store, journal, trusted)) == {}
    root = evaluation.path.parents[1]
    folders = [store.open(uri).path for uri, _ in manifests_behind([release.model.uri, release.index.uri])]
    folders += [evaluation.path, root / "releases" / release.id, root / "endpoints"]
    payloads = {root / "documents", root / "base"}  # of what lies behind, the manifests count
    files = [one for folder in folders for one in folder.rglob("*") if one.is_file() and one.suffix != ".lock"]
    seen = 0
    for file in files:
        if file.name == "file.txt" and file.parents[1] in payloads:
            continue
        whole = file.read_bytes()
        for at in {0, len(whole) // 3, len(whole) // 2, len(whole) - 2}:
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert is_refused(store, release.id, trusted), (file, at)
            seen += 1
        file.write_bytes(whole)
    assert seen > 40
    assert not is_refused(store, release.id, trusted)


def is_refused(store, release_id, requirements):
    """As before a deployment: whether anything speaks against a release."""
    journal = Journal(store.storage, "assistant")
    try:
        return bool(failures(verify_release(load_release(store.storage, release_id), store, journal, requirements)))
    except SerinError:
        return True


def test_a_file_and_its_manifest_changed_together_break_the_signature(store, signer):
    release = a_release(store)
    sign_release(release, store.storage, signer)
    folder = store.open(release.model.uri).path
    other = a_model(store, "two")
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / "file.txt").write_text("two")
    manifest["files"] = json.loads((other.path / MANIFEST).read_text())["files"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    required = ReleaseRequirements(require_signature=True, trusted_keys={"ci": signer.public_key})
    assert "made for another model" in failures(verify_release(release, store, None, required))["signature"]


def test_a_changed_record_is_refused_when_it_is_loaded(store):
    release = a_release(store)
    key = f"releases/{release.id}/release.json"
    text = store.storage.read(key).decode().replace("colleague's help", "refund of your wish")
    store.storage.delete(key)
    store.storage.write(key, text.encode())
    with pytest.raises(IntegrityError, match="was changed"):
        load_release(store.storage, release.id)


def test_a_missing_link_fails_the_lineage(store):
    release = a_release(store)
    documents = an_artifact(store, "documents")
    store.storage.delete(f"documents/{documents.manifest.key}")
    assert "is gone" in failures(verify_release(release, store, None))["lineage"]


def test_an_input_that_is_not_what_was_used_fails_the_lineage(store):
    release = a_release(store)
    documents = an_artifact(store, "documents")
    manifest = json.loads((documents.path / MANIFEST).read_text())
    (documents.path / MANIFEST).write_text(json.dumps({**manifest, "digest": "0" * 64}))
    assert "made from another documents" in failures(verify_release(release, store, None))["lineage"]


def test_an_artefact_that_does_not_say_what_it_was_made_from_fails_the_lineage(store):
    release = a_release(store)
    path = store.open(release.model.uri).path / MANIFEST
    manifest = json.loads(path.read_text())
    for gone in ("inputs", "sources"):
        links = {name: value for name, value in manifest[gone].items() if name != "dataset"}
        path.write_text(json.dumps({**manifest, gone: links}))
        assert "does not say from which dataset" in failures(verify_release(release, store, None))["lineage"]


def test_a_model_of_another_dataset_than_the_releases_fails_the_lineage(store):
    other = an_artifact(store, "dataset", "two")
    release = a_release(store, data=Part.of(other))
    assert "trained on another dataset" in failures(verify_release(release, store, None))["lineage"]


def test_links_that_differ_from_the_journals_record_fail_the_lineage(store):
    release = a_release(store)
    journal = Journal(store.storage, "assistant")
    journal.append("release", release_id=release.id, decision="created", evidence={"behind": links_behind(release)})
    lineage = next(one for one in verify_release(release, store, journal, needs_gate=False) if one.name == "lineage")
    assert lineage.passed
    assert "as entry 1 of the journal says" in lineage.message
    path = an_artifact(store, "documents").path / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "inputs": {**manifest["inputs"], "source": "6" * 64}}))
    found = failures(verify_release(release, store, journal, needs_gate=False))
    assert "other things of itself than the journal" in found["lineage"]


def test_the_gate_must_have_passed_on_this_very_release_under_a_policy_that_counts(store):
    release = a_release(store)
    journal = Journal(store.storage, "assistant")
    assert "never evaluated" in failures(verify_release(release, store, journal))["gate"]
    journal, evaluation = passed_gate(store, release)
    assert failures(verify_release(release, store, journal)) == {}
    strict = ReleaseRequirements(gate_policies=("p2",))
    assert "does not count here" in failures(verify_release(release, store, journal, strict))["gate"]
    (evaluation.path / "results.json").write_text("[]")
    assert "results.json" in failures(verify_release(release, store, journal))["gate"]


def test_a_gate_that_failed_later_counts(store):
    release = a_release(store)
    journal, _ = passed_gate(store, release)
    journal.append("gate", release_id=release.id, decision="fail")
    assert "says 'fail'" in failures(verify_release(release, store, journal))["gate"]


def test_a_guardrail_version_that_is_not_allowed_is_refused(store):
    release = a_release(store)
    asked = ReleaseRequirements(guardrail_versions=("2026-10",))
    assert "may not serve here" in failures(verify_release(release, store, None, asked))["guardrails"]


def test_signatures_travel_with_a_release(store, signer, tmp_path):
    release = a_release(store)
    sign_release(release, store.storage, signer)
    other = ArtifactStore(str(tmp_path / "other"))
    assert copy_signatures(release.id, store.storage, other.storage) == 1
    assert copy_signatures(release.id, store.storage, other.storage) == 1
    assert envelopes_of(other.storage, release.id) == envelopes_of(store.storage, release.id)


def test_what_an_environment_asks_is_read_from_its_variable_and_checked(monkeypatch):
    monkeypatch.setenv(REQUIREMENTS_VARIABLE, '{"require_signature": true, "gate_policies": ["p1"]}')
    assert environment_requirements() == ReleaseRequirements(require_signature=True, gate_policies=("p1",))
    for wrong in ("{", "[]", '{"require_signatures": true}'):
        monkeypatch.setenv(REQUIREMENTS_VARIABLE, wrong)
        with pytest.raises(ConfigError):
            environment_requirements()
