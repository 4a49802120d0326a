import json
import stat
from pathlib import Path

import pytest

from serin.core.errors import ConfigError
from serin.serve.budgets import KeyLimits
from serin.serve.keys import KeyRing, create_key, list_keys, revoke_key


class Clock:
    """Time that a test moves."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_a_key_is_known_by_its_digest_alone(tmp_path: Path):
    file = tmp_path / "keys.json"
    key, entry = create_key(file, name="shop", labels=("staff",), limits=KeyLimits(tokens_per_day=100))
    assert key.split("_", 2)[2] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = KeyRing(file).find(key.encode())
    assert found == entry
    assert found.labels == ("staff",)
    assert found.limits.tokens_per_day == 100


def test_a_key_that_differs_anywhere_is_none(tmp_path: Path):
    file = tmp_path / "keys.json"
    key, _ = create_key(file)
    other, _ = create_key(file)
    ring = KeyRing(file)
    mixed = key[:19] + other[19:]
    for wrong in ("", key[:-1], key + "x", key[:-1] + ("A" if key[-1] != "A" else "B"), mixed, "serin_" + "é" * 60):
        assert ring.find(wrong.encode()) is None
    assert ring.find(b"\xff\xfe") is None


def test_a_key_ends_when_it_expires(tmp_path: Path):
    file = tmp_path / "keys.json"
    key, entry = create_key(file, expires_days=1)
    clock = Clock(0.0)
    ring = KeyRing(file, clock)
    assert ring.find(key.encode()) == entry
    clock.now = 4e9
    assert ring.find(key.encode()) is None


def test_a_change_of_the_file_holds_without_a_restart(tmp_path: Path):
    file = tmp_path / "keys.json"
    first, entry = create_key(file)
    clock = Clock(0.0)
    ring = KeyRing(file, clock)
    second, _ = create_key(file)
    revoke_key(file, entry.id)
    clock.now = 10.0
    assert ring.find(first.encode()) is None
    assert ring.find(second.encode()) is not None
    assert [kept.id for kept in list_keys(file)] == [second.split("_")[1]]


def test_a_file_that_breaks_leaves_the_keys_as_they_were(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "keys.json"
    key, _ = create_key(file)
    clock = Clock(0.0)
    ring = KeyRing(file, clock)
    for broken in ("{", "[]", '{"keys": [{"id": "x"}]}'):
        file.write_text(broken)
        clock.now += 10.0
        assert ring.find(key.encode()) is not None
    assert "stay as they were" in caplog.text


def test_a_file_that_is_none_is_refused_in_one_sentence(tmp_path: Path):
    file = tmp_path / "keys.json"
    with pytest.raises(ConfigError, match="serin serve key"):
        KeyRing(file)
    file.write_text(json.dumps({"keys": [{"id": "0" * 12, "sha256": "secret"}]}))
    with pytest.raises(ConfigError, match="sha256"):
        KeyRing(file)
    file.write_text('{"keys": []}')
    with pytest.raises(ConfigError, match="no key"):
        revoke_key(file, "abc")
