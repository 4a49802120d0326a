"""One suite for both storages."""

from pathlib import Path

import pytest

from serin.core.errors import AlreadyExistsError, ConfigError, StorageError
from serin.core.storage import Storage, disk_errors, join, storage_for


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return storage_for(str(tmp_path / "store"))
    return storage_for(f"s3://{request.getfixturevalue('s3_bucket')}/some/prefix")


def test_a_written_key_reads_back(storage: Storage) -> None:
    storage.write("a/b.txt", b"one")
    storage.write("a/b.txt", b"two")
    assert storage.read("a/b.txt") == b"two"
    assert storage.exists("a/b.txt")
    assert not storage.exists("a/b")


def test_a_conditional_write_never_overwrites(storage: Storage) -> None:
    storage.write("key", b"first", if_absent=True)
    with pytest.raises(AlreadyExistsError):
        storage.write("key", b"second", if_absent=True)
    assert storage.read("key") == b"first"


def test_a_missing_key_is_one_sentence_with_its_uri(storage: Storage) -> None:
    with pytest.raises(StorageError, match=r"nothing/here does not exist"):
        storage.read("nothing/here")


def test_keys_are_listed_by_prefix_and_sorted(storage: Storage) -> None:
    for key in ("b/2", "b/1", "c", "ba"):
        storage.write(key, b"x")
    assert storage.keys() == ["b/1", "b/2", "ba", "c"]
    assert storage.keys("b/") == ["b/1", "b/2"]
    assert storage.keys("b") == ["b/1", "b/2", "ba"]
    assert storage.keys("zzz") == []


def test_delete_removes_a_folder_but_not_its_namesake(storage: Storage) -> None:
    for key in ("run/1", "run/2", "runner"):
        storage.write(key, b"x")
    storage.delete("run")
    assert storage.keys() == ["runner"]


def test_files_travel_both_ways(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(range(256)) * 5000)
    storage.upload(source, "deep/file.bin")
    storage.fetch("deep/file.bin", tmp_path / "new" / "target.bin")
    assert (tmp_path / "new" / "target.bin").read_bytes() == source.read_bytes()


def test_a_key_cannot_lead_out_of_a_local_store(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="leads out of"):
        storage_for(str(tmp_path / "store")).write("../outside", b"x")


def test_unknown_schemes_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="gs://bucket/x"):
        storage_for("gs://bucket/x")


def test_s3_that_is_not_there_is_one_sentence(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageError, match="S3 cannot be reached"):
        storage_for(f"s3://{s3_bucket}/x").read("key")


def test_a_missing_bucket_is_named(s3_bucket: str) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        storage_for("s3://no-such-bucket-here").read("key")


def test_no_space_left_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No disk space left"), disk_errors(tmp_path):
        raise OSError(28, "No space left on device")


def test_a_really_full_disk_is_one_sentence() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(StorageError, match="No disk space left"), disk_errors(full):
        full.write_bytes(b"x" * 100)


def test_join_keeps_one_slash() -> None:
    assert join("s3://bucket/", "/a/", "b") == "s3://bucket/a/b"
