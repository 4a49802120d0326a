"""Who may ask the endpoint: API keys for users, a token or an identity provider for administrators, loopback for
everyone else."""

import hashlib
import hmac
import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from starlette.requests import Request

from serin.core.config import Section
from serin.core.errors import ConfigError
from serin.serve.budgets import UNLIMITED, KeyLimits
from serin.serve.errors import RequestError
from serin.serve.keys import ApiKey, KeyRing
from serin.serve.oidc import Oidc, OidcConfig

ADMIN_VARIABLE = "SERIN_ADMIN_TOKEN"
KEYS_VARIABLE = "SERIN_API_KEYS"
KEYS_FILE_VARIABLE = "SERIN_API_KEYS_FILE"
LABELS_HEADER = "x-serin-access"
ADMIN_ID = "admin"
"""Key id of the administrator's token, and who it stands for."""
_FOUND = "serin.key"
"""Where a request's scope keeps the key that it showed, so that it is looked up once."""


class AccessConfig(Section):
    """What requests must show; the administrator's token and digests of keys come from the environment."""

    keys_file: str = ""
    """File of API keys that 'serin serve key' makes; default: what ``SERIN_API_KEYS_FILE`` names."""
    default_labels: tuple[str, ...] = ()
    """Access labels of callers whose key is not in the file, or who need none."""
    default_limits: KeyLimits = Field(default=UNLIMITED)
    """What such callers may use, together."""
    oidc: OidcConfig | None = None
    """Whose tokens open the admin routes, besides ``SERIN_ADMIN_TOKEN``."""


@dataclass(frozen=True)
class Access:
    """What requests must show."""

    admin_token: str = ""
    """Empty, and no identity provider: the admin routes are off."""
    key_digests: frozenset[str] = frozenset()
    """SHA-256 hex of API keys without an entry in a file."""
    keys: KeyRing | None = None
    """Keys with labels and limits of their own; None, and no digests: no key is asked for."""
    oidc: Oidc | None = None
    default_labels: frozenset[str] = frozenset()
    default_limits: KeyLimits = UNLIMITED

    @classmethod
    def from_environment(cls, config: AccessConfig | None = None) -> "Access":
        """``SERIN_ADMIN_TOKEN``; ``SERIN_API_KEYS``: SHA-256 digests in hex, separated by commas; and the settings.

        Raises:
            ConfigError: a digest is none, or the keys file cannot be read.
        """
        config = config or AccessConfig()
        digests = [part.strip().lower() for part in os.environ.get(KEYS_VARIABLE, "").split(",") if part.strip()]
        for digest in digests:
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ConfigError(f"{KEYS_VARIABLE} must hold SHA-256 digests (64 hex digits), separated by commas.")
        file = config.keys_file or os.environ.get(KEYS_FILE_VARIABLE, "")
        return cls(
            admin_token=os.environ.get(ADMIN_VARIABLE, ""),
            key_digests=frozenset(digests),
            keys=KeyRing(Path(file)) if file else None,
            oidc=Oidc(config.oidc) if config.oidc else None,
            default_labels=frozenset(config.default_labels),
            default_limits=config.default_limits,
        )

    @property
    def asks_for_keys(self) -> bool:
        """Whether users must show a key."""
        return bool(self.key_digests) or self.keys is not None

    def require_user(self, request: Request) -> str:
        """Check the API key, where there are keys; the administrator's token is one, for the traffic of rollouts.

        Returns:
            The key's id; empty where no key is asked for.

        Raises:
            RequestError: 401.
        """
        if not self.asks_for_keys:
            return ""
        key = _bearer(request)
        if entry := self._entry(request, key):
            return entry.id
        if self.admin_token and hmac.compare_digest(key, self.admin_token.encode()):
            return ADMIN_ID
        digest = hashlib.sha256(key).hexdigest()
        if not any([hmac.compare_digest(digest, known) for known in self.key_digests]):  # noqa: C419 - all of them
            raise RequestError(401, "Give a valid API key as 'Authorization: Bearer KEY'.", code="invalid_api_key")
        return digest[:12]

    def labels_of(self, request: Request) -> frozenset[str]:
        """Access labels of the caller, whose key was checked; the header ``x-serin-access`` may only narrow them."""
        entry = self._entry(request, _bearer(request))
        labels = frozenset(entry.labels) if entry else self.default_labels
        if (wanted := request.headers.get(LABELS_HEADER)) is not None:
            labels &= {part.strip() for part in wanted.split(",")}
        return labels

    def limits_of(self, key_id: str) -> KeyLimits:
        """What a key may use; the administrator, whose traffic is that of rollouts, has no limits."""
        if key_id == ADMIN_ID:
            return UNLIMITED
        found = self.keys.limits_of(key_id) if self.keys else None
        return found if found is not None else self.default_limits

    def require_admin(self, request: Request) -> str:
        """Check the administrator's token, or one of the identity provider.

        Returns:
            Who it is.

        Raises:
            RequestError: 403 when administration is off or not this caller's, 401 when the token is wrong.
        """
        if not self.admin_token and self.oidc is None:
            raise RequestError(403, f"Administration is off: start the gateway with {ADMIN_VARIABLE} set.")
        token = _bearer(request)
        if self.admin_token and hmac.compare_digest(token, self.admin_token.encode()):
            return ADMIN_ID
        if self.oidc is not None and token.count(b".") == 2:
            return self.oidc.verify(token.decode("ascii", "replace"))
        raise RequestError(401, "Give the administrator's token as 'Authorization: Bearer TOKEN'.")

    def prepare(self, authorization: bytes) -> None:
        """Fetch what a token for the admin routes is checked with, where it is not here yet; waits, so in a thread."""
        token = _token(authorization.decode("latin-1"))
        if self.oidc is not None and token.count(b".") == 2:
            self.oidc.prepare(token.decode("ascii", "replace"))

    def _entry(self, request: Request, key: bytes) -> ApiKey | None:
        if self.keys is None:
            return None
        if _FOUND not in request.scope:
            request.scope[_FOUND] = self.keys.find(key)
        found: ApiKey | None = request.scope[_FOUND]
        return found


def require_safe_host(host: str, access: Access) -> None:
    """Refuse to listen beyond this machine without API keys.

    Raises:
        ConfigError: saying how to make keys.
    """
    if not _is_loopback(host) and not access.asks_for_keys:
        raise ConfigError(
            f"Host {host!r} is open to other machines: make a key first ('serin serve key'; {KEYS_FILE_VARIABLE} names"
            f" its file), or set {KEYS_VARIABLE} to the SHA-256 digests of your keys, or use 127.0.0.1."
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bearer(request: Request) -> bytes:
    return _token(request.headers.get("authorization", ""))


def _token(authorization: str) -> bytes:
    scheme, _, token = authorization.partition(" ")
    return token.strip().encode() if scheme.lower() == "bearer" else b""
