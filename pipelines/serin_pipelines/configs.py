"""A run's whole configuration, and the named runs that we ship.

A named run is a function that returns a ``RunConfig``; variants edit a base with ``model_copy``.
"""

from pathlib import Path
from typing import Any

import yaml

from serin.core.config import Section
from serin.core.errors import ConfigError
from serin.core.policy import read_policy
from serin.core.prompts import Prompt
from serin.data_prep.config import DataPrepConfig
from serin.deploy.config import DeployConfig
from serin.evaluate.config import EvaluateConfig
from serin.finetune.config import FinetuneConfig
from serin.index.config import IndexConfig
from serin.monitor.config import MonitorConfig
from serin.release.config import ReleaseConfig


class RunConfig(Section):
    """One section per stage, and the few values that operators turn."""

    endpoint: str = "assistant"
    """Name of the endpoint, of its MLflow experiment and registered model."""
    base_model: str = "serin://tiny"
    """Hugging Face id, folder, s3:// prefix or serin://tiny."""
    data_prep: DataPrepConfig = DataPrepConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    index: IndexConfig = IndexConfig()
    prompt: Prompt = Prompt()
    release: ReleaseConfig = ReleaseConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    deploy: DeployConfig = DeployConfig()
    monitor: MonitorConfig = MonitorConfig()

    def arguments(self) -> dict[str, Any]:
        """The values as pipeline parameters; sections that say nothing but the defaults are left to the pipeline."""
        every = self._values()
        plain = type(self)()._values()
        return {name: value for name, value in every.items() if name == "endpoint" or value != plain[name]}

    def _values(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            "base_model": self.base_model,
            "data_prep_config": self.data_prep.parameters(),
            "finetune_config": self.finetune.parameters(),
            "index_config": self.index.parameters(),
            "prompt": self.prompt.parameters(),
            "release_config": self.release.parameters(),
            "evaluate_config": self.evaluate.parameters(),
            "deploy_config": self.deploy.parameters(),
            "monitor_config": self.monitor.parameters(),
        }


def load_config(path: Path | None, overrides: list[str]) -> RunConfig:
    """A run's configuration from a YAML file and ``section.field=value`` overrides (values in YAML).

    ``release.guardrails`` may name a policy file ('serin guard init' writes one); what it says goes into the release.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or of the wrong type.
        InputError: the policy file cannot be read.
    """
    values = _read(path) if path else {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override!r} is not of the form section.field=value.")
        _put(values, name.split("."), yaml.safe_load(text), override)
    release = values.get("release")
    if isinstance(release, dict) and isinstance(release.get("guardrails"), str):
        file = Path(release["guardrails"])
        beside = path.parent / file if path else file
        release["guardrails"] = read_policy(beside if beside.is_file() else file).dump()
    return RunConfig.load(values)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Config {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"Config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"Config {path} must be a mapping of sections, not {type(values).__name__}.")
    return values


def _put(values: dict[str, Any], names: list[str], value: Any, override: str) -> None:
    for name in names[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override!r}: {name!r} is a value, not a section.")
    values[names[-1]] = value
