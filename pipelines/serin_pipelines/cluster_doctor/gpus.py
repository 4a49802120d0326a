"""Whether there are GPUs: on nodes that the environment selects, and within quotas."""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from serin_pipelines.cluster_doctor.kubernetes_api import KubernetesApi, group_versions
from serin_pipelines.doctor import Check
from serin_pipelines.environments import Environment

MAX_NODES = 500


def gpu_nodes(api: KubernetesApi, environment: Environment) -> Iterator[Check]:
    """Whether a node that the environment selects has the GPUs that one task needs."""
    gpu, needed = environment.gpu, _gpus_needed(environment)
    if not needed:
        yield Check(name="gpu nodes", status="ok", found="no component asks for a GPU")
        return
    selector = ",".join(f"{key}={value}" for key, value in sorted(gpu.node_selector.items()))
    query = urlencode({"labelSelector": selector, "limit": MAX_NODES})
    nodes = [node for node in api.get(f"/api/v1/nodes?{query}").get("items", []) if _is_open(node)]
    amounts = [_count(node.get("status", {}).get("allocatable", {}).get(gpu.resource, 0)) for node in nodes]
    found = f"{sum(amounts):g} {gpu.resource} on {sum(amount > 0 for amount in amounts)} nodes"
    if max(amounts, default=0) >= needed:
        yield Check(name="gpu nodes", status="ok", found=found)
        return
    fix = (
        f"A task needs {needed} on one node: add such a node labelled {selector or 'in any way'} with its device "
        "plugin, or change gpu in the environment; ignore this where an autoscaler starts from none."
    )
    yield Check(name="gpu nodes", status="fail" if nodes else "warn", found=found, fix=fix)


def gpu_quota(api: KubernetesApi, environment: Environment) -> Iterator[Check]:
    """Whether each quota of the namespace, and each queue that it may use, has room for one task."""
    needed, resource, unlimited = _gpus_needed(environment), environment.gpu.resource, True
    if not needed:
        yield Check(name="gpu quota", status="ok", found="no component asks for a GPU")
        return
    for limits in (_quota_left, _queues_left):
        for source, left in limits(api, resource).items():
            unlimited, enough = False, left >= needed
            fix = "" if enough else f"A task needs {needed}: wait, end other workloads, or have {source} raised."
            found = f"{left:g} {resource} left in {source}"
            yield Check(name="gpu quota", status="ok" if enough else "fail", found=found, fix=fix)
    if unlimited:
        yield Check(name="gpu quota", status="ok", found="nothing limits it")


def _is_open(node: Mapping[str, Any]) -> bool:
    return not node.get("spec", {}).get("unschedulable")


def _quota_left(api: KubernetesApi, resource: str) -> dict[str, float]:
    """GPUs left by each ResourceQuota of the namespace that counts them."""
    left = {}
    for quota in api.get(f"/api/v1/namespaces/{api.namespace}/resourcequotas").get("items", []):
        status, key = quota.get("status", {}), f"requests.{resource}"
        hard = status.get("hard", quota.get("spec", {}).get("hard", {}))
        if key in hard:
            name = f"ResourceQuota {quota['metadata']['name']}"
            left[name] = _count(hard[key]) - _count(status.get("used", {}).get(key, 0))
    return left


def _queues_left(api: KubernetesApi, resource: str) -> dict[str, float]:
    """GPUs left in each Kueue ClusterQueue that the namespace's LocalQueues lead to; cohorts may lend more."""
    versions = group_versions(api, "kueue.x-k8s.io")
    if not versions:
        return {}
    base = f"/apis/kueue.x-k8s.io/{versions[0]}"
    local = api.get(f"{base}/namespaces/{api.namespace}/localqueues").get("items", [])
    left = {}
    for name in sorted({one["spec"]["clusterQueue"] for one in local}):
        cluster_queue = api.get(f"{base}/clusterqueues/{name}")
        quota = _total(_flavors(cluster_queue), resource, "nominalQuota")
        if quota is not None:
            used = _total(cluster_queue.get("status", {}).get("flavorsReservation", []), resource, "total")
            left[f"ClusterQueue {name}"] = quota - (used or 0.0)
    return left


def _flavors(cluster_queue: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups = cluster_queue.get("spec", {}).get("resourceGroups", [])
    return [flavor for group in groups for flavor in group.get("flavors", [])]


def _total(flavors: list[dict[str, Any]], resource: str, field: str) -> float | None:
    """A resource's amount over all flavours; None where none speaks of it."""
    amounts = [
        _count(one.get(field, 0))
        for flavor in flavors
        for one in flavor.get("resources", [])
        if one.get("name") == resource
    ]
    return sum(amounts) if amounts else None


def _gpus_needed(environment: Environment) -> int:
    return max(placement.gpus for placement in (environment.default, *environment.components.values()))


def _count(quantity: Any) -> float:
    from kubernetes.utils.quantity import parse_quantity  # type: ignore[import-untyped]

    return float(parse_quantity(quantity))
