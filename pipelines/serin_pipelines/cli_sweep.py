"""The command that sweeps settings of the fine-tune stage."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from serin.core.errors import ConfigError
from serin_pipelines.cli_stages import DatasetUri, DocumentsUri
from serin_pipelines.options import (
    AsJson,
    BaseModelUri,
    ConfigFile,
    Endpoint,
    Overrides,
    Store,
    Tracking,
    settings,
    show,
    stage_from_options,
)

SweepFile = Annotated[Path | None, typer.Option("--sweep", help="YAML file with the sweep's settings.")]


def sweep(
    dataset: DatasetUri,
    documents: DocumentsUri,
    sweep_file: SweepFile = None,
    num_trials: Annotated[int | None, typer.Option(help="How many settings are tried (default: the file's).")] = None,
    base_model: BaseModelUri = "",
    config: ConfigFile = None,
    overrides: Overrides = None,
    store: Store = "",
    tracking: Tracking = "",
    endpoint: Endpoint = "",
    as_json: AsJson = False,
) -> None:
    """Try settings with Ray Tune and ASHA, and fine-tune with the best ones.

    Example: serin finetune sweep --dataset URI --documents URI --sweep sweep.yaml --json
    """
    from serin.finetune.sweep import sweep as run_sweep
    from serin.finetune.sweep_config import SweepConfig

    run = settings(config, overrides, endpoint)
    given = _read(sweep_file)
    sweep_config = SweepConfig.load(given if num_trials is None else {**given, "num_trials": num_trials})
    with stage_from_options("finetune", store, tracking, run.endpoint) as context:
        swept = run_sweep(
            sweep_config,
            run.finetune,
            base_model or run.base_model,
            run.prompt,
            context.open(dataset),
            context.open(documents),
            context,
        )
    show(
        {
            "sweep": {"uri": swept.artifact.uri, "digest": swept.artifact.digest},
            "best": swept.artifact.metadata["best"],
            "base": {"uri": swept.tuned.base.uri, "digest": swept.tuned.base.digest},
            "model": {"uri": swept.tuned.model.uri, "digest": swept.tuned.model.digest},
        },
        as_json,
    )


def _read(path: Path | None) -> dict[str, Any]:
    """The sweep's settings in a YAML file; none without one.

    Raises:
        ConfigError: the file is not there, or is no mapping.
    """
    if path is None:
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The sweep's file {path} cannot be read ({' '.join(str(error).split())[:200]}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The sweep's file {path} holds no settings: write names and values, as in 'num_trials: 8'.")
    return values
