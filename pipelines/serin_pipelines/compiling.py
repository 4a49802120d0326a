"""Pipelines as Kubeflow's intermediate representation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from serin.core.errors import ConfigError


def pipelines() -> dict[str, Callable[..., Any]]:
    """All pipelines by name."""
    from serin_pipelines.training import training

    return {"training": training}


def compile_pipeline(name: str, folder: Path) -> Path:
    """Write ``<folder>/<name>.yaml``; returns its path.

    Raises:
        ConfigError: there is no such pipeline.
    """
    from kfp import compiler

    known = pipelines()
    if name not in known:
        raise ConfigError(f"There is no pipeline {name!r}: choose from {', '.join(known)}.")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.yaml"
    aside = folder / f".{name}.partial.yaml"
    compiler.Compiler().compile(known[name], str(aside))
    aside.replace(target)
    return target
