"""Where the bearer token for Kubeflow Pipelines comes from; the first source that is set up wins.

::

    KFP_TOKEN                       the token itself, for a person's session; it cannot be renewed
    KFP_TOKEN_FILE                  a file that something else keeps fresh; read again when the server says 401
    the pod's service account       a projected token (KF_PIPELINES_SA_TOKEN_PATH, else the SDK's default path)
    GitHub Actions                  an OIDC token of the job (needs 'permissions: id-token: write'), for the audience
                                    KFP_OIDC_AUDIENCE, by default the address of the API

A token is never an option of a command, because arguments are visible to every process of the machine.
"""

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serin.core.errors import ConfigError, UnavailableError

TOKEN_VARIABLE = "KFP_TOKEN"  # noqa: S105 - the variable's name
FILE_VARIABLE = "KFP_TOKEN_FILE"
AUDIENCE_VARIABLE = "KFP_OIDC_AUDIENCE"
ALLOW_HTTP_VARIABLE = "KFP_ALLOW_HTTP"
OIDC_URL_VARIABLE = "ACTIONS_ID_TOKEN_REQUEST_URL"
OIDC_TOKEN_VARIABLE = "ACTIONS_ID_TOKEN_REQUEST_TOKEN"  # noqa: S105 - the variable's name
OIDC_TIMEOUT_S = 30.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass
class TokenSource:
    """Gives a token, and a newer one when the server no longer takes the first."""

    name: str
    """For messages; says where to look, never what was found there."""
    read: Callable[[], str] = field(repr=False)
    renewable: bool = True
    _token: str = field(default="", repr=False)

    def token(self) -> str:
        """The token as it was read last.

        Raises:
            UnavailableError: the source gives none.
        """
        if not self._token:
            self.renew()
        return self._token

    def renew(self) -> bool:
        """Read again; whether there is another token now."""
        if self._token and not self.renewable:
            return False
        before, self._token = self._token, self._usable(self.read())
        return self._token != before

    def _usable(self, token: str) -> str:
        """HTTP libraries quote a header that they refuse, and with it the token: refuse it first."""
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise UnavailableError(
                f"What {self.name} gives is no bearer token, which is one line of letters and digits: put the token "
                "alone there."
            )
        return token

    def refresh_api_key_hook(self, config: Any) -> None:
        """What the SDK's client calls before each request (``TokenCredentialsBase``)."""
        config.api_key["authorization"] = self.token()
        config.api_key_prefix["authorization"] = "Bearer"


def find_source(host: str) -> TokenSource | None:
    """The first source that is set up here; None where there is none, for servers without authentication.

    Raises:
        ConfigError: there is a token, and the host would get it over plain HTTP.
    """
    source = _environment() or _file() or _service_account() or _github(host)
    if source is not None:
        require_safe(host, source)
    return source


def require_safe(host: str, source: TokenSource) -> None:
    """Let no token out over plain HTTP, but to loopback.

    Raises:
        ConfigError: naming what to do.
    """
    parsed = urllib.parse.urlparse(host)
    allowed = os.environ.get(ALLOW_HTTP_VARIABLE) == "1"
    if parsed.scheme == "http" and parsed.hostname not in LOOPBACK and not allowed:
        raise ConfigError(
            f"{host} is plain HTTP and would show the token from {source.name} to the network: use https://, or set "
            f"{ALLOW_HTTP_VARIABLE}=1 where a service mesh encrypts the way."
        )


def _environment() -> TokenSource | None:
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    return TokenSource(TOKEN_VARIABLE, lambda: token, renewable=False) if token else None


def _file() -> TokenSource | None:
    path = os.environ.get(FILE_VARIABLE, "")
    return TokenSource(f"the file in {FILE_VARIABLE}", lambda: _read(Path(path))) if path else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UnavailableError(f"{FILE_VARIABLE} names {path}, which cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UnavailableError(f"{FILE_VARIABLE} names {path}, which is no text: put a token into it.") from error


def _service_account() -> TokenSource | None:
    from kfp import client

    path = os.environ.get(client.KF_PIPELINES_SA_TOKEN_ENV) or client.KF_PIPELINES_SA_TOKEN_PATH
    if not Path(path).is_file():
        return None
    return TokenSource("the pod's service account", lambda: _read_service_account(path))


def _read_service_account(path: str) -> str:
    import kfp_server_api  # type: ignore[import-untyped]
    from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

    config = kfp_server_api.Configuration()
    try:
        ServiceAccountTokenVolumeCredentials(path).refresh_api_key_hook(config)
    except OSError as error:
        raise UnavailableError(f"The service account's token {path} cannot be read ({error}).") from error
    return str(config.api_key["authorization"])


def _github(host: str) -> TokenSource | None:
    url, request_token = os.environ.get(OIDC_URL_VARIABLE, ""), os.environ.get(OIDC_TOKEN_VARIABLE, "")
    if not (url and request_token):
        return None
    audience = os.environ.get(AUDIENCE_VARIABLE) or host
    return TokenSource("GitHub's OIDC issuer", lambda: _fetch(url, request_token, audience))


def _fetch(url: str, request_token: str, audience: str) -> str:
    """GET ``<url>&audience=...`` with the job's request token; the answer is ``{"value": "<JWT>"}``.

    Contract: GitHub's documentation of OpenID Connect in Actions.
    """
    parsed = urllib.parse.urlparse(url)
    if parsed.scheme != "https" and parsed.hostname not in LOOPBACK:
        raise UnavailableError(f"{OIDC_URL_VARIABLE} is no https:// address: the job's token does not go there.")
    joint = "&" if parsed.query else "?"
    request = urllib.request.Request(  # noqa: S310 - the URL is the runner's
        f"{url}{joint}audience={urllib.parse.quote(audience, safe='')}",
        headers={"authorization": f"Bearer {request_token}", "accept": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=OIDC_TIMEOUT_S) as response:  # noqa: S310
            return str(json.load(response)["value"])
    except urllib.error.HTTPError as error:
        with error:
            raise UnavailableError(
                f"GitHub's OIDC issuer refuses a token ({error.code}): give the job 'permissions: id-token: write'."
            ) from error
    except (urllib.error.URLError, OSError) as error:
        raise UnavailableError(f"GitHub's OIDC issuer does not answer ({error}): start the job again.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UnavailableError("GitHub's OIDC issuer answers without a token: start the job again.") from error
