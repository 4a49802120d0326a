"""Which releases are served where.

``SERIN_BACKENDS`` holds JSON, or ``@`` and the path of a file with it: an object whose names are beginnings of release
ids, or ``*`` for all others, and whose values are ``BackendConfig``.  A release that fits none is served by an engine
process of the gateway's own::

    {"*": {"urls": ["http://vllm-0:8000", "http://vllm-1:8000"], "model": "assistant-{short}", "api_key_env": "KEY"}}

Where a model is served is no part of a release: moving it changes no id and no answer.
"""

import json
import os
import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from serin.core.config import Section
from serin.core.errors import ConfigError
from serin.core.release import Release
from serin.serve.backends.upstream import Timeouts

VARIABLE = "SERIN_BACKENDS"
ANY = "*"
_PREFIX = re.compile(r"[0-9a-f]{8,64}")
_PLACES = ("{release}", "{short}", "{model}")


class BackendConfig(Section):
    """An OpenAI-compatible server, or several that serve the same."""

    urls: tuple[str, ...] = Field(min_length=1)
    """Where it is, with or without ``/v1``; requests go to the one with the fewest under way."""
    model: str = Field(min_length=1)
    """What the server calls the model or adapter; ``{release}``, ``{short}`` and ``{model}`` stand for the release's
    id, its first 12 digits, and the first 12 digits of the model's digest."""
    api_key_env: str = ""
    """Environment variable with the key."""
    api_key_file: str = ""
    """File with the key; read again when it changes."""
    ca_file: str = ""
    """Certificates of the authorities that are trusted, instead of the machine's; PEM."""
    health_path: str = Field("/health", pattern=r"^/[\x21-\x7e]*$")
    """Answers 200 while the server works."""
    health_s: float = Field(5.0, gt=0)
    """Seconds between two looks at its health."""
    connect_s: float = Field(2.0, gt=0)
    """Longest wait for a connection."""
    first_token_s: float = Field(60.0, gt=0)
    """Longest wait for the first piece of an answer, retries included."""
    silence_s: float = Field(30.0, gt=0)
    """Longest wait between two pieces."""
    total_s: float = Field(600.0, gt=0)
    """Longest time for one answer."""
    retries: int = Field(2, ge=0, le=10)
    """Further tries before the first piece, after connection errors and the statuses 429, 502, 503 and 504."""
    backoff_s: float = Field(0.1, ge=0)
    """Wait before a further try at the same server, at most; doubled each time, and drawn at random below that."""
    max_retry_after_s: float = Field(5.0, ge=0)
    """Longest wait that a server may ask for (Retry-After); a longer one is handed on to the client."""
    breaker_failures: int = Field(5, ge=1)
    """Failures among the last requests that take a server out."""
    breaker_open_s: float = Field(2.0, gt=0)
    """How long it is left alone before one request tries again; doubled each time, up to 30 s."""
    ready_s: float = Field(30.0, ge=0)
    """Longest wait until one of the servers answers, when a release is loaded."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Fields added to every request, such as vLLM's ``chat_template_kwargs``."""

    @field_validator("urls")
    @classmethod
    def _are_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ValueError("give URLs such as http://vllm:8000")
            if parts.username is not None or parts.password is not None:
                raise ValueError("a URL must hold no password: give api_key_env or api_key_file")
        if len(set(urls)) < len(urls):
            raise ValueError("a URL is there twice")
        return tuple(re.sub(r"(/v1)?/*$", "", url) for url in urls)

    @property
    def timeouts(self) -> Timeouts:
        """How long a server may take."""
        return Timeouts(self.connect_s, self.first_token_s, self.silence_s, self.total_s)

    def model_of(self, release: Release) -> str:
        """What the server calls the release's model."""
        values = (release.id, release.short_id, release.model.digest[:12])
        name = self.model
        for place, value in zip(_PLACES, values, strict=True):
            name = name.replace(place, value)
        return name

    def tls(self) -> ssl.SSLContext | None:
        """What certificates are checked against.

        Raises:
            ConfigError: the file cannot be read, or holds no certificate.
        """
        if not self.ca_file:
            return None
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise ConfigError(f"'ca_file' {self.ca_file} cannot be used ({error}): give a PEM file.") from error

    def headers(self) -> Callable[[], Mapping[str, str]]:
        """Gives the headers of a request, with the key; the key is in no message, log or ``repr``.

        Raises:
            ConfigError: the key is not where the configuration says.
        """
        if self.api_key_env and self.api_key_file:
            raise ConfigError("Give either 'api_key_env' or 'api_key_file', not both.")
        if self.api_key_file:
            return _KeyFile(Path(self.api_key_file)).headers
        if not self.api_key_env:
            return dict
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(f"The environment variable {self.api_key_env} ('api_key_env') is not set: set it.")
        return lambda: {"authorization": f"Bearer {key}"}


class Backends:
    """The servers of all releases."""

    def __init__(self, configs: Mapping[str, BackendConfig]) -> None:
        self._configs = dict(configs)

    @classmethod
    def from_environment(cls) -> Self:
        """Read ``SERIN_BACKENDS``.

        Raises:
            ConfigError: it cannot be read, or a setting in it is wrong.
        """
        value = os.environ.get(VARIABLE, "").strip()
        if value.startswith("@"):
            try:
                value = Path(value[1:]).read_text(encoding="utf-8")
            except OSError as error:
                raise ConfigError(f"{VARIABLE} names {value[1:]}, which cannot be read ({error.strerror}).") from error
        try:
            configs = json.loads(value or "{}")
        except ValueError as error:
            raise ConfigError(f"{VARIABLE} is not JSON: {error}.") from error
        return cls.load(configs)

    @classmethod
    def load(cls, values: Any) -> Self:
        """Check the settings.

        Raises:
            ConfigError: a name is no beginning of a release id, or a setting is wrong.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"{VARIABLE} must be an object: release id or '*' to the backend's settings.")
        for name in values:
            if name != ANY and not _PREFIX.fullmatch(name):
                raise ConfigError(f"{VARIABLE} names {name!r}: give 8 or more digits of a release id, or '*'.")
        return cls({name: BackendConfig.load(config) for name, config in values.items()})

    def of(self, release: Release) -> BackendConfig | None:
        """Where a release is served: the longest beginning that fits; None: by an engine of our own."""
        fitting = [name for name in self._configs if name != ANY and release.id.startswith(name)]
        name = max(fitting, key=len, default=ANY)
        return self._configs.get(name)


class _KeyFile:
    def __init__(self, path: Path) -> None:
        self._path, self._read_at, self._key = path, -1, ""
        self.headers()

    def headers(self) -> Mapping[str, str]:
        try:
            changed = self._path.stat().st_mtime_ns
            if changed != self._read_at:
                self._key = self._path.read_text(encoding="utf-8").strip()
                self._read_at = changed
        except OSError as error:
            if not self._key:  # otherwise it is being replaced: the key in use stands
                raise ConfigError(f"'api_key_file' {self._path} cannot be read ({error.strerror}).") from error
        if not self._key:
            raise ConfigError(f"'api_key_file' {self._path} is empty: write the key into it.")
        return {"authorization": f"Bearer {self._key}"}
