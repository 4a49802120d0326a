"""Why a RayJob does not start: from Kueue's queue, the cluster's conditions, its pods and its events."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serin.core.kubernetes import KubernetesApi, LostError, RefusedError

logger = logging.getLogger(__name__)

PULL_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff")
MAX_CHARS = 300


@dataclass(frozen=True)
class Waiting:
    """Why a job has not started."""

    text: str
    hopeless: bool = False
    """Whether waiting longer is unlikely to help: an image, a Secret or quota is missing."""


def explain(api: KubernetesApi, job: dict[str, Any], queue: str) -> Waiting:
    """Why a job has not started, as far as this identity may look."""
    status = job.get("status", {})
    if job.get("spec", {}).get("suspend") or status.get("jobDeploymentStatus") in ("Suspended", "Suspending"):
        where = f"Kueue's queue {queue}" if queue else "a suspended state"
        return Waiting(f"waiting in {where}")
    namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
    cluster = status.get("rayClusterName", "")
    selectors = ([f"ray.io/cluster={cluster}"] if cluster else []) + [f"batch.kubernetes.io/job-name={name}"]
    pods = [pod for selector in selectors for pod in _list(api, namespace, "pods", labelSelector=selector)]
    found = [*_refused_pods(status), *(reason for pod in pods for reason in _of_pod(pod))]
    if not found:
        found = [reason for each in (cluster, name) if each for reason in _of_events(api, namespace, each)]
    if found:
        return max(found, key=lambda reason: reason.hopeless)
    if not status.get("jobDeploymentStatus"):
        return Waiting("waiting for KubeRay to take it up")
    ready = sum(1 for pod in pods if pod.get("status", {}).get("phase") == "Running")
    return Waiting(f"Ray is starting, {ready} of {len(pods)} pods run" if pods else "Ray is starting")


def _refused_pods(status: dict[str, Any]) -> Iterator[Waiting]:
    for condition in status.get("rayClusterStatus", {}).get("conditions", []):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            yield _refusal(condition["message"])


def _of_events(api: KubernetesApi, namespace: str, name: str) -> Iterator[Waiting]:
    events = _list(api, namespace, "events", fieldSelector=f"involvedObject.name={name},type=Warning")
    for event in sorted(events, key=lambda event: event.get("lastTimestamp") or "")[-1:]:
        yield _refusal(event.get("message", ""))


def _refusal(message: str) -> Waiting:
    quota = "exceeded quota" in message
    why = "the namespace's quota refuses its pods" if quota else "its pods cannot be made"
    return Waiting(f"{why} ({_short(message)})", hopeless=quota)


def _of_pod(pod: dict[str, Any]) -> Iterator[Waiting]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield Waiting(f"no node takes pod {name} ({_short(condition.get('message', ''))})")
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container.get("state", {}).get("waiting", {})
        reason, said = waiting.get("reason", ""), _short(waiting.get("message", ""))
        if reason in PULL_REASONS:
            yield Waiting(f"image {container.get('image')} cannot be pulled ({reason}: {said})", hopeless=True)
        elif reason in CONFIG_REASONS:
            yield Waiting(f"pod {name} cannot start its container ({reason}: {said})", hopeless=True)


def _list(api: KubernetesApi, namespace: str, kind: str, **query: str) -> list[dict[str, Any]]:
    """Objects that explain, none where they may not be read: the explanation is worse then, and nothing fails."""
    try:
        return list(api.get(f"/api/v1/namespaces/{namespace}/{kind}", **query)["items"])
    except (RefusedError, LostError) as error:
        logger.debug("%s cannot be listed: %s", kind, error)
        return []


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 3]}..."
