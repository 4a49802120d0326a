"""Who may ask the endpoint: API keys for users, one token for administrators, loopback for everyone else."""

import hashlib
import hmac
import ipaddress
import os
import re
from dataclasses import dataclass

from starlette.requests import Request

from serin.core.errors import ConfigError
from serin.serve.protocol import RequestError

ADMIN_VARIABLE = "SERIN_ADMIN_TOKEN"
KEYS_VARIABLE = "SERIN_API_KEYS"


@dataclass(frozen=True)
class Access:
    """What requests must show."""

    admin_token: str = ""
    """Empty: the admin routes are off."""
    key_digests: frozenset[str] = frozenset()
    """SHA-256 hex of the API keys; empty: none is asked for."""

    @classmethod
    def from_environment(cls) -> "Access":
        """``SERIN_ADMIN_TOKEN``, and ``SERIN_API_KEYS``: SHA-256 digests in hex, separated by commas.

        Raises:
            ConfigError: a digest is none.
        """
        digests = [part.strip().lower() for part in os.environ.get(KEYS_VARIABLE, "").split(",") if part.strip()]
        for digest in digests:
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ConfigError(f"{KEYS_VARIABLE} must hold SHA-256 digests (64 hex digits), separated by commas.")
        return cls(os.environ.get(ADMIN_VARIABLE, ""), frozenset(digests))

    def require_user(self, request: Request) -> None:
        """Check the API key, where there are keys; the administrator's token is one, for the traffic of rollouts.

        Raises:
            RequestError: 401.
        """
        if self.key_digests:
            if self.admin_token and hmac.compare_digest(_bearer(request), self.admin_token.encode()):
                return
            digest = hashlib.sha256(_bearer(request)).hexdigest()
            if not any([hmac.compare_digest(digest, known) for known in self.key_digests]):  # noqa: C419 - all of them
                raise RequestError(401, "Give a valid API key as 'Authorization: Bearer KEY'.", code="invalid_api_key")

    def require_admin(self, request: Request) -> None:
        """Check the administrator's token.

        Raises:
            RequestError: 403 when administration is off, 401 when the token is wrong.
        """
        if not self.admin_token:
            raise RequestError(403, f"Administration is off: start the gateway with {ADMIN_VARIABLE} set.")
        if not hmac.compare_digest(_bearer(request), self.admin_token.encode()):
            raise RequestError(401, "Give the administrator's token as 'Authorization: Bearer TOKEN'.")


def require_safe_host(host: str, access: Access) -> None:
    """Refuse to listen beyond this machine without API keys.

    Raises:
        ConfigError: saying how to make keys.
    """
    if not _is_loopback(host) and not access.key_digests:
        raise ConfigError(
            f"Host {host!r} is open to other machines: set {KEYS_VARIABLE} to the SHA-256 digests of the API keys first"
            " (printf %s KEY | sha256sum), or use 127.0.0.1."
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bearer(request: Request) -> bytes:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip().encode() if scheme.lower() == "bearer" else b""
