"""Pipelines as Kubeflow's intermediate representation, for one environment at a time."""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from serin.core.errors import ConfigError
from serin_pipelines.environments import LOCAL, Environment


def pipelines() -> dict[str, Callable[..., Any]]:
    """All pipeline functions by name."""
    from serin_pipelines.index_refresh import index_refresh
    from serin_pipelines.monitoring import monitoring
    from serin_pipelines.promotion import promotion
    from serin_pipelines.retraining import retraining
    from serin_pipelines.training import training
    from serin_pipelines.verdict import verdict

    functions: tuple[Callable[..., Any], ...] = (training, index_refresh, promotion, monitoring, retraining, verdict)
    return {function.__name__: function for function in functions}


def build(name: str, environment: Environment = LOCAL) -> Any:
    """A pipeline as KFP traces it for an environment: called with its arguments it runs, or it is compiled.

    Args:
        name: one of ``pipelines()``.
        environment: gives the tasks their places, and the parameters store_uri, source_uri, tracking_uri and endpoint
            their defaults.

    Raises:
        ConfigError: there is no such pipeline.
    """
    from kfp import dsl

    from serin_pipelines.placement import placed_in

    known = pipelines()
    if name not in known:
        raise ConfigError(f"There is no pipeline {name!r}: choose from {', '.join(known)}.")
    with placed_in(environment):
        return dsl.pipeline(
            _with_defaults(known[name], environment),
            name=pipeline_name(name),
            display_name=f"Serin {name.replace('_', ' ')}",
            description=(inspect.getdoc(known[name]) or "").splitlines()[0],
            pipeline_config=dsl.PipelineConfig(
                ttl_seconds_after_finished=environment.keep_finished_s,
                active_deadline_seconds=environment.deadline_s,
            ),
        )


def arguments_for(name: str, settings: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """A pipeline's arguments: those settings that it has a parameter for, then what was given by name.

    Args:
        name: one of ``pipelines()``.
        settings: parameter to value, of any pipeline.
        given: parameter to text; the text of a dict is YAML.

    Raises:
        ConfigError: there is no such pipeline or parameter, one that it needs is missing, or a text is no dict.
    """
    known = pipelines()
    if name not in known:
        raise ConfigError(f"There is no pipeline {name!r}: choose from {', '.join(known)}.")
    parameters = inspect.signature(known[name]).parameters
    if unknown := [one for one in given if one not in parameters]:
        raise ConfigError(f"Pipeline {name} has no parameter {unknown[0]!r}: it has {', '.join(parameters)}.")
    values = {one: value for one, value in settings.items() if one in parameters}
    values |= {one: _parsed(name, parameters[one], text) for one, text in given.items()}
    needed = [one for one, it in parameters.items() if it.default is it.empty and one not in (*values, "store_uri")]
    if needed:
        raise ConfigError(f"Pipeline {name} needs {needed[0]!r}: give it with --param {needed[0]}=...")
    return values


def _parsed(pipeline: str, parameter: inspect.Parameter, text: str) -> Any:
    if parameter.annotation is not dict:
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{parameter.name} of {pipeline} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{parameter.name} of {pipeline} must be a mapping such as '{{name: value}}', not {text!r}.")
    return value


def pipeline_name(name: str) -> str:
    """What a pipeline is called on Kubeflow."""
    return f"serin-{name.replace('_', '-')}"


def compile_pipeline(
    name: str, folder: Path, environment: Environment = LOCAL, *, kubernetes_manifests: bool = False
) -> Path:
    """Write ``<folder>/<name>.yaml``; returns its path.

    Args:
        name: one of ``pipelines()``.
        folder: made if absent.
        environment: where it is to run.
        kubernetes_manifests: write the Kubernetes-native Pipeline and PipelineVersion resources instead of bare IR.

    Raises:
        ConfigError: there is no such pipeline.
    """
    from kfp import compiler

    pipeline = build(name, environment)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.yaml"
    aside = folder / f".{name}.partial.yaml"
    compiler.Compiler().compile(
        pipeline,
        str(aside),
        kubernetes_manifest_format=kubernetes_manifests,
        kubernetes_manifest_options=_manifest_options(name, environment) if kubernetes_manifests else None,
    )
    aside.replace(target)
    return target


def _manifest_options(name: str, environment: Environment) -> Any:
    from kfp.compiler import KubernetesManifestOptions

    from serin.core.digests import code_version

    return KubernetesManifestOptions(
        pipeline_name=pipeline_name(name),
        pipeline_version_name=f"{pipeline_name(name)}-{code_version()}",
        namespace=environment.namespace,
        include_pipeline_manifest=True,
    )


def _with_defaults(function: Callable[..., Any], environment: Environment) -> Callable[..., Any]:
    """The function with the environment's values as defaults of the parameters that name places."""
    values = {
        "store_uri": environment.store_uri,
        "source_uri": environment.source_uri,
        "tracking_uri": environment.tracking_uri,
        "endpoint": environment.endpoint,
    }
    signature = inspect.signature(function)
    changed = [
        parameter.replace(default=values[name]) if values.get(name) else parameter
        for name, parameter in signature.parameters.items()
    ]

    placed_signature = _reordered(signature, changed)

    @functools.wraps(function)
    def placed(*arguments: Any, **named: Any) -> Any:
        return function(**placed_signature.bind(*arguments, **named).arguments)

    placed.__signature__ = placed_signature  # type: ignore[attr-defined]
    return placed


def _reordered(signature: inspect.Signature, parameters: list[inspect.Parameter]) -> inspect.Signature:
    """Python lets no parameter without a default follow one that has it."""
    required = [one for one in parameters if one.default is inspect.Parameter.empty]
    optional = [one for one in parameters if one.default is not inspect.Parameter.empty]
    return signature.replace(parameters=[*required, *optional])
