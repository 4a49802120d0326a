"""The rules hold in every build, and each of them fails on what it is there to find."""

import copy
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest

from tests.manifests import policies
from tests.manifests.building import Object, build, of_kind, one
from tests.manifests.references import references_resolve

Rule = Callable[[list[Object]], list[str]]


def images_are_pinned(objects: list[Object]) -> list[str]:
    """To this package's version."""
    return policies.images_are_pinned(objects, version("serin"))


RULES: list[Rule] = [
    images_are_pinned,
    policies.containers_have_resources,
    policies.pods_are_restricted,
    policies.tokens_are_mounted_only_where_needed,
    policies.roles_name_what_they_allow,
    policies.no_secret_values,
    policies.replicated_deployments_have_budgets,
    policies.autoscalers_have_targets,
    policies.services_reach_pods,
    policies.monitors_select_something,
    policies.routes_show_the_api_only,
    references_resolve,
]
IN_A_NAMESPACE: list[Rule] = [policies.network_is_closed_by_default, policies.namespaces_are_restricted]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule, built: list[Object]) -> None:
    assert rule(built) == []


@pytest.mark.parametrize("rule", IN_A_NAMESPACE, ids=lambda rule: rule.__name__)
def test_rule_of_namespaces_holds(rule: Rule, built: list[Object]) -> None:
    if not of_kind(built, "Namespace"):
        pytest.skip("this build has objects of the cluster only")
    assert rule(built) == []


def _gateway(objects: list[Object]) -> dict[str, Any]:
    return one(objects, "Deployment", "gateway")["spec"]


def _pod(objects: list[Object]) -> dict[str, Any]:
    return _gateway(objects)["template"]["spec"]


def _container(objects: list[Object]) -> dict[str, Any]:
    return _pod(objects)["containers"][0]


def _spec(objects: list[Object], kind: str, name: str) -> dict[str, Any]:
    return one(objects, kind, name)["spec"]


def _without(objects: list[Object], kind: str, name: str) -> None:
    objects.remove(one(objects, kind, name))


def _first_rule(objects: list[Object]) -> dict[str, Any]:
    return one(objects, "Role", "serin-workflow")["rules"][0]


SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"token": "c2VjcmV0"}}

BREAKS: list[tuple[Rule, str, Callable[[list[Object]], Any]]] = [
    (images_are_pinned, "latest", lambda o: _container(o).update(image="registry.example/serin/serve:latest")),
    (images_are_pinned, "serve", lambda o: _container(o).update(image="registry.example/serin/serve")),
    (images_are_pinned, "9.9.9", lambda o: _container(o).update(image="registry.example/serin/serve:9.9.9")),
    (images_are_pinned, "evil", lambda o: _container(o).update(image="evil/vllm-openai:v0.19.0")),
    (policies.containers_have_resources, "memory", lambda o: _container(o)["resources"]["limits"].pop("memory")),
    (policies.containers_have_resources, "more cpu", lambda o: _container(o)["resources"]["requests"].update(cpu="99")),
    (policies.pods_are_restricted, "as root", lambda o: _pod(o)["securityContext"].update(runAsNonRoot=False)),
    (policies.pods_are_restricted, "as root", lambda o: _pod(o)["securityContext"].update(runAsUser=0)),
    (policies.pods_are_restricted, "seccomp", lambda o: _pod(o)["securityContext"].pop("seccompProfile")),
    (policies.pods_are_restricted, "gain", lambda o: _container(o)["securityContext"].pop("allowPrivilegeEscalation")),
    (policies.pods_are_restricted, "capabilities", lambda o: _container(o)["securityContext"].pop("capabilities")),
    (policies.pods_are_restricted, "write", lambda o: _container(o)["securityContext"].pop("readOnlyRootFilesystem")),
    (policies.pods_are_restricted, "hostNetwork", lambda o: _pod(o).update(hostNetwork=True)),
    (
        policies.pods_are_restricted,
        "of its node",
        lambda o: _pod(o)["volumes"].append({"name": "h", "hostPath": {"path": "/"}}),
    ),
    (policies.tokens_are_mounted_only_where_needed, "token", lambda o: _pod(o).pop("automountServiceAccountToken")),
    (policies.roles_name_what_they_allow, "wildcard", lambda o: _first_rule(o).update(verbs=["*"])),
    (policies.roles_name_what_they_allow, "wildcard", lambda o: _first_rule(o).update(resources=["*"])),
    (policies.roles_name_what_they_allow, "wildcard", lambda o: _first_rule(o).update(apiGroups=["*"])),
    (policies.roles_name_what_they_allow, "other rights", lambda o: _first_rule(o).update(verbs=["impersonate"])),
    (policies.roles_name_what_they_allow, "not name", lambda o: _first_rule(o).update(resources=["secrets"])),
    (
        policies.roles_name_what_they_allow,
        "over namespaces",
        lambda o: one(o, "Role", "serin-workflow").update(kind="ClusterRole"),
    ),
    (policies.no_secret_values, "is a Secret", lambda o: o.append(SECRET)),
    (policies.no_secret_values, "literal", lambda o: _container(o)["env"].append({"name": "API_TOKEN", "value": "x"})),
    (policies.no_secret_values, "a URI", lambda o: _container(o)["args"].append("postgresql://serin:pw@db/mlflow")),
    (
        policies.replicated_deployments_have_budgets,
        "0 disruption",
        lambda o: (_gateway(o).update(replicas=2), _without(o, "PodDisruptionBudget", "gateway")),
    ),
    (
        policies.replicated_deployments_have_budgets,
        "0 disruption",
        lambda o: (
            _spec(o, "HorizontalPodAutoscaler", "gateway").update(maxReplicas=3),
            _without(o, "PodDisruptionBudget", "gateway"),
        ),
    ),
    (
        policies.replicated_deployments_have_budgets,
        "drained",
        lambda o: _spec(o, "PodDisruptionBudget", "gateway").update(minAvailable=1),
    ),
    (policies.autoscalers_have_targets, "not there", lambda o: _without(o, "Deployment", "gateway")),
    (policies.autoscalers_have_targets, "fights", lambda o: _gateway(o).update(replicas=3)),
    (
        policies.services_reach_pods,
        "no pod",
        lambda o: _spec(o, "Service", "gateway")["selector"].update({"app.kubernetes.io/name": "gatewy"}),
    ),
    (
        policies.services_reach_pods,
        "no port",
        lambda o: _spec(o, "Service", "gateway")["ports"][0].update(targetPort="x"),
    ),
    (policies.monitors_select_something, "no Service", lambda o: _without(o, "Service", "gateway")),
    (
        policies.routes_show_the_api_only,
        "more than",
        lambda o: _spec(o, "HTTPRoute", "gateway")["rules"][0]["matches"][0]["path"].update(value="/"),
    ),
    (
        policies.routes_show_the_api_only,
        "more than",
        lambda o: _spec(o, "HTTPRoute", "gateway")["rules"][0].pop("matches"),
    ),
    (policies.network_is_closed_by_default, "default deny", lambda o: _without(o, "NetworkPolicy", "default-deny")),
    (policies.network_is_closed_by_default, "no pod", lambda o: _without(o, "Deployment", "mlflow")),
    (
        policies.network_is_closed_by_default,
        "everything",
        lambda o: _spec(o, "NetworkPolicy", "gateway")["ingress"].append({}),
    ),
    (
        policies.network_is_closed_by_default,
        "which no pod is",
        lambda o: _spec(o, "NetworkPolicy", "gateway")["ingress"][0]["from"].append(
            {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "gatewy"}}}
        ),
    ),
    (
        policies.namespaces_are_restricted,
        "enforce",
        lambda o: of_kind(o, "Namespace")[0]["metadata"]["labels"].update(
            {"pod-security.kubernetes.io/enforce": "baseline"}
        ),
    ),
    (policies.namespaces_are_restricted, "ResourceQuota", lambda o: _without(o, "ResourceQuota", "serin")),
    (
        policies.namespaces_are_restricted,
        "outside",
        lambda o: one(o, "Service", "gateway")["metadata"].update(namespace="default"),
    ),
    (references_resolve, "ServiceAccount nobody", lambda o: _pod(o).update(serviceAccountName="nobody")),
    (references_resolve, "Service gateway", lambda o: _without(o, "Service", "gateway")),
    (references_resolve, "Role serin-deploy", lambda o: _without(o, "Role", "serin-deploy")),
    (references_resolve, "ConfigMap serin-settings", lambda o: _without(o, "ConfigMap", "serin-settings")),
    (
        references_resolve,
        "with key SERIN_ADMIN",
        lambda o: _container(o)["env"].append(
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": "serin-gateway", "key": "SERIN_ADMIN"}}}
        ),
    ),
    (references_resolve, "mounts volume", lambda o: _pod(o)["volumes"].pop()),
    (
        references_resolve,
        "PersistentVolumeClaim gone",
        lambda o: _pod(o)["volumes"].append({"name": "v", "persistentVolumeClaim": {"claimName": "gone"}}),
    ),
]


@pytest.mark.parametrize(
    ("rule", "message", "break_it"), BREAKS, ids=[f"{rule.__name__}-{i}" for i, (rule, _, _) in enumerate(BREAKS)]
)
def test_rule_finds_its_counter_example(
    rule: Rule, message: str, break_it: Callable[[list[Object]], Any], prod: list[Object]
) -> None:
    broken = copy.deepcopy(prod)
    break_it(broken)
    assert any(message in sentence for sentence in rule(broken))


def test_every_rule_has_a_counter_example() -> None:
    assert {rule.__name__ for rule in [*RULES, *IN_A_NAMESPACE]} == {rule.__name__ for rule, _, _ in BREAKS}


def test_rules_see_the_pods_of_custom_objects(scratch: Any) -> None:
    broken = copy.deepcopy(build("prod + kuberay/rayjob", scratch))
    worker = _spec(broken, "RayJob", "serin-finetune")["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    worker["containers"][0]["image"] = "rayproject/ray:latest"
    worker["containers"][0]["resources"].pop("limits")
    worker["securityContext"]["runAsNonRoot"] = False
    for rule in (images_are_pinned, policies.containers_have_resources, policies.pods_are_restricted):
        assert rule(broken)
