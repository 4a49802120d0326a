"""What a release's pods say: ready, not yet, or never without help."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serin.core.kubernetes import KubernetesApi
from serin.deploy.traffic_providers.cluster import Object, Readiness

STUCK = {
    "CrashLoopBackOff": "crashes at start",
    "ImagePullBackOff": "cannot pull its image",
    "InvalidImageName": "has an image name that is none",
    "CreateContainerConfigError": "refers to a Secret or ConfigMap that is not there",
    "RunContainerError": "cannot be started",
}
"""Reasons for which a container waits (Kubernetes' kubelet), and what they mean; none ends by itself soon."""


def pods_of(api: KubernetesApi, namespace: str, **labels: str) -> list[Object]:
    """Pods with some labels."""
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    items: list[Object] = api.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)["items"]
    return items


def judged(pods: Sequence[Object]) -> Readiness:
    """What pods say together: failed if one is stuck, ready if all that run are ready and one is."""
    alive = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    restarts = sum(status.get("restartCount", 0) for pod in alive for status in _statuses(pod))
    for pod in alive:
        for status in _statuses(pod):
            waiting = status.get("state", {}).get("waiting", {})
            if waiting.get("reason") in STUCK:
                return Readiness(False, _sentence(pod, status, waiting), True, restarts)
    for pod in alive:
        if reason := _not_yet(pod):
            return Readiness(False, f"Pod {pod['metadata']['name']} {reason}.", False, restarts)
    return Readiness(bool(alive), "" if alive else "It has no pods yet.", False, restarts)


def _statuses(pod: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for kind in ("initContainerStatuses", "containerStatuses"):
        yield from pod.get("status", {}).get(kind, [])


def _sentence(pod: Object, status: Mapping[str, Any], waiting: Mapping[str, Any]) -> str:
    ended = status.get("lastState", {}).get("terminated", {})
    why = ended.get("reason") or waiting.get("message") or waiting["reason"]
    code = f", exit code {ended['exitCode']}" if "exitCode" in ended else ""
    return f"Pod {pod['metadata']['name']}: container {status['name']} {STUCK[waiting['reason']]} ({why}{code})."


def _not_yet(pod: Object) -> str:
    conditions = {one["type"]: one for one in pod.get("status", {}).get("conditions", [])}
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return f"waits for a node ({scheduled.get('message') or scheduled.get('reason', 'no reason given')})"
    return "" if conditions.get("Ready", {}).get("status") == "True" else "is not ready yet"
