"""What every build must keep to; each rule takes the objects and returns what breaks it, as sentences."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

from kubernetes.utils.quantity import parse_quantity

from tests.manifests.building import Object, Pod, mappings, named, of_kind, pod_labels, pods, texts

OUR_IMAGE = re.compile(r"registry\.example/serin/(cpu|ray|serve):(?P<version>\d+\.\d+\.\d+)")
DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
THIRD_PARTY = re.compile(r"(vllm/vllm-openai:v\d+\.\d+\.\d+|rayproject/ray-llm:\d+\.\d+\.\d+-py311-cu\d+)")
"""Accepted with a version's tag, because no digest can be looked up here; README.md asks for one in production."""
SECRET_NAME = re.compile(r"(?i)(password|token|secret|api_?key|access_key)")
TOKEN_OWNERS = {"RayCluster serin", "RayService assistant"}
"""Their heads run Ray's autoscaler, which asks the Kubernetes API."""

EXTERNAL_SECRETS = {
    "serin-object-store": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "serin-mlflow": {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"},
    "serin-mlflow-server": {"backend-store-uri", "flask-secret-key", "admin-username", "admin-password", "auth.ini"},
    "serin-gateway": {"SERIN_ADMIN_TOKEN", "SERIN_API_KEYS"},
    "serin-signing": {"SERIN_SIGNING_KEY"},
}
"""Made outside, see README.md: name to keys."""
EXTERNAL_PODS = (
    {"workflows.argoproj.io/workflow": "a-run", "app.kubernetes.io/part-of": "serin"},
    {"ray.io/node-type": "head"},
    {"ray.io/node-type": "worker"},
    {"app.kubernetes.io/name": "ray-submitter"},
    {"app.kubernetes.io/component": "llminferenceservice-router-scheduler"},
)
"""Labels of pods that Kubeflow, KubeRay and KServe make."""


def images_are_pinned(objects: list[Object], version: str) -> list[str]:
    """Every image is by digest, of our version, or one of a few third parties' with a version."""
    found = []
    for item in objects:
        for image in [inner["image"] for inner in mappings(item) if isinstance(inner.get("image"), str)]:
            ours = OUR_IMAGE.fullmatch(image)
            if DIGEST.fullmatch(image) or THIRD_PARTY.fullmatch(image) or (ours and ours["version"] == version):
                continue
            found.append(f"{named(item)}: image {image} is neither by digest nor of version {version}")
    return found


def containers_have_resources(objects: list[Object]) -> list[str]:
    """Requests and limits of CPU and memory, no request above its limit."""
    found = []
    for owner, container in _containers(objects):
        resources = container.get("resources", {})
        for kind in ("cpu", "memory"):
            request, limit = (resources.get(side, {}).get(kind) for side in ("requests", "limits"))
            if request is None or limit is None:
                found.append(f"{owner}: container {container['name']} lacks a request or limit of {kind}")
            elif parse_quantity(request) > parse_quantity(limit):
                found.append(f"{owner}: container {container['name']} requests more {kind} than its limit")
    return found


def pods_are_restricted(objects: list[Object]) -> list[str]:
    """What the Pod Security Standard "restricted" asks for, and a read-only root file system."""
    found = []
    for pod in pods(objects):
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(name):
                found.append(f"{pod.owner}: {name} is on")
        if any("hostPath" in volume for volume in pod.spec.get("volumes", [])):
            found.append(f"{pod.owner}: mounts a path of its node")
        for container in pod.containers:
            found += [f"{pod.owner}: container {container['name']} {message}" for message in _loose(pod, container)]
    return found


def _loose(pod: Pod, container: dict[str, Any]) -> Iterator[str]:
    own, around = container.get("securityContext", {}), pod.spec.get("securityContext", {})
    if {**around, **own}.get("runAsNonRoot") is not True or {**around, **own}.get("runAsUser", 0) < 1:
        yield "may run as root"
    if {**around, **own}.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield "may gain privileges"
    if own.get("capabilities", {}).get("drop") != ["ALL"] or own.get("capabilities", {}).get("add"):
        yield "keeps capabilities"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "can write to its root file system"


def tokens_are_mounted_only_where_needed(objects: list[Object]) -> list[str]:
    """No pod of ours talks to the Kubernetes API, but for Ray's autoscaler."""
    mounted = {pod.owner for pod in pods(objects) if pod.spec.get("automountServiceAccountToken") is not False}
    without = {"ServingRuntime serin-vllm"}  # has no such field: its InferenceService says it
    return [f"{owner}: mounts a service account's token" for owner in sorted(mounted - TOKEN_OWNERS - without)]


def roles_name_what_they_allow(objects: list[Object]) -> list[str]:
    """No wildcard, nothing of the whole cluster, no way to more rights, no reading of any secret by list."""
    found = [
        f"{named(item)}: reaches over namespaces" for item in of_kind(objects, "ClusterRole", "ClusterRoleBinding")
    ]
    for role in of_kind(objects, "Role"):
        for rule in role["rules"]:
            listed = {*rule.get("apiGroups", []), *rule.get("resources", []), *rule.get("verbs", [])}
            if any("*" in word for word in listed):
                found.append(f"{named(role)}: has a wildcard")
            if listed & {"escalate", "bind", "impersonate", "pods/exec", "serviceaccounts/token"}:
                found.append(f"{named(role)}: leads to other rights")
            if listed & {"secrets", "configmaps"} and (
                not rule.get("resourceNames") or {"list", "watch"} & set(rule["verbs"])
            ):
                found.append(f"{named(role)}: reads secrets or settings that it does not name")
    return found


def no_secret_values(objects: list[Object]) -> list[str]:
    """Secrets are named, never contained: no Secret, no literal in a variable, no password in a URI."""
    found = [f"{named(item)}: is a Secret" for item in of_kind(objects, "Secret")]
    for item in objects:
        for inner in mappings(item):
            if SECRET_NAME.search(str(inner.get("name", ""))) and isinstance(inner.get("value"), str):
                found.append(f"{named(item)}: variable {inner['name']} has a literal value")
        uris = [uri for text in texts(item) for uri in re.findall(r"\w+://[^\s'\"]+", text)]
        if any(urlparse(uri).password for uri in uris):
            found.append(f"{named(item)}: a URI holds a password")
    return found


def replicated_deployments_have_budgets(objects: list[Object]) -> list[str]:
    """More than one replica, by itself or by an autoscaler, needs a PodDisruptionBudget that can be met."""
    found = []
    for item in of_kind(objects, "Deployment"):
        scaled = [a["spec"]["maxReplicas"] for a in of_kind(objects, "HorizontalPodAutoscaler") if _scales(a, item)]
        labels = item["spec"]["template"]["metadata"]["labels"]
        budgets = [b for b in of_kind(objects, "PodDisruptionBudget") if matches(b["spec"]["selector"], labels)]
        if max([item["spec"].get("replicas", 1), *scaled]) > 1 and len(budgets) != 1:
            found.append(f"{named(item)}: has {len(budgets)} disruption budgets")
        if any("minAvailable" in budget["spec"] for budget in budgets):
            found.append(f"{named(item)}: its budget can keep a node from being drained")
    return found


def autoscalers_have_targets(objects: list[Object]) -> list[str]:
    """An autoscaler's target is there, and leaves its number of replicas to it."""
    found = []
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        targets = [item for item in of_kind(objects, "Deployment") if _scales(scaler, item)]
        if not targets:
            found.append(f"{named(scaler)}: its target is not there")
        found += [
            f"{named(item)}: fights its autoscaler over replicas" for item in targets if "replicas" in item["spec"]
        ]
    return found


def _scales(scaler: Object, item: Object) -> bool:
    target = scaler["spec"]["scaleTargetRef"]
    return (target["kind"], target["name"]) == (item["kind"], item["metadata"]["name"])


def services_reach_pods(objects: list[Object]) -> list[str]:
    """A Service selects pods of the build, on ports that they have."""
    found = []
    for service in of_kind(objects, "Service"):
        selected = [pod for pod in pods(objects) if matches({"matchLabels": service["spec"]["selector"]}, pod.labels)]
        if not selected:
            found.append(f"{named(service)}: selects no pod")
        for pod in selected:
            names = {port["name"] for container in pod.containers for port in container.get("ports", [])}
            missing = [port["targetPort"] for port in service["spec"]["ports"] if port["targetPort"] not in names]
            found += [f"{named(service)}: {pod.owner} has no port {name}" for name in missing]
    return found


def network_is_closed_by_default(objects: list[Object]) -> list[str]:
    """One policy denies all, every other selects pods, and no rule is open to everything."""
    policies = of_kind(objects, "NetworkPolicy")
    closed = [p for p in policies if p["spec"].get("podSelector") == {} and not _rules(p)]
    found = [] if any(set(p["spec"]["policyTypes"]) == {"Ingress", "Egress"} for p in closed) else ["no default deny"]
    labels = [*pod_labels(objects), *EXTERNAL_PODS]
    for policy in policies:
        if not any(matches(policy["spec"]["podSelector"], each) for each in labels):
            found.append(f"{named(policy)}: selects no pod")
        for peer in [peer for rule in _rules(policy) for peer in [*rule.get("to", []), *rule.get("from", [])]]:
            own = peer.get("podSelector") if "namespaceSelector" not in peer else None
            if own is not None and not any(matches(own, each) for each in labels):
                found.append(f"{named(policy)}: names {own}, which no pod is")
        for rule in _rules(policy):
            if not rule.get("to") and not rule.get("from") and not rule.get("ports"):
                found.append(f"{named(policy)}: has a rule that allows everything")
    return found


def _rules(policy: Object) -> list[dict[str, Any]]:
    return [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]


def monitors_select_something(objects: list[Object]) -> list[str]:
    """A ServiceMonitor selects a Service with its port, a PodMonitor pods."""
    found = []
    for monitor in of_kind(objects, "ServiceMonitor"):
        ports = {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]}
        services = [
            s for s in of_kind(objects, "Service") if matches(monitor["spec"]["selector"], s["metadata"]["labels"])
        ]
        if not any(ports <= {port["name"] for port in service["spec"]["ports"]} for service in services):
            found.append(f"{named(monitor)}: selects no Service with that port")
    for monitor in of_kind(objects, "PodMonitor"):
        if not any(matches(monitor["spec"]["selector"], each) for each in pod_labels(objects)):
            found.append(f"{named(monitor)}: selects no pod")
    return found


def routes_show_the_api_only(objects: list[Object]) -> list[str]:
    """From outside only /v1 can be reached: administration and metrics cannot."""
    found = []
    for route in of_kind(objects, "HTTPRoute"):
        for rule in route["spec"]["rules"]:
            paths = [match.get("path", {}) for match in rule.get("matches", [{}])]
            if any(path.get("value") != "/v1" or path.get("type") != "PathPrefix" for path in paths):
                found.append(f"{named(route)}: shows more than /v1")
    return found


def namespaces_are_restricted(objects: list[Object]) -> list[str]:
    """Everything is in one namespace, which enforces "restricted", with a quota and defaults."""
    found = []
    names = {item["metadata"]["name"] for item in of_kind(objects, "Namespace")}
    for item in of_kind(objects, "Namespace"):
        if item["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            found.append(f"{named(item)}: does not enforce restricted pods")
    for kind in ("ResourceQuota", "LimitRange"):
        if names and not of_kind(objects, kind):
            found.append(f"no {kind}")
    outside = [
        item for item in objects if item["metadata"].get("namespace") not in names and item["kind"] != "Namespace"
    ]
    return found + [f"{named(item)}: is outside the namespace" for item in outside]


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels."""
    for expression in selector.get("matchExpressions", []):
        value, operator = labels.get(expression["key"]), expression["operator"]
        if operator == "Exists" and value is None:
            return False
        if operator == "In" and value not in expression["values"]:
            return False
        assert operator in ("Exists", "In"), f"teach this test the operator {operator}"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def _containers(objects: list[Object]) -> Iterator[tuple[str, dict[str, Any]]]:
    for pod in pods(objects):
        for container in pod.containers:
            yield pod.owner, container
