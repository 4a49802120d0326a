"""Whether every object that is named is there: in the build, or among what is made outside."""

from collections.abc import Iterator
from typing import Any

from tests.manifests.building import Object, mappings, named, of_kind, one, pods
from tests.manifests.policies import EXTERNAL_SECRETS

Reference = tuple[str, str, str]
"""Kind, name and key (empty for the whole object)."""


def references_resolve(objects: list[Object]) -> list[str]:
    """Settings, secrets, volumes, accounts, roles, back ends, runtimes and model volumes that are named are there."""
    found = []
    for item in objects:
        for kind, name, key in _references(item):
            if not _is_there(objects, kind, name, key):
                found.append(f"{named(item)}: {kind} {name}{f' with key {key}' if key else ''} is not there")
    for pod in pods(objects):
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
        for container in pod.containers:
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            found += [f"{pod.owner}: mounts volume {name}, which it lacks" for name in sorted(mounts - volumes)]
    return found


def _references(item: Object) -> Iterator[Reference]:
    if item["kind"] == "ExternalSecret":
        return
    for inner in mappings(item):
        for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
            if field in inner:
                yield kind, inner[field]["name"], inner[field]["key"]
        for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if field in inner:
                yield kind, inner[field]["name"], ""
        yield from _volumes(inner)
        if "serviceAccountName" in inner:
            yield "ServiceAccount", inner["serviceAccountName"], ""
        for text in [value for value in inner.values() if isinstance(value, str) and value.startswith("pvc://")]:
            yield "PersistentVolumeClaim", text.removeprefix("pvc://").split("/")[0], ""
    yield from _of_kind(item)


def _volumes(inner: dict[str, Any]) -> Iterator[Reference]:
    for volume in inner.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], ""
        for field, kind, name in (("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName")):
            for entry in volume.get(field, {}).get("items", []):
                yield kind, volume[field][name], entry["key"]


def _of_kind(item: Object) -> Iterator[Reference]:
    spec = item.get("spec", {})
    match item["kind"]:
        case "RoleBinding":
            yield "Role", item["roleRef"]["name"], ""
            for subject in item["subjects"]:
                yield subject["kind"], subject["name"], ""
        case "ServiceAccount":
            for secret in item.get("secrets", []):
                yield "Secret", secret["name"], ""
        case "HTTPRoute":
            for rule in spec["rules"]:
                for backend in rule["backendRefs"]:
                    yield "Service", backend["name"], str(backend["port"])
        case "InferenceService":
            for inner in mappings(spec):
                if "runtime" in inner:
                    yield "ServingRuntime", inner["runtime"], ""
        case "ClusterQueue":
            for group in spec["resourceGroups"]:
                for flavor in group["flavors"]:
                    yield "ResourceFlavor", flavor["name"], ""


def _is_there(objects: list[Object], kind: str, name: str, key: str) -> bool:
    if kind == "Secret":
        return name in EXTERNAL_SECRETS and (not key or key in EXTERNAL_SECRETS[name])
    if name not in {item["metadata"]["name"] for item in of_kind(objects, kind)}:
        return False
    item = one(objects, kind, name)
    if kind == "ConfigMap":
        return not key or key in item["data"]
    if kind == "Service":
        return int(key) in {port["port"] for port in item["spec"]["ports"]}
    return True
