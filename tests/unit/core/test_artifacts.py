import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from serin.core.artifacts import MANIFEST, ArtifactStore, Built
from serin.core.errors import IntegrityError, StorageError
from serin.core.storage import is_remote, local_path


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "local":
        return ArtifactStore(str(tmp_path / "store"))
    return ArtifactStore(f"s3://{request.getfixturevalue('s3_bucket')}/store", cache=tmp_path / "cache")


def write_numbers(output: Path, _scratch: Path) -> Built:
    (output / "sub").mkdir()
    (output / "sub" / "numbers.txt").write_text("1 2 3")
    return Built({"count": 3})


def produce(store: ArtifactStore, *, build=write_numbers, code: str = "c1"):
    return store.produce("thing", build, inputs={"source": "d1"}, config={"n": 3}, code=code)


def working_folders(store: ArtifactStore) -> list[Path]:
    root = store._cache if is_remote(store.uri) else local_path(store.uri)
    return [path for path in (root / ".work").iterdir() if path.is_dir()]


def test_the_same_inputs_find_the_finished_artifact(store: ArtifactStore) -> None:
    first, reused_first = produce(store)
    second, reused_second = produce(store)
    assert (reused_first, reused_second) == (False, True)
    assert second.uri == first.uri
    assert second.metadata == {"count": 3}
    assert (second.path / "sub" / "numbers.txt").read_text() == "1 2 3"
    assert not working_folders(store), "finding one leaves a working folder"


def test_one_that_is_stopped_while_another_writes_leaves_nothing(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fcntl, "flock", stopped)
    with pytest.raises(KeyboardInterrupt):
        produce(store)
    assert not working_folders(store)


def test_changed_code_makes_another_artifact_with_the_same_digest(store: ArtifactStore) -> None:
    first, _ = produce(store)
    second, reused = produce(store, code="c2")
    assert not reused
    assert second.uri != first.uri
    assert second.digest == first.digest


def test_content_can_be_named_where_files_are_not_repeatable(tmp_path: Path) -> None:
    def build(output: Path, _: Path) -> Built:
        (output / os.urandom(4).hex()).write_text("x")
        return Built(content=["same"])

    digests = {
        ArtifactStore(str(tmp_path / name)).produce("t", build, inputs={}, config={}, code="c")[0].digest
        for name in ("a", "b")
    }
    assert len(digests) == 1


def test_a_build_that_fails_leaves_nothing_behind(store: ArtifactStore, tmp_path: Path) -> None:
    def fail(output: Path, _: Path) -> Built:
        (output / "half.txt").write_text("ha")
        raise StorageError("stop")

    with pytest.raises(StorageError, match="stop"):
        produce(store, build=fail)
    assert not any(key.endswith(MANIFEST) for key in store.storage.keys("thing/"))
    assert not any(path.name == "half.txt" for path in tmp_path.rglob("*"))
    artifact, reused = produce(store)
    assert not reused
    assert set(artifact.manifest.files) == {"sub/numbers.txt"}


def test_an_empty_build_is_refused(store: ArtifactStore) -> None:
    with pytest.raises(StorageError, match="Nothing was written"):
        produce(store, build=lambda output, scratch: Built())


def test_a_damaged_file_is_noticed_on_open(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    artifact, _ = produce(store)
    (artifact.path / "sub" / "numbers.txt").write_text("1 2 4")
    with pytest.raises(IntegrityError, match=r"sub/numbers.txt is not what its manifest says"):
        store.open(artifact.uri)


def test_a_damaged_artifact_is_made_again(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    artifact, _ = produce(store)
    (artifact.path / "sub" / "numbers.txt").unlink()
    again, reused = produce(store)
    assert not reused
    assert (again.path / "sub" / "numbers.txt").read_text() == "1 2 3"


def test_a_damaged_manifest_is_one_sentence(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    artifact, _ = produce(store)
    (artifact.path / MANIFEST).write_text("{")
    with pytest.raises(IntegrityError, match="is not a manifest"):
        store.open(artifact.uri)


def test_scratch_survives_kill_9_and_output_does_not(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from serin.core.artifacts import ArtifactStore, Built

        def build(output, scratch):
            if (scratch / "checkpoint").exists():
                assert not list(output.iterdir())
                (output / "result").write_text((scratch / "checkpoint").read_text())
                return Built()
            (output / "half").write_text("half")
            (scratch / "checkpoint").write_text("step 7")
            os.kill(os.getpid(), signal.SIGKILL)

        artifact, _ = ArtifactStore(sys.argv[1]).produce("thing", build, inputs={}, config={}, code="c")
        print((artifact.path / "result").read_text(), sorted(artifact.manifest.files))
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert ArtifactStore(str(tmp_path / "store")).storage.keys("thing/") == []
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout.strip() == "step 7 ['result']"
