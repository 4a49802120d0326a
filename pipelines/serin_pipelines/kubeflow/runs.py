"""Put a compiled pipeline on the server as a version, and start runs of it."""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serin.core.errors import ConfigError
from serin_pipelines.kubeflow.client import BAD_REQUEST, Kubeflow, KubeflowError
from serin_pipelines.kubeflow.packages import Package, task_names

ATTEMPT, KEY, DIGEST = "serin-attempt", "serin-key", "serin-digest"
"""Labels in descriptions, the only free text that the server keeps and lists."""
MLFLOW_SETTINGS = {"experiment_name": str, "experiment_id": str, "disabled": bool}
"""Schema of ``plugins_input.mlflow`` in KFP 2.17 (backend/src/apiserver/plugins/mlflow/config.go)."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Version:
    """A pipeline version on the server."""

    pipeline_id: str
    id: str
    name: str
    reused: bool
    """It was there already."""


@dataclass(frozen=True)
class Order:
    """What to run."""

    version: Version
    experiment_id: str
    name: str
    """Of the run, for people."""
    arguments: Mapping[str, Any]
    service_account: str = ""
    key: str = ""
    """What the run is for; runs with the same key do the same."""
    plugins: Mapping[str, Mapping[str, Any]] | None = None
    """``plugins_input``: settings by plugin."""


def publish(kubeflow: Kubeflow, package: Package, version_name: str = "") -> Version:
    """The version of a pipeline that is this package, uploaded unless it is there.

    Args:
        kubeflow: the server.
        package: what to upload.
        version_name: default: code version and digest, so that the same package again is found again.

    Raises:
        ConfigError: the version name that was given stands for something else already.
        KubeflowError: the server refuses.
    """
    name = version_name or package.version_name
    pipeline_id = _pipeline(kubeflow, package)
    if (found := _find_version(kubeflow, pipeline_id, name)) is not None:
        _require_same(found, package, name)
        return Version(pipeline_id, found.pipeline_version_id, name, reused=True)
    made, _ = kubeflow.create(
        f"upload version {name} of {package.name}",
        lambda: _find_version(kubeflow, pipeline_id, name),
        lambda: kubeflow.kfp.pipeline_uploads.upload_pipeline_version(
            str(package.path), name=name, pipelineid=pipeline_id, description=f"{DIGEST}={package.digest}"
        ),
    )
    _require_same(made, package, name)
    return Version(pipeline_id, made.pipeline_version_id, name, reused=False)


def experiment(kubeflow: Kubeflow, name: str) -> str:
    """Id of an experiment, made if it is not there."""
    made, _ = kubeflow.create(
        f"create the experiment {name!r}",
        lambda: find_experiment(kubeflow, name),
        lambda: (
            find_experiment(kubeflow, name)
            or kubeflow.kfp.experiments.experiment_service_create_experiment(
                experiment=kubeflow.models.V2beta1Experiment(display_name=name, namespace=kubeflow.namespace)
            )
        ),
    )
    return str(made.experiment_id)


def find_experiment(kubeflow: Kubeflow, name: str) -> Any | None:
    """The experiment of that name, or None."""
    found = kubeflow.call(
        f"find the experiment {name!r}",
        kubeflow.kfp.experiments.experiment_service_list_experiments,
        namespace=kubeflow.namespace,
        filter=equals("display_name", name),
    )
    return next(iter(found.experiments or ()), None)


def start(kubeflow: Kubeflow, order: Order, say: Say) -> Any:
    """Start a run, once, however often its creation had to be sent.

    Args:
        kubeflow: the server.
        order: what to run.
        say: takes a sentence for the user.

    Returns:
        The run as the server has it (``V2beta1Run``).

    Raises:
        KubeflowError: the server refuses.
    """
    try:
        run = _start(kubeflow, order)
    except KubeflowError as error:
        if not (order.plugins and knows_no_plugins(error)):
            raise
        say("This server knows no plugins: the run goes on without them.")
        return _start(kubeflow, order, with_plugins=False)
    for name in order.plugins or {}:
        _report_plugin(name, (run.plugins_output or {}).get(name), order, say)
    return run


def knows_no_plugins(error: KubeflowError) -> bool:
    """Whether a server refuses because it is older than ``plugins_input``."""
    return error.status == BAD_REQUEST and "unknown field" in error.detail and "plugins_input" in error.detail


def key_of(run: Any) -> str:
    """What a run is for, as its description says; empty without a key."""
    return label(run, KEY)


def tasks_of(kubeflow: Kubeflow, run: Any) -> tuple[str, ...]:
    """The tasks of a run's pipeline in their order; empty when the server no longer has its version."""
    reference = run.pipeline_version_reference
    if reference is None:
        return ()
    get = kubeflow.kfp.pipelines.pipeline_service_get_pipeline_version
    try:
        version = kubeflow.call("read the version", get, reference.pipeline_id, reference.pipeline_version_id)
    except KubeflowError:
        return ()
    spec = version.pipeline_spec or {}
    spec = spec.get("pipeline_spec", spec)
    return task_names(spec) if "root" in spec else ()


def label(thing: Any, name: str) -> str:
    """A label in the description of something on the server; empty without it."""
    words = str(thing.description or "").split()
    return next((word.removeprefix(f"{name}=") for word in words if word.startswith(f"{name}=")), "")


def equals(key: str, value: str) -> str:
    """A filter of the API: a field has this value."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "string_value": value}]})


def plugin_settings(texts: list[str]) -> dict[str, dict[str, Any]]:
    """Plugin settings from ``plugin.setting=value`` texts.

    Raises:
        ConfigError: a text has another form, or the MLflow plugin has no such setting.
    """
    plugins: dict[str, dict[str, Any]] = {}
    for text in texts:
        path, equal, value = text.partition("=")
        plugin, dot, setting = path.partition(".")
        if not (equal and dot and plugin and setting):
            raise ConfigError(f"--plugin {text!r} is not of the form plugin.setting=value.")
        plugins.setdefault(plugin, {})[setting] = _setting(plugin, setting, value)
    return plugins


def _setting(plugin: str, setting: str, value: str) -> str | bool:
    if plugin == "mlflow" and setting not in MLFLOW_SETTINGS:
        raise ConfigError(f"The MLflow plugin has no setting {setting!r}: it has {', '.join(MLFLOW_SETTINGS)}.")
    if setting != "disabled":
        return value
    if value not in ("true", "false"):
        raise ConfigError(f"--plugin {plugin}.disabled is {value!r}, and must be true or false.")
    return value == "true"


def _pipeline(kubeflow: Kubeflow, package: Package) -> str:
    if (found := _find_pipeline(kubeflow, package.name)) is not None:
        return str(found.pipeline_id)
    body = kubeflow.models.V2beta1Pipeline(
        name=package.name,
        display_name=package.display_name,
        description=package.description,
        namespace=kubeflow.namespace,
    )
    made, _ = kubeflow.create(
        f"create the pipeline {package.name!r}",
        lambda: _find_pipeline(kubeflow, package.name),
        lambda: kubeflow.kfp.pipelines.pipeline_service_create_pipeline(pipeline=body),
    )
    return str(made.pipeline_id)


def _find_pipeline(kubeflow: Kubeflow, name: str) -> Any | None:
    found = kubeflow.call(
        f"find the pipeline {name!r}",
        kubeflow.kfp.pipelines.pipeline_service_list_pipelines,
        namespace=kubeflow.namespace,
        filter=equals("name", name),
    )
    return next(iter(found.pipelines or ()), None)


def _find_version(kubeflow: Kubeflow, pipeline_id: str, name: str) -> Any | None:
    found = kubeflow.call(
        f"find version {name!r}",
        kubeflow.kfp.pipelines.pipeline_service_list_pipeline_versions,
        pipeline_id,
        filter=equals("name", name),
    )
    return next(iter(found.pipeline_versions or ()), None)


def _require_same(version: Any, package: Package, name: str) -> None:
    there = label(version, DIGEST)
    if there and there != package.digest:
        raise ConfigError(
            f"Version {name!r} of {package.name} is another pipeline already (digest {there[:12]}, this is "
            f"{package.digest[:12]}): choose another --version-name, or leave it out."
        )


def _start(kubeflow: Kubeflow, order: Order, with_plugins: bool = True) -> Any:
    attempt = uuid.uuid4().hex
    body = kubeflow.models.V2beta1Run(
        experiment_id=order.experiment_id,
        display_name=order.name,
        description=f"Started by serin. {ATTEMPT}={attempt}" + (f" {KEY}={order.key}" if order.key else ""),
        pipeline_version_reference=kubeflow.models.V2beta1PipelineVersionReference(
            pipeline_id=order.version.pipeline_id, pipeline_version_id=order.version.id
        ),
        runtime_config=kubeflow.models.V2beta1RuntimeConfig(parameters=dict(order.arguments)),
        service_account=order.service_account or None,
        plugins_input=dict(order.plugins) if order.plugins and with_plugins else None,
    )

    def attempts() -> list[Any]:
        return [run for run in kubeflow.newest_runs(order.experiment_id) if label(run, ATTEMPT) == attempt]

    run, sent = kubeflow.create(
        "start the run",
        lambda: next(reversed(attempts()), None),
        lambda: kubeflow.kfp.runs.run_service_create_run(run=body),
    )
    return run if sent == 1 else _keep_oldest(kubeflow, attempts() or [run])


def _keep_oldest(kubeflow: Kubeflow, runs: list[Any]) -> Any:
    """A creation that was still under way when we looked has made a second run: end all but the first."""
    first, *others = sorted(runs, key=lambda run: (run.created_at, run.run_id))
    for run in others:
        kubeflow.call("end a second run", kubeflow.kfp.runs.run_service_terminate_run, run.run_id)
    return first


def _report_plugin(name: str, output: Any | None, order: Order, say: Say) -> None:
    """The server has no call that lists its plugins: a run's ``plugins_output`` is how it says that it has one."""
    if (order.plugins or {}).get(name, {}).get("disabled"):
        return
    if output is None:
        say(f"This server has no {name} plugin: the run goes on without it.")
    elif output.state == "PLUGIN_FAILED":
        say(f"The server's {name} plugin failed, and the run goes on without it: {output.state_message}")
    else:
        say(f"The server's {name} plugin follows the run.")
