import base64
import hmac
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from starlette.requests import Request

from serin.core.errors import ConfigError
from serin.serve.access import Access
from serin.serve.errors import RequestError
from serin.serve.oidc import Oidc, OidcConfig

RSA_KEYS = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2)]
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def published(key: Any, kid: str) -> dict[str, Any]:
    kind = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}


@dataclass
class Provider:
    """An identity provider over HTTP: its discovery document and its keys."""

    keys: list[dict[str, Any]]
    url: str = ""
    up: bool = True
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def provider() -> Iterator[Provider]:
    state = Provider([published(RSA_KEYS[0], "one")])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            body = (
                {"keys": state.keys} if self.path == "/keys" else {"issuer": state.url, "jwks_uri": f"{state.url}/keys"}
            )
            self.send_response(200 if state.up else 500)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def token(issuer: str, key: Any = RSA_KEYS[0], kid: str = "one", algorithm: str = "RS256", **claims: Any) -> str:
    body = {"iss": issuer, "aud": "serin", "sub": "u1", "email": "ada@corp.example", "exp": time.time() + 60, **claims}
    body = {name: value for name, value in body.items() if value is not None}
    return jwt.encode(body, key, algorithm=algorithm, headers={"kid": kid} if kid else None)


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_a_token_of_the_provider_says_who_it_is(provider: Provider):
    oidc = Oidc(OidcConfig(issuer=provider.url, audience="serin", who="email"))
    assert oidc.verify(token(provider.url)) == "ada@corp.example"
    assert provider.asked == ["/.well-known/openid-configuration", "/keys"]
    oidc.verify(token(provider.url))
    assert len(provider.asked) == 2


def test_what_is_wrong_with_a_token_refuses_it(provider: Provider):
    oidc = Oidc(OidcConfig(issuer=provider.url, audience="serin"))
    good = token(provider.url)
    wrong = [
        token("https://elsewhere.example"),
        token(provider.url, aud="another"),
        token(provider.url, exp=time.time() - 600),
        token(provider.url, exp=None),
        token(provider.url, sub=None),
        token(provider.url, nbf=time.time() + 600),
        token(provider.url, key=RSA_KEYS[1]),
        good[:-4] + "AAAA",
        jwt.encode({"iss": provider.url, "aud": "serin", "sub": "u1", "exp": 4e9}, None, algorithm="none"),
        "a.b.c",
        "x" * 20_000,
    ]
    for one in wrong:
        with pytest.raises(RequestError) as refused:
            oidc.verify(one)
        assert refused.value.status == 401


def test_a_public_key_is_never_taken_for_a_shared_secret(provider: Provider):
    claims = {"iss": provider.url, "aud": "serin", "sub": "u1", "exp": 4e9}
    signed = ".".join(encoded(json.dumps(part).encode()) for part in ({"alg": "HS256", "kid": "one"}, claims))
    secret = json.dumps(provider.keys[0]).encode()
    forged = f"{signed}.{encoded(hmac.digest(secret, signed.encode(), 'sha256'))}"
    provider.keys.append({"kty": "oct", "kid": "shared", "k": "AAAA"})
    oidc = Oidc(OidcConfig(issuer=provider.url, audience="serin"))
    with pytest.raises(RequestError, match="algorithm"):
        oidc.verify(forged)
    with pytest.raises(ConfigError, match="algorithms"):
        OidcConfig.load({"issuer": "https://a.example", "audience": "b", "algorithms": ["HS256"]})


def test_new_keys_are_fetched_when_a_token_names_one_but_not_for_every_made_up_name(provider: Provider):
    now = 0.0
    config = OidcConfig(issuer=provider.url, audience="serin", jwks=f"{provider.url}/keys", min_refresh_s=30)
    oidc = Oidc(config, clock=lambda: now)
    oidc.verify(token(provider.url))
    provider.keys.append(published(EC_KEY, "two"))
    rotated = token(provider.url, EC_KEY, "two", "ES256")
    with pytest.raises(RequestError):
        oidc.verify(rotated)  # asked a moment ago
    now = 31.0
    assert oidc.verify(rotated) == "u1"
    for number in range(50):
        with pytest.raises(RequestError):
            oidc.verify(token(provider.url, kid=f"made-up-{number}"))
    assert provider.asked == ["/keys", "/keys"]


def test_keys_outlast_a_provider_that_is_down(provider: Provider, caplog: pytest.LogCaptureFixture):
    now = 0.0
    config = OidcConfig(issuer=provider.url, audience="serin", jwks=f"{provider.url}/keys")
    oidc = Oidc(config, clock=lambda: now)
    oidc.verify(token(provider.url))
    provider.up, now = False, 5000.0
    assert oidc.verify(token(provider.url)) == "u1"
    assert "stay as they were" in caplog.text
    with pytest.raises(RequestError) as refused:
        Oidc(config).verify(token(provider.url))
    assert refused.value.status == 503


def test_a_claim_can_be_asked_for(provider: Provider, tmp_path: Path):
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": provider.keys}))
    config = OidcConfig(
        issuer=provider.url, audience="serin", jwks=str(file), claim="realm_access.roles", values=("serin-admin",)
    )
    oidc = Oidc(config)
    assert oidc.verify(token(provider.url, realm_access={"roles": ["x", "serin-admin"]})) == "u1"
    for claims in ({}, {"realm_access": {"roles": ["serin-admins"]}}, {"realm_access": "serin-admin"}):
        with pytest.raises(RequestError) as refused:
            oidc.verify(token(provider.url, **claims))
        assert refused.value.status == 403


def test_both_the_token_and_the_provider_open_the_admin_routes(provider: Provider):
    access = Access(admin_token="t", oidc=Oidc(OidcConfig(issuer=provider.url, audience="serin", who="email")))

    def request(bearer: str) -> Request:
        return Request({"type": "http", "headers": [(b"authorization", f"Bearer {bearer}".encode())]})

    assert access.require_admin(request("t")) == "admin"
    assert access.require_admin(request(token(provider.url))) == "ada@corp.example"
    for wrong in ("", "u", "a.b.c"):
        with pytest.raises(RequestError) as refused:
            access.require_admin(request(wrong))
        assert refused.value.status == 401


def test_keys_come_over_https_only():
    with pytest.raises(ConfigError, match="https"):
        OidcConfig.load({"issuer": "https://id.example", "audience": "a", "jwks": "http://id.example/keys"})
    with pytest.raises(ConfigError, match="https"):
        OidcConfig.load({"issuer": "http://id.example", "audience": "a"})
