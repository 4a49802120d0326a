"""Builds the kustomizations of ``manifests/`` and walks what comes out."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
MANIFESTS = REPOSITORY / "manifests"
SHARED_CRDS = REPOSITORY.parent / "shared" / "crds"

OVERLAYS = ("staging", "prod")
COMPONENTS = (
    "components/external-secrets",
    "components/gateway-replicas",
    "kserve/llm",
    "kserve/llm-pair",
    "kserve/vllm",
    "kserve/vllm-canary",
    "kserve/vllm-fp8",
    "kuberay/raycluster",
    "kuberay/rayjob",
    "kuberay/rayservice",
    "kuberay/rayservice-gateway",
)
OF_THE_CLUSTER = ("admission", "kueue")
BUILDS = (*OVERLAYS, *(f"prod + {component}" for component in COMPONENTS), *OF_THE_CLUSTER)

Object = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod specification, wherever in an object it is."""

    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All of them, the initial ones included."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def build_command() -> list[str] | None:
    """What builds a kustomization here: kubectl or kustomize, or nothing."""
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    return ["kustomize", "build"] if shutil.which("kustomize") else None


def build(name: str, scratch: Path) -> list[Object]:
    """The objects of one of BUILDS; a component is added to a copy of its overlay, as README.md says."""
    overlay, _, component = name.partition(" + ")
    if name in OF_THE_CLUSTER:
        return _built(MANIFESTS / name)
    if not component:
        return _built(MANIFESTS / "overlays" / overlay)
    copy = scratch / re.sub(r"\W+", "-", name)
    if not copy.exists():
        shutil.copytree(MANIFESTS, copy, ignore=shutil.ignore_patterns("images", "compiled"))
        with (copy / "overlays" / overlay / "kustomization.yaml").open("a", encoding="utf-8") as stream:
            stream.write(f"components: [../../{component}]\n")
    return _built(copy / "overlays" / overlay)


@cache
def _built(folder: Path) -> list[Object]:
    command = build_command()
    assert command is not None
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def named(item: Object) -> str:
    """Kind and name, for messages."""
    return f"{item['kind']} {item['metadata']['name']}"


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    """The objects of some kinds."""
    return [item for item in objects if item["kind"] in kinds]


def one(objects: list[Object], kind: str, name: str) -> Object:
    """The object of that kind and name."""
    return next(item for item in of_kind(objects, kind) if item["metadata"]["name"] == name)


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping inside a value, itself included."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from mappings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from mappings(inner)


def pods(objects: list[Object]) -> list[Pod]:
    """Every pod specification of every object, with the labels that its pods will have."""
    found = []
    for item in objects:
        for holder in mappings(item):
            for key in ("spec", "template"):
                inner = holder.get(key)
                if isinstance(inner, dict) and _has_containers(inner):
                    found.append(Pod(named(item), _labels(item, holder), inner))
    return found


def pod_labels(objects: list[Object]) -> list[dict[str, str]]:
    """Labels of all pods that the objects lead to, those of InferenceServices included, whose runtime is elsewhere."""
    services = of_kind(objects, "InferenceService")
    predictors = [inner["predictor"] for item in services for inner in mappings(item) if "predictor" in inner]
    return [pod.labels for pod in pods(objects)] + [predictor["labels"] for predictor in predictors]


def texts(value: Any) -> Iterator[str]:
    """Every string inside a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts(inner)


def _has_containers(value: dict[str, Any]) -> bool:
    listed = value.get("containers")
    return isinstance(listed, list) and all(isinstance(container, dict) for container in listed)


def _labels(item: Object, holder: dict[str, Any]) -> dict[str, str]:
    spec = item["spec"]
    if item["kind"] == "LLMInferenceService":
        return dict(spec.get("labels", {}))
    labels = dict(holder.get("metadata", {}).get("labels", {}))
    if item["kind"].startswith("Ray"):
        names = [container["name"] for container in holder["spec"]["containers"]]
        labels |= {"ray.io/node-type": names[0].removeprefix("ray-")}
    return labels
