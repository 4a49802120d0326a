"""What the Kubernetes API says: rights, APIs that are installed, the storage class, names that must exist."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from serin_pipelines.cluster_doctor.answers import FORBIDDEN, NOT_FOUND, Probe, RefusedError, fail
from serin_pipelines.cluster_doctor.gpus import gpu_nodes, gpu_quota
from serin_pipelines.cluster_doctor.kubernetes_api import KubernetesApi, group_versions
from serin_pipelines.doctor import Check
from serin_pipelines.environments import Environment

METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
DEFAULT_CLASS = (
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
)


class Kind(NamedTuple):
    """A custom resource that Serin or a part it stands on uses."""

    name: str
    plural: str
    group: str
    versions: tuple[str, ...]
    """Versions that our manifests and clients speak, the best first."""
    part: str
    """What brings it."""
    verbs: tuple[str, ...] = ()
    """What a run does with it, in the environment's namespace."""
    required: bool = True


KINDS = (
    Kind(
        "RayJob",
        "rayjobs",
        "ray.io",
        ("v1",),
        "KubeRay (validated against 1.7)",
        ("create", "get", "list", "watch", "delete"),
    ),
    Kind(
        "InferenceService",
        "inferenceservices",
        "serving.kserve.io",
        ("v1beta1",),
        "KServe (validated against 0.20)",
        ("update", "get"),
    ),
    Kind(
        "LLMInferenceService",
        "llminferenceservices",
        "serving.kserve.io",
        ("v1alpha2", "v1alpha1"),
        "KServe (validated against 0.20)",
        ("update", "get"),
    ),
    Kind("HTTPRoute", "httproutes", "gateway.networking.k8s.io", ("v1",), "the Gateway API (version 1)"),
    Kind(
        "PipelineVersion",
        "pipelineversions",
        "pipelines.kubeflow.org",
        ("v2beta1",),
        "Kubeflow Pipelines with Kubernetes-native storage (validated against 2.17)",
        required=False,
    ),
    Kind(
        "ServiceMonitor",
        "servicemonitors",
        "monitoring.coreos.com",
        ("v1",),
        "the Prometheus operator",
        required=False,
    ),
)


def kubernetes_probes(api: KubernetesApi, environment: Environment) -> dict[str, Probe]:
    """The probes that ask the Kubernetes API, by the names of their lines."""
    probes: dict[str, Probe] = {}
    for kind in KINDS:
        probes[f"{kind.name} API"] = partial(_installed, api, kind)
    for kind in KINDS:
        if kind.verbs:
            probes[_right(kind)] = partial(_may, api, kind)
    probes["gpu nodes"] = partial(gpu_nodes, api, environment)
    probes["gpu quota"] = partial(gpu_quota, api, environment)
    probes["storage class"] = partial(_storage_class, api)
    probes["service account"] = partial(_service_account, api, environment)
    probes["secrets"] = partial(_secrets, api, environment)
    return probes


def skipped_lines() -> list[Check]:
    """The same lines where there is no API to ask."""
    names = [f"{kind.name} API" for kind in KINDS] + [_right(kind) for kind in KINDS if kind.verbs]
    names += ["gpu nodes", "gpu quota", "storage class", "service account", "secrets"]
    fix = "Mend the line 'kubernetes' first: this needs its API."
    return [Check(name=name, status="warn", found="skipped", fix=fix) for name in names]


def _right(kind: Kind) -> str:
    return f"{kind.verbs[0]} {kind.plural}"


def _may(api: KubernetesApi, kind: Kind) -> Iterator[Check]:
    denied = [verb for verb in kind.verbs if not _allowed(api, kind.group, kind.plural, verb)]
    verbs = ", ".join(kind.verbs)
    if denied:
        what = f"{verbs} on {kind.plural}.{kind.group} in namespace {api.namespace}"
        yield fail(_right(kind), f"not allowed: {', '.join(denied)}", f"Bind a Role with {what} to this identity.")
    else:
        yield Check(name=_right(kind), status="ok", found=f"allowed: {verbs} in {api.namespace}")


def _allowed(api: KubernetesApi, group: str, plural: str, verb: str) -> bool:
    attributes = {"namespace": api.namespace, "group": group, "resource": plural, "verb": verb}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    return bool(answer.get("status", {}).get("allowed"))


def _installed(api: KubernetesApi, kind: Kind) -> Iterator[Check]:
    """Asks discovery, which every identity may read, not for the definitions, which few may."""
    name = f"{kind.name} API"
    served = _served_versions(api, kind)
    usable = [version for version in kind.versions if version in served]
    wanted = f"{kind.group}/{' or '.join(kind.versions)}"
    if usable:
        yield Check(name=name, status="ok", found=f"{kind.group}/{usable[0]}")
        return
    found = f"only at {', '.join(served)}, not {wanted}" if served else "not installed"
    fix = f"Upgrade {kind.part}, until it serves {wanted}." if served else f"Install {kind.part}; it brings {wanted}."
    yield Check(name=name, status="fail" if kind.required else "warn", found=found, fix=fix)


def _served_versions(api: KubernetesApi, kind: Kind) -> list[str]:
    served = []
    for version in group_versions(api, kind.group):
        resources = api.get(f"/apis/{kind.group}/{version}").get("resources", [])
        if any(resource.get("name") == kind.plural for resource in resources):
            served.append(version)
    return served


def _storage_class(api: KubernetesApi) -> Iterator[Check]:
    classes = api.get("/apis/storage.k8s.io/v1/storageclasses").get("items", [])
    default = [one for one in classes if _is_default(one)]
    names = ", ".join(one["metadata"]["name"] for one in (default or classes))
    if not default:
        fix = f"Mark one: kubectl annotate storageclass NAME {DEFAULT_CLASS[0]}=true"
        yield fail("storage class", f"no default among {names or 'none'}", fix)
    elif len(default) > 1:
        fix = f"Leave one: kubectl annotate storageclass NAME {DEFAULT_CLASS[0]}-"
        yield fail("storage class", f"{len(default)} defaults: {names}", fix)
    else:
        yield _fit(default[0], names)


def _fit(default: Mapping[str, Any], name: str) -> Check:
    provisioner = default.get("provisioner", "")
    if provisioner in ("", "kubernetes.io/no-provisioner"):
        return fail(
            "storage class", f"{name} makes no volumes", "Make one with a provisioner (CSI driver) the default."
        )
    missing = []
    if not default.get("allowVolumeExpansion"):
        missing.append("allowVolumeExpansion: true, so that MLflow's database can grow")
    if default.get("volumeBindingMode") != "WaitForFirstConsumer":
        missing.append("volumeBindingMode: WaitForFirstConsumer, so that volumes are made in their pod's zone")
    fix = f"Choose a default with {' and '.join(missing)}." if missing else ""
    return Check(name="storage class", status="warn" if missing else "ok", found=f"{name} ({provisioner})", fix=fix)


def _is_default(storage_class: Mapping[str, Any]) -> bool:
    annotations = storage_class.get("metadata", {}).get("annotations") or {}
    return any(annotations.get(name) == "true" for name in DEFAULT_CLASS)


def _service_account(api: KubernetesApi, environment: Environment) -> Iterator[Check]:
    name = environment.service_account
    if not name:
        fix = "Name one in the environment (service_account), with the least rights that the tasks need."
        yield Check(name="service account", status="warn", found="the namespace's default", fix=fix)
        return
    yield _exists(api, "service account", "serviceaccounts", name)


def _secrets(api: KubernetesApi, environment: Environment) -> Iterator[Check]:
    names = sorted({name for name in environment.secrets.dump().values() if name})
    if not names:
        yield Check(name="secrets", status="ok", found="the environment names none")
    for name in names:
        yield _exists(api, f"secret {name}", "secrets", name)


def _exists(api: KubernetesApi, line: str, plural: str, name: str) -> Check:
    """Whether an object is there, by its metadata alone."""
    try:
        api.get(f"/api/v1/namespaces/{api.namespace}/{plural}/{name}", METADATA_ONLY)
    except RefusedError as error:
        if error.status == NOT_FOUND:
            fix = f"Create {name} in namespace {api.namespace}, or correct its name in the environment."
            return fail(line, "missing", fix)
        if error.status == FORBIDDEN:
            fix = f"Look with an identity that may: kubectl -n {api.namespace} get {plural} {name} -o name"
            return Check(name=line, status="warn", found="this identity may not look", fix=fix)
        raise
    return Check(name=line, status="ok", found=f"{name} (metadata read, no value)" if plural == "secrets" else name)
