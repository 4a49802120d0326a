"""Validation of objects: Kubernetes' own schemas, CustomResourceDefinitions made strict, small ones of our own."""

import gzip
import json
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.manifests.building import SHARED_CRDS, Object

KUBERNETES_VERSION = "1.34"
BUILT_IN_GROUPS = (
    "",
    "admissionregistration.k8s.io",
    "apps",
    "autoscaling",
    "batch",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
)


def _fields(*required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


_TEXT, _LABELS = {"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}
_QUOTA = _fields("name", "nominalQuota", name=_TEXT, nominalQuota={"type": ["string", "integer"]})
_FLAVOR = _fields("name", "resources", name=_TEXT, resources={"type": "array", "items": _QUOTA})
_GROUP = _fields(
    "coveredResources",
    "flavors",
    coveredResources={"type": "array", "items": _TEXT},
    flavors={"type": "array", "items": _FLAVOR},
)
_TOLERATION = _fields("key", "operator", "effect", key=_TEXT, operator={"const": "Exists"}, effect=_TEXT)

OWN_SCHEMAS: dict[tuple[str, str], dict[str, Any]] = {
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): _fields(
        nodeLabels=_LABELS, tolerations={"type": "array", "items": _TOLERATION}
    ),
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): _fields(
        "namespaceSelector",
        "resourceGroups",
        namespaceSelector=_fields(matchLabels=_LABELS),
        queueingStrategy={"enum": ["BestEffortFIFO", "StrictFIFO"]},
        preemption=_fields(withinClusterQueue={"enum": ["Never", "LowerPriority", "LowerOrNewerEqualPriority"]}),
        resourceGroups={"type": "array", "items": _GROUP},
    ),
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): _fields("clusterQueue", clusterQueue=_TEXT),
}
"""The spec of Kueue's kinds as far as we use it, written from its documentation: its CRDs are not at hand."""

UNCHECKED = {("external-secrets.io/v1", "ExternalSecret")}
"""Kinds without any schema here; README.md names them."""


def problems(item: Object) -> list[str]:
    """What a schema has against an object; unknown fields count.

    Raises:
        FileNotFoundError: it is of a custom kind, and the CustomResourceDefinitions are not here.
    """
    return _problems(json.dumps(item, sort_keys=True))


@cache
def _problems(text: str) -> list[str]:
    item = json.loads(text)
    version, kind = item["apiVersion"], item["kind"]
    if version.rpartition("/")[0] in BUILT_IN_GROUPS:
        return _built_in(item)
    if (version, kind) in UNCHECKED:
        return []
    if (version, kind) in OWN_SCHEMAS:
        return _messages(item.get("spec", {}), OWN_SCHEMAS[version, kind])
    schema = custom_schema(version, kind)
    return [f"no schema for {version} {kind}"] if schema is None else _messages(item, schema)


def _built_in(item: Object) -> list[str]:
    try:
        kubernetes_validate.validate(item, KUBERNETES_VERSION, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.InvalidSchemaError) as error:
        return [str(error)]
    return []


def _messages(value: Any, schema: dict[str, Any]) -> list[str]:
    errors = jsonschema.Draft202012Validator(schema).iter_errors(value)
    return [f"{error.json_path}: {error.message}" for error in errors]


@cache
def custom_schema(version: str, kind: str) -> dict[str, Any] | None:
    """The strict schema of a custom kind, or None where it has no definition of that version."""
    if not SHARED_CRDS.is_dir():
        raise FileNotFoundError(SHARED_CRDS)
    path = SHARED_CRDS / f"{version.partition('/')[0]}_{kind.lower()}s.yaml.gz"
    if not path.is_file():
        return None
    for crd in yaml.load_all(gzip.decompress(path.read_bytes()), Loader=yaml.CSafeLoader):
        for candidate in crd["spec"]["versions"]:
            if candidate["served"] and version.endswith(f"/{candidate['name']}"):
                schema = strict(candidate["schema"]["openAPIV3Schema"])
                # Structural schemas leave these three to the API server.
                schema["properties"] |= {"apiVersion": _TEXT, "kind": _TEXT, "metadata": {"type": "object"}}
                return dict(schema)
    return None


def strict(schema: Any) -> Any:
    """A structural schema that rejects unknown fields and takes null where it says nullable."""
    if isinstance(schema, list):
        return [strict(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(inner) for key, inner in schema.items()}
    properties = schema.get("properties")
    if isinstance(properties, dict) and all(isinstance(inner, dict) for inner in properties.values()):
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
        if schema.get("nullable") and isinstance(schema.get("type"), str):
            made["type"] = [schema["type"], "null"]
    return made
