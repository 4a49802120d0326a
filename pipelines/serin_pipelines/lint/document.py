"""An IR file as plain mappings: read, checked against KFP's own protobufs, walked by the rules."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]

from serin.core.errors import ConfigError

EFFECT_LABEL = "serin.dev/effect"
"""Pod label or annotation that says what happens when a task runs twice."""
ACTING_NAMES = frozenset({"deploy", "promote", "notify", "register", "conclude", "publish"})
"""Parts of component names that act, where no label says it."""

PLACED = frozenset(
    {
        "cpu_limit",
        "cpu_request",
        "memory_limit",
        "memory_request",
        "accelerator_type",
        "accelerator_count",
        "container_image",
    }
)
"""Inputs that KFP gives a task for its own placement, whatever its component declares."""


class UnreadableError(Exception):
    """A file that is not IR; its text is the message of the one finding."""


@dataclass(frozen=True)
class Task:
    """A task of a DAG, with what stands behind it; missing parts are empty, the structural rules name them."""

    name: str
    dag: str
    spec: Mapping[str, Any]
    component_name: str
    component: Mapping[str, Any]
    executor_label: str
    executor: Mapping[str, Any]
    platform: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"{self.dag}/{self.name}"

    @property
    def container(self) -> Mapping[str, Any]:
        """The container that it runs; empty for groups, nested pipelines and importers."""
        return self.executor.get("container") or {}

    @property
    def is_group(self) -> bool:
        """Whether it stands for a DAG of its own."""
        return "dag" in self.component

    @property
    def effect_said(self) -> str:
        """What the pod's label, or annotation, says."""
        metadata = self.platform.get("podMetadata", {})
        found = {**metadata.get("annotations", {}), **metadata.get("labels", {})}
        return str(found.get(EFFECT_LABEL, ""))

    @property
    def effect(self) -> str:
        """pure, idempotent, acts, or nothing where neither a label nor the component's name says it."""
        if self.effect_said:
            return self.effect_said
        parts = set(re.split(r"[^a-z]+", self.component_name.lower()))
        return "acts" if not self.is_group and parts & ACTING_NAMES else ""

    def arguments(self, kind: str) -> Mapping[str, Mapping[str, Any]]:
        """Inputs that it is given; ``kind`` is parameters or artifacts."""
        found: Mapping[str, Mapping[str, Any]] = self.spec.get("inputs", {}).get(kind, {})
        return found

    def inputs(self, kind: str) -> Mapping[str, Mapping[str, Any]]:
        """Inputs that its component declares."""
        return declared(self.component, "inputDefinitions", kind)

    def outputs(self, kind: str) -> Mapping[str, Mapping[str, Any]]:
        """Outputs that its component declares."""
        return declared(self.component, "outputDefinitions", kind)

    @property
    def dependencies(self) -> list[str]:
        return list(self.spec.get("dependentTasks", []))

    @property
    def iterator(self) -> Mapping[str, Any]:
        """The loop that it is run in; empty outside of one."""
        return self.spec.get("parameterIterator") or self.spec.get("artifactIterator") or {}


@dataclass(frozen=True)
class Dag:
    """A DAG: the root, or a component that has one."""

    name: str
    component: Mapping[str, Any]
    tasks: dict[str, Task] = field(default_factory=dict)

    def inputs(self, kind: str) -> Mapping[str, Mapping[str, Any]]:
        """Inputs that it declares."""
        return declared(self.component, "inputDefinitions", kind)

    @property
    def outputs(self) -> Mapping[str, Mapping[str, Any]]:
        """Where its outputs come from, by kind."""
        found: Mapping[str, Mapping[str, Any]] = self.component["dag"].get("outputs", {})
        return found


@dataclass(frozen=True)
class Document:
    """One pipeline (or component) with its platform settings."""

    spec: Mapping[str, Any]
    executors: Mapping[str, Mapping[str, Any]]
    platform: Mapping[str, Mapping[str, Any]]
    """Kubernetes settings by executor label."""
    dags: dict[str, Dag] = field(default_factory=dict)

    @property
    def components(self) -> Mapping[str, Mapping[str, Any]]:
        found: Mapping[str, Mapping[str, Any]] = self.spec.get("components", {})
        return found

    @property
    def root(self) -> Mapping[str, Any]:
        return self.spec.get("root") or {}

    @property
    def name(self) -> str:
        return str(self.spec.get("pipelineInfo", {}).get("name", ""))

    @property
    def tasks(self) -> Iterator[Task]:
        """All tasks of all DAGs."""
        for dag in self.dags.values():
            yield from dag.tasks.values()

    @property
    def container_tasks(self) -> Iterator[Task]:
        """Tasks that run a container; of those that share an executor, the first."""
        seen: set[str] = set()
        for task in self.tasks:
            if task.container and task.executor_label not in seen:
                seen.add(task.executor_label)
                yield task

    @property
    def is_component(self) -> bool:
        """Whether it is one compiled component: its only task bears its name and nothing is said on placement."""
        tasks = self.root.get("dag", {}).get("tasks", {})
        return not self.platform and list(tasks) == [self.name]


def read_document(path: Path) -> Document:
    """Read an IR file, or a manifest with a PipelineVersion.

    Raises:
        ConfigError: there is no such file.
        UnreadableError: it is no IR.
    """
    if not path.is_file():
        raise ConfigError(f"There is no IR file {path}: name one that 'serin compile' wrote.")
    spec, platform = _pipeline_and_platform(_parse(path))
    return _document(_as_ir(spec), _as_platform(platform))


def declared(component: Mapping[str, Any], side: str, kind: str) -> Mapping[str, Mapping[str, Any]]:
    """Inputs or outputs that a component declares, by name."""
    found: Mapping[str, Mapping[str, Any]] = component.get(side, {}).get(kind, {})
    return found


def _parse(path: Path) -> list[dict[str, Any]]:
    try:
        documents = list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=_Loader))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UnreadableError(f"this is not YAML ({_one_line(error)}): compile the pipeline again") from error
    documents = [document for document in documents if document is not None]
    if not documents:
        raise UnreadableError("the file is empty: compile the pipeline again")
    for document in documents:
        if not isinstance(document, dict):
            raise UnreadableError(f"a document is no mapping but a {type(document).__name__}: compile it again")
    return documents


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key twice (the second would silently replace the first) and leaves dates as text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        double = sorted({str(key) for key in keys if keys.count(key) > 1})
        if double:
            raise yaml.constructor.ConstructorError(None, None, f"key {double[0]!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _pipeline_and_platform(documents: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline's and the platform's part, as IR has them or as a Kubernetes manifest carries them."""
    versions = [document for document in documents if document.get("kind") == "PipelineVersion"]
    if versions:
        spec = versions[0].get("spec")
        spec = spec if isinstance(spec, dict) else {}
        return _mapping(spec.get("pipelineSpec"), "pipelineSpec"), _mapping(spec.get("platformSpec"), "platformSpec")
    if len(documents) > 2:
        raise UnreadableError(f"it has {len(documents)} documents: a pipeline and its platform settings are at most 2")
    return documents[0], documents[1] if len(documents) > 1 else {}


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise UnreadableError(f"the manifest's {name} is no mapping: compile it again")
    return value or {}


def _as_ir(spec: dict[str, Any]) -> dict[str, Any]:
    """The pipeline in its normal form: known fields in camel case, the executors included."""
    from kfp.pipeline_spec import pipeline_spec_pb2

    normal = _through(spec, pipeline_spec_pb2.PipelineSpec(), "PipelineSpec")
    deployment = normal.get("deploymentSpec", {})
    normal["deploymentSpec"] = _through(
        deployment, pipeline_spec_pb2.PipelineDeploymentConfig(), "PipelineDeploymentConfig"
    )
    return normal


def _as_platform(platform: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Kubernetes settings by executor label, in normal form."""
    from kfp.kubernetes import kubernetes_executor_config_pb2
    from kfp.pipeline_spec import pipeline_spec_pb2

    normal = _through(platform, pipeline_spec_pb2.PlatformSpec(), "PlatformSpec")
    executors = normal.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    message = kubernetes_executor_config_pb2.KubernetesExecutorConfig
    return {
        label: _through(settings, message(), f"KubernetesExecutorConfig of {label}")
        for label, settings in executors.items()
    }


def _through(values: dict[str, Any], message: Message, name: str) -> dict[str, Any]:
    try:
        json_format.ParseDict(values, message)
        normal: dict[str, Any] = json_format.MessageToDict(message)
    except (json_format.Error, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UnreadableError(f"it does not parse as {name} ({_one_line(error)}): compile it with kfp 2") from error
    return normal


def _document(spec: dict[str, Any], platform: dict[str, dict[str, Any]]) -> Document:
    document = Document(spec=spec, executors=spec["deploymentSpec"].get("executors", {}), platform=platform)
    bodies = {"root": document.root, **document.components}
    for name, body in bodies.items():
        if "dag" in body:
            dag = Dag(name=name, component=body)
            for task_name, task in body["dag"].get("tasks", {}).items():
                dag.tasks[task_name] = _task(document, name, task_name, task)
            document.dags[name] = dag
    return document


def _task(document: Document, dag: str, name: str, spec: dict[str, Any]) -> Task:
    component_name = spec.get("componentRef", {}).get("name", "")
    component = document.components.get(component_name, {})
    label = component.get("executorLabel", "")
    return Task(
        name=name,
        dag=dag,
        spec=spec,
        component_name=component_name,
        component=component,
        executor_label=label,
        executor=document.executors.get(label, {}),
        platform=document.platform.get(label, {}),
    )


def _one_line(error: Exception, max_chars: int = 200) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= max_chars else f"{text[: max_chars - 3]}..."
