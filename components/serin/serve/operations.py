"""How a gateway is run, in one file: who may ask, how much, over what, and where its traces go.

None of it is part of a release, because none of it changes an answer.
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from serin.core.config import Section
from serin.core.errors import ConfigError
from serin.serve.access import AccessConfig
from serin.serve.admission import AdmissionConfig
from serin.serve.budgets import Prices
from serin.serve.listening import ConnectionLimits, TlsConfig
from serin.serve.mirror import MirrorConfig
from serin.serve.tracing import TracingConfig


class SpoolConfig(Section):
    """Where endpoint events wait for the store."""

    enabled: bool = True
    """On disk, below SERIN_HOME; off: in memory, where a killed gateway loses them."""
    max_mib: int = Field(default=256, ge=1)
    """Beyond it the oldest events are lost (and counted)."""


class OperationsConfig(Section):
    """The settings of a gateway's operation."""

    access: AccessConfig = AccessConfig()
    """API keys, labels, identity provider."""
    tls: TlsConfig = TlsConfig()
    """Certificate and key."""
    connections: ConnectionLimits = ConnectionLimits()
    """Sizes and timeouts of requests."""
    admission: AdmissionConfig = AdmissionConfig()
    """How much is let in at once."""
    mirror: MirrorConfig = MirrorConfig()
    """How much of a candidate's shadow traffic there may be at once."""
    prices: Prices = Prices()
    """What answers cost."""
    tracing: TracingConfig = TracingConfig()
    """Which requests are traced, and where to."""
    spool: SpoolConfig = SpoolConfig()
    """Where events wait."""
    log_format: Literal["text", "json"] = "text"
    """Lines for people, or one JSON object a line."""


def load_operations(path: Path | None) -> OperationsConfig:
    """The settings of a YAML file; None: the defaults.

    Raises:
        ConfigError: the file cannot be read, or sets what does not exist.
    """
    if path is None:
        return OperationsConfig()
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"The operation settings in {path} cannot be read: {error}") from error
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{path} must hold settings by name, such as 'admission: {{p95_ms: 2000}}'.")
    return OperationsConfig.load(values)
