"""Bearer tokens of an identity provider (OpenID Connect), checked against its published keys.

Only asymmetric signatures, issuer, audience and expiry are required, and the keys are fetched again when a token names
one that is not known, at most every half minute: a flood of made-up key ids is no flood of requests to the provider.
"""

import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import jwt
from pydantic import Field, model_validator

from serin.core.config import Section
from serin.core.errors import ConfigError, UnavailableError
from serin.serve.errors import RequestError

logger = logging.getLogger(__name__)

FETCH_TIMEOUT_S = 5.0
MAX_JWKS_BYTES = 1 << 20
MAX_TOKEN_CHARS = 16_384
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class OidcConfig(Section):
    """Whose tokens open the admin routes."""

    issuer: str
    """Must equal the token's ``iss``; its discovery document names the keys where ``jwks`` is empty."""
    audience: str
    """Must be in the token's ``aud``."""
    jwks: str = ""
    """URL or file of the provider's keys."""
    algorithms: tuple[Algorithm, ...] = Field(default=("RS256", "ES256"), min_length=1)
    """Signatures that are taken; symmetric ones cannot be."""
    claim: str = ""
    """A claim that must be there, such as ``groups`` or ``realm_access.roles``; empty: every token of the audience."""
    values: tuple[str, ...] = ()
    """And hold one of these; empty: it must be true or not empty."""
    who: str = "sub"
    """The claim that names the caller in logs."""
    leeway_s: float = Field(default=30.0, ge=0, le=300)
    """Tolerated difference of clocks, seconds."""
    cache_s: float = Field(default=600.0, gt=0)
    """Age at which the keys are fetched again; when that fails the old ones stay."""
    min_refresh_s: float = Field(default=30.0, ge=0)
    """Shortest time between two fetches."""

    @model_validator(mode="after")
    def _safe_places(self) -> "OidcConfig":
        for place in (self.jwks, "" if self.jwks else self.issuer):
            url = urlparse(place)
            if url.scheme == "http" and url.hostname not in ("127.0.0.1", "::1", "localhost"):
                raise ValueError(f"{place} must be https: whoever can change the keys can make tokens")
        return self


class Oidc:
    """Verifies tokens; safe to share between threads.

    Args:
        config: whose tokens.
        clock: seconds, monotonic.
    """

    def __init__(self, config: OidcConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = self._tried = float("-inf")
        self._lock = threading.Lock()

    def prepare(self, token: str) -> None:
        """Fetch the keys where a token needs it, in a thread, so that ``verify`` soon after does not wait for it."""
        try:
            self._key(_header(token))
        except (RequestError, UnavailableError, jwt.PyJWTError):
            return  # ``verify`` says what is wrong

    def verify(self, token: str) -> str:
        """Who a token stands for.

        Raises:
            RequestError: 401 for a token that does not hold, 403 for one without the claim, 503 without keys.
        """
        config = self._config
        try:
            header = _header(token)
            key = self._key(header)
            claims = jwt.decode(
                token,
                key,
                algorithms=[*config.algorithms],
                audience=config.audience,
                issuer=config.issuer,
                leeway=config.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except UnavailableError as error:
            raise RequestError(503, str(error), retry_after_s=1) from error
        except jwt.PyJWTError as error:
            raise RequestError(401, f"The token does not hold: {error}.", code="invalid_token") from error
        if config.claim and not _holds(_claim(claims, config.claim), config.values):
            raise RequestError(403, f"The token's {config.claim!r} does not allow administration.", code="forbidden")
        return str(_claim(claims, config.who) or claims["sub"])

    def _key(self, header: dict[str, Any]) -> jwt.PyJWK:
        if header.get("alg") not in self._config.algorithms:
            raise jwt.InvalidAlgorithmError("its algorithm is not one of those taken here")
        with self._lock:
            now, config = self._clock(), self._config
            wanted = now - self._fetched > config.cache_s or self._match(header) is None
            if wanted and now - self._tried >= config.min_refresh_s:
                self._refresh()
        if not self._keys:
            raise UnavailableError("The identity provider's keys could not be fetched yet: try again shortly.")
        if (key := self._match(header)) is None:
            raise jwt.InvalidTokenError("it is signed with a key that the provider does not publish")
        return key

    def _match(self, header: dict[str, Any]) -> jwt.PyJWK | None:
        if kid := header.get("kid"):
            return self._keys.get(str(kid))
        return next(iter(self._keys.values())) if len(self._keys) == 1 else None

    def _refresh(self) -> None:
        self._tried = self._clock()
        try:
            place = self._config.jwks or _discover(self._config.issuer)
            found = _read_json(place).get("keys", [])
            self._keys = {str(key.get("kid", "")): jwt.PyJWK(key) for key in found if _signs(key)}
            self._fetched = self._clock()
        except (OSError, ValueError, AttributeError, TypeError, jwt.PyJWTError, ConfigError) as error:
            logger.warning("The identity provider's keys could not be fetched and stay as they were: %s", error)


def _header(token: str) -> dict[str, Any]:
    if len(token) > MAX_TOKEN_CHARS:
        raise jwt.InvalidTokenError("it is too long")
    return jwt.get_unverified_header(token)


def _discover(issuer: str) -> str:
    document = _read_json(issuer.rstrip("/") + "/.well-known/openid-configuration")
    if document.get("issuer") != issuer:
        raise ConfigError(f"{issuer} calls itself {document.get('issuer')!r}: write its issuer as it does.")
    place = str(document["jwks_uri"]) if "jwks_uri" in document else ""
    if not place.startswith("https://") and urlparse(place).hostname not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError(f"{issuer} names {place!r} for its keys: it must be https.")
    return place


def _read_json(place: str) -> dict[str, Any]:
    if urlparse(place).scheme in ("http", "https"):
        with urllib.request.urlopen(place, timeout=FETCH_TIMEOUT_S) as response:  # noqa: S310 - the operator's setting
            data = response.read(MAX_JWKS_BYTES + 1)
    else:
        data = Path(place.removeprefix("file://")).read_bytes()
    if len(data) > MAX_JWKS_BYTES:
        raise ConfigError(f"{place} is larger than a set of keys is.")
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ConfigError(f"{place} holds no JSON object.")
    return value


def _signs(key: Any) -> bool:
    """Whether a published key may verify signatures here: a public one, and meant for it."""
    return isinstance(key, dict) and key.get("kty") in ("RSA", "EC", "OKP") and key.get("use", "sig") == "sig"


def _claim(claims: dict[str, Any], path: str) -> Any:
    """A claim by its name, or by a path of names with dots; a claim whose name has dots is found first."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _holds(found: Any, wanted: tuple[str, ...]) -> bool:
    if not wanted:
        return bool(found)
    held = found.split() if isinstance(found, str) else found if isinstance(found, list) else []
    return found in wanted if isinstance(found, str) and found in wanted else any(one in wanted for one in held)
