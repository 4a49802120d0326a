"""Options that several commands share, and what they make of them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from serin.core.artifacts import home
from serin.core.context import StageContext, stage_context
from serin.core.errors import ConfigError
from serin.core.tracking import prepare_database
from serin_pipelines.configs import RunConfig, load_config
from serin_pipelines.records import new_run_id

Store = Annotated[
    str, typer.Option("--store", help="Artefact store: folder, file:// or s3:// (default: SERIN_HOME/store).")
]
Tracking = Annotated[
    str, typer.Option("--tracking", help="MLflow tracking URI (default: a sqlite file in SERIN_HOME).")
]
Endpoint = Annotated[str, typer.Option("--endpoint", help="Name of the endpoint (default: the config's).")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with one section per stage.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override one setting: section.field=value; can be repeated.")
]
Parameters = Annotated[
    list[str] | None, typer.Option("--param", help="A parameter of the pipeline: name=value; can be repeated.")
]
BaseModelUri = Annotated[str, typer.Option("--base-model", help="Hugging Face id, folder, s3:// or serin://tiny.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on standard output.")]

console = Console(highlight=False)


class WithDefault(TyperGroup):
    """A group of commands in which options alone mean the command ``run``: 'serin evaluate --release ...'."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``run`` before arguments that name no command and ask for no help."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


def store_or_default(store: str) -> str:
    """The named store, else the one below SERIN_HOME."""
    return store or (home() / "store").as_uri()


def tracking_or_default(tracking: str) -> str:
    """The named tracking URI, else the sqlite file below SERIN_HOME."""
    return tracking or f"sqlite:///{home() / 'mlflow.db'}"


def prepared_tracking(tracking: str) -> str:
    """The same, a sqlite file made where it is absent."""
    uri = tracking_or_default(tracking)
    prepare_database(uri)
    return uri


def settings(config: Path | None, overrides: list[str] | None, endpoint: str = "") -> RunConfig:
    """The configuration that a command's options describe."""
    loaded = load_config(config, overrides or [])
    return loaded.model_copy(update={"endpoint": endpoint}) if endpoint else loaded


def parse_parameters(given: list[str] | None, option: str = "--param") -> dict[str, str]:
    """``name=value`` options as a dict.

    Raises:
        ConfigError: one is not of that form.
    """
    values = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"{option} {text!r} is not of the form name=value.")
        values[name.strip()] = value
    return values


@contextmanager
def stage_from_options(stage: str, store: str, tracking: str, endpoint: str) -> Iterator[StageContext]:
    """A stage's context for a stage that is run alone."""
    with stage_context(
        stage,
        store_uri=store_or_default(store),
        tracking_uri=prepared_tracking(tracking),
        lineage_id=new_run_id(),
        endpoint=endpoint,
    ) as context:
        yield context


def show(values: Mapping[str, Any], as_json: bool) -> None:
    """Print a result: one JSON object, or a line a value."""
    if as_json:
        typer.echo(json.dumps(values, default=str))
        return
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        text = json.dumps(value, default=str) if isinstance(value, (dict, list, tuple)) else str(value)
        console.print(f"[bold]{name.ljust(width)}[/]  ", end="")
        console.print(text, markup=False, soft_wrap=True)
