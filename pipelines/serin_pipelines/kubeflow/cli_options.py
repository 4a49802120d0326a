"""Options that the commands for Kubeflow share, and what they make of them."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from serin.core.errors import ConfigError
from serin_pipelines.environments import Environment
from serin_pipelines.options import console

if TYPE_CHECKING:
    from serin_pipelines.kubeflow.packages import Package

EnvName = Annotated[str, typer.Option("--env", help="Environment: staging, prod, or a YAML file of your own.")]
Host = Annotated[str, typer.Option("--host", help="Address of the API, instead of the environment's kfp_host.")]
Params = Annotated[
    list[str] | None, typer.Option("--param", help="Argument of the pipeline: name=value; can be repeated.")
]
ImageRefs = Annotated[
    list[str] | None, typer.Option("--image", help="Image of a target: cpu=REFERENCE; can be repeated.")
]
TimeoutS = Annotated[float, typer.Option("--timeout-s", help="Follow for this many seconds at most; the run goes on.")]
PollS = Annotated[float, typer.Option("--poll-s", help="Ask for news every this many seconds.", min=0.01)]


def image_references(texts: list[str] | None) -> dict[str, str]:
    images: dict[str, str] = {}
    for text in texts or []:
        target, equals, reference = text.partition("=")
        if not (equals and target and reference):
            raise ConfigError(f"--image {text!r} is not of the form target=reference.")
        images[target] = reference
    return images


@contextmanager
def package_for(pipeline: str, environment: Environment) -> "Iterator[Package]":
    with tempfile.TemporaryDirectory() as folder:
        yield compiled(pipeline, environment, Path(folder))


def compiled(pipeline: str, environment: Environment, folder: Path) -> "Package":
    """A pipeline by name, compiled for an environment, or an IR file as it is."""
    from serin_pipelines.compiling import compile_pipeline
    from serin_pipelines.kubeflow.packages import read_package

    if pipeline.endswith((".yaml", ".yml")):
        return read_package(Path(pipeline))
    return read_package(compile_pipeline(pipeline, folder, environment))


def progress_console(as_json: bool) -> Console:
    """Progress goes beside the result: to standard error when standard output is for a program."""
    return Console(highlight=False, stderr=True) if as_json else console
