import hashlib

import pytest
from starlette.requests import Request

from serin.core.errors import ConfigError
from serin.serve.access import Access, require_safe_host
from serin.serve.protocol import RequestError

KEYS = frozenset(hashlib.sha256(key).hexdigest() for key in (b"one", b"two"))


def request(authorization: str = "") -> Request:
    headers = [(b"authorization", authorization.encode())] if authorization else []
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
