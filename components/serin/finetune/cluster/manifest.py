"""The RayJob of one try, for KubeRay v1.7."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from serin.core.telemetry import NO_TELEMETRY
from serin.finetune.cluster.config import ClusterConfig
from serin.finetune.cluster.request import Attempt

API_VERSION, KIND = "ray.io/v1", "RayJob"
DIGEST_LABEL, ATTEMPT_LABEL = "serin.dev/request", "serin.dev/attempt"
REQUEST_ANNOTATION = "serin.dev/request-uri"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
MAX_NAME = 47
"""KubeRay refuses a longer one."""
USER = 10_001
"""The images' user."""
SUBMITTER = "submitter"
DASHBOARD, AGENT = 8265, 52365
"""Ports of the head's dashboard and of the agent in every pod of Ray."""
RAYLET = "/api/local_raylet_healthz"


def job_name(lineage_id: str, attempt: Attempt) -> str:
    """A name of at most 47 characters that the same run, request and try always have."""
    run = re.sub(r"[^a-z0-9]+", "-", lineage_id.lower()).strip("-")[:20].strip("-") or "alone"
    return f"finetune-{run}-{attempt.digest[:10]}-{attempt.number}"


def driver_command(attempt: Attempt) -> str:
    """The entrypoint."""
    return f"python -m serin.finetune.cluster.driver {shlex.quote(attempt.request_uri)}"


def ray_job(
    cluster: ClusterConfig, attempt: Attempt, name: str, owners: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The object to create.

    Args:
        cluster: typed settings.
        attempt: what the driver is given.
        name: of the object.
        owners: what it is removed with.
    """
    labels = {**cluster.labels, DIGEST_LABEL: attempt.digest, ATTEMPT_LABEL: str(attempt.number)}
    metadata: dict[str, Any] = {
        "name": name,
        "labels": {**labels, **({QUEUE_LABEL: cluster.queue} if cluster.queue else {})},
        "annotations": {REQUEST_ANNOTATION: attempt.request_uri},
    }
    if owners:
        metadata["ownerReferences"] = [dict(owner) for owner in owners]
    spec: dict[str, Any] = {
        "entrypoint": driver_command(attempt),
        "runtimeEnvYAML": yaml.safe_dump({"env_vars": {**NO_TELEMETRY, **cluster.variables}}, sort_keys=True),
        "submissionMode": "K8sJobMode",
        "preRunningDeadlineSeconds": cluster.pre_running_deadline_s,
        "activeDeadlineSeconds": cluster.active_deadline_s,
        "backoffLimit": 0,  # a failed try is run again by its pipeline, from the checkpoints
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": cluster.ttl_s,
        "submitterPodTemplate": _pod(cluster, _submitter(cluster), {"scratch": {"sizeLimit": "1Gi"}}, "ray-submitter"),
        "rayClusterSpec": _ray_cluster(cluster),
    }
    if cluster.driver_on == "worker":
        spec |= {"entrypointNumCpus": cluster.cpus}
        spec |= {"entrypointNumGpus": cluster.gpus_per_worker} if cluster.gpus_per_worker else {}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def _ray_cluster(cluster: ClusterConfig) -> dict[str, Any]:
    return {
        "rayVersion": cluster.ray_version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # No work on the head: it holds the cluster together, and a task that fills its memory would end all others.
            "rayStartParams": {"num-cpus": "0"},
            "template": _ray_pod(cluster, _head(cluster), "2Gi", "20Gi"),
        },
        "workerGroupSpecs": [
            {
                "groupName": "gpu" if cluster.gpus_per_worker else "cpu",
                "replicas": cluster.num_workers,
                "minReplicas": cluster.num_workers,
                "maxReplicas": cluster.num_workers,
                "rayStartParams": {},
                "template": _placed(
                    cluster, _ray_pod(cluster, _worker(cluster), cluster.shared_memory, cluster.scratch)
                ),
            }
        ],
    }


def _placed(cluster: ClusterConfig, pod: dict[str, Any]) -> dict[str, Any]:
    if cluster.node_selector:
        pod["spec"]["nodeSelector"] = dict(cluster.node_selector)
    if cluster.tolerations:
        pod["spec"]["tolerations"] = [each.model_dump(exclude_none=True) for each in cluster.tolerations]
    return pod


def _ray_pod(cluster: ClusterConfig, container: dict[str, Any], shared_memory: str, scratch: str) -> dict[str, Any]:
    folders = {"scratch": {"sizeLimit": scratch}, "shared-memory": {"medium": "Memory", "sizeLimit": shared_memory}}
    pod = _pod(cluster, container, folders, "ray")
    if cluster.volume_claim:
        claim = {"name": "store", "persistentVolumeClaim": {"claimName": cluster.volume_claim}}
        pod["spec"]["volumes"].append(claim)
        container["volumeMounts"].append({"name": "store", "mountPath": cluster.volume_path})
    return pod


def _pod(
    cluster: ClusterConfig, container: dict[str, Any], folders: Mapping[str, dict[str, str]], name: str
) -> dict[str, Any]:
    """A pod that the "restricted" Pod Security Standard takes."""
    identity = {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
    spec: dict[str, Any] = {
        "serviceAccountName": cluster.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {**identity, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": folder, "emptyDir": settings} for folder, settings in folders.items()],
    }
    if cluster.priority_class:
        spec["priorityClassName"] = cluster.priority_class
    if cluster.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in cluster.image_pull_secrets]
    if name == "ray-submitter":
        spec["restartPolicy"] = "Never"
    ours = {"app.kubernetes.io/part-of": "serin", "app.kubernetes.io/name": name}
    return {"metadata": {"labels": {**cluster.labels, **ours}}, "spec": spec}


def _submitter(cluster: ClusterConfig) -> dict[str, Any]:
    resources = {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
    return {**_container(cluster, SUBMITTER, resources), "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}]}  # noqa: S108


def _head(cluster: ClusterConfig) -> dict[str, Any]:
    size = {"cpu": str(cluster.head_cpus), "memory": cluster.head_memory}
    ports = {"gcs": 6379, "dashboard": DASHBOARD, "client": 10001, "metrics": 8080}
    return {**_ray_container(cluster, "ray-head", size, ports), **_probes("/api/gcs_healthz", DASHBOARD)}


def _worker(cluster: ClusterConfig) -> dict[str, Any]:
    size = {"cpu": str(cluster.cpus), "memory": cluster.memory}
    if cluster.gpus_per_worker:
        size[cluster.gpu_resource] = str(cluster.gpus_per_worker)
    return {**_ray_container(cluster, "ray-worker", size, {"metrics": 8080}), **_probes(RAYLET, AGENT)}


def _probes(path: str, port: int) -> dict[str, Any]:
    """KubeRay's own probes call wget, which our images do not have."""
    ready, alive = {"path": path, "port": port}, {"path": RAYLET, "port": AGENT}
    return {
        "readinessProbe": {"httpGet": ready, "initialDelaySeconds": 10, "timeoutSeconds": 5, "failureThreshold": 10},
        "livenessProbe": {"httpGet": alive, "initialDelaySeconds": 60, "timeoutSeconds": 5, "failureThreshold": 24},
    }


def _ray_container(cluster: ClusterConfig, name: str, size: dict[str, str], ports: Mapping[str, int]) -> dict[str, Any]:
    sources = [{"configMapRef": {"name": each}} for each in cluster.config_maps]
    sources += [{"secretRef": {"name": each}} for each in cluster.secrets]
    variables = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}
        for variable, secret in cluster.secret_variables.items()
    ]
    return {
        **_container(cluster, name, {"requests": size, "limits": dict(size)}),
        **({"envFrom": sources} if sources else {}),
        **({"env": variables} if variables else {}),
        "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108 - a volume, so that the root can be read-only
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
        ],
    }


def _container(cluster: ClusterConfig, name: str, resources: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "image": cluster.image,
        "imagePullPolicy": cluster.image_pull_policy,
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
