import hashlib
from pathlib import Path

import pytest
from starlette.requests import Request

from serin.core.errors import ConfigError
from serin.serve.access import Access, AccessConfig, require_safe_host
from serin.serve.budgets import KeyLimits
from serin.serve.errors import RequestError
from serin.serve.keys import KeyRing, create_key

KEYS = frozenset(hashlib.sha256(key).hexdigest() for key in (b"one", b"two"))


def request(authorization: str = "", labels: str | None = None) -> Request:
    headers = [(b"authorization", authorization.encode())] if authorization else []
    headers += [] if labels is None else [(b"x-serin-access", labels.encode())]
    return Request({"type": "http", "headers": headers})


def test_without_keys_everyone_on_this_machine_may_ask():
    Access().require_user(request())


def test_with_keys_only_their_holders_may_ask():
    access = Access(key_digests=KEYS)
    access.require_user(request("Bearer two"))
    for authorization in ("", "Bearer three", "Basic one", "Bearer ", "Bearer é"):
        with pytest.raises(RequestError) as refused:
            access.require_user(request(authorization))
        assert refused.value.status == 401


def test_the_administrators_token_is_a_key_too_so_that_rollouts_can_ask():
    access = Access(admin_token="admin", key_digests=KEYS)
    access.require_user(request("Bearer admin"))
    with pytest.raises(RequestError):
        Access(key_digests=KEYS).require_user(request("Bearer "))


def test_administration_is_off_without_a_token():
    with pytest.raises(RequestError, match="SERIN_ADMIN_TOKEN") as refused:
        Access().require_admin(request("Bearer "))
    assert refused.value.status == 403
    Access(admin_token="t").require_admin(request("Bearer t"))


def test_an_open_host_is_refused_unless_keys_are_asked_for():
    for host in ("0.0.0.0", "::", "10.1.2.3", "example.org"):
        with pytest.raises(ConfigError, match="SERIN_API_KEYS"):
            require_safe_host(host, Access())
        require_safe_host(host, Access(key_digests=KEYS))
    for host in ("127.0.0.1", "::1", "localhost"):
        require_safe_host(host, Access())


def test_keys_that_are_no_digests_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERIN_API_KEYS", "secret")
    with pytest.raises(ConfigError, match="SHA-256"):
        Access.from_environment()
    monkeypatch.setenv("SERIN_API_KEYS", ", ".join(KEYS))
    assert Access.from_environment().key_digests == KEYS


def test_a_key_of_the_file_says_who_asks_and_with_which_labels(tmp_path: Path):
    file = tmp_path / "keys.json"
    key, entry = create_key(file, labels=("staff", "finance"), limits=KeyLimits(tokens_per_day=5))
    access = Access(admin_token="t", key_digests=KEYS, keys=KeyRing(file), default_labels=frozenset({"partners"}))
    assert access.require_user(request(f"Bearer {key}")) == entry.id
    assert access.limits_of(entry.id).tokens_per_day == 5
    assert access.labels_of(request(f"Bearer {key}")) == {"staff", "finance"}
    assert access.require_user(request("Bearer one")) == hashlib.sha256(b"one").hexdigest()[:12]
    assert access.labels_of(request("Bearer one")) == {"partners"}
    assert access.require_user(request("Bearer t")) == "admin"
    with pytest.raises(RequestError):
        access.require_user(request("Bearer three"))


def test_the_header_narrows_labels_and_never_widens_them(tmp_path: Path):
    file = tmp_path / "keys.json"
    key, _ = create_key(file, labels=("staff", "finance"))
    access = Access(keys=KeyRing(file))
    assert access.labels_of(request(f"Bearer {key}", "finance, board")) == {"finance"}
    assert access.labels_of(request(f"Bearer {key}", "")) == frozenset()
    assert Access().labels_of(request(labels="board")) == frozenset()


def test_a_keys_file_lets_a_host_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "keys.json"
    create_key(file)
    monkeypatch.setenv("SERIN_API_KEYS_FILE", str(file))
    access = Access.from_environment()
    require_safe_host("0.0.0.0", access)
    with pytest.raises(RequestError):
        access.require_user(request())
    with pytest.raises(ConfigError, match="absent"):
        Access.from_environment(AccessConfig(keys_file=str(tmp_path / "absent.json")))
