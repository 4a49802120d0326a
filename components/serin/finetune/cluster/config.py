"""Where fine-tuning runs."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from serin.core.config import Section
from serin.core.errors import ConfigError

SECRET_WORDS = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|API_KEY|CREDENTIAL", re.IGNORECASE)


class SecretKey(Section):
    """One value of a Kubernetes Secret, by reference."""

    name: str
    """The Secret's."""
    key: str
    """Of the value in it."""


class Toleration(Section):
    """A taint that the workers may run beside."""

    key: str
    """The taint's."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Whether the value counts."""
    value: str | None = None
    """The taint's, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = "NoSchedule"
    """The taint's; None means all."""


class ClusterConfig(Section):
    """Where fine-tuning runs: in this process, as a RayJob, or on a standing Ray cluster."""

    kind: Literal["here", "rayjob", "ray_cluster"] = "here"
    """``rayjob`` asks KubeRay for a cluster of the run's own, ``ray_cluster`` submits to the one at ``address``."""

    namespace: str = ""
    """Of the RayJob; empty is the namespace of the task that asks."""
    image: str = ""
    """Of Ray's pods: this version of Serin with Ray, pinned."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the image is pulled."""
    image_pull_secrets: tuple[str, ...] = ()
    """Names of the registry's Secrets."""
    service_account: str = "serin-ray"
    """Of Ray's pods; it needs no rights."""
    ray_version: str = "2.60.0"
    """Of the image."""
    num_workers: int = Field(default=1, ge=1)
    """Worker pods."""
    gpus_per_worker: int = Field(default=0, ge=0)
    """GPUs of a worker pod."""
    gpu_resource: str = "nvidia.com/gpu"
    """Name of the extended resource."""
    cpus: int = Field(default=8, ge=1)
    """Request and limit of a worker pod, in cores."""
    memory: str = "64Gi"
    """Request and limit of a worker pod."""
    shared_memory: str = "16Gi"
    """Size of a worker's /dev/shm, where Ray keeps its objects."""
    scratch: str = "200Gi"
    """Most that a worker may write below /tmp."""
    head_cpus: int = Field(default=2, ge=1)
    """Request and limit of the head pod, in cores."""
    head_memory: str = "8Gi"
    """Request and limit of the head pod."""
    driver_on: Literal["worker", "head"] = "worker"
    """Where the stage itself runs: on a worker, of which it takes all CPUs and GPUs for a Ray of its own, or beside
    Ray's head, from where it trains on the cluster's workers."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the workers' nodes."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of the workers' nodes."""
    queue: str = ""
    """Kueue's LocalQueue; empty starts without waiting."""
    priority_class: str = ""
    """PriorityClass of the pods."""
    labels: dict[str, str] = Field(default_factory=dict)
    """On the RayJob and its pods."""
    config_maps: tuple[str, ...] = ()
    """ConfigMaps whose keys become variables of Ray's pods."""
    secrets: tuple[str, ...] = ()
    """Secrets whose keys become variables of Ray's pods."""
    secret_variables: dict[str, SecretKey] = Field(default_factory=dict)
    """Variables of Ray's pods from single keys of Secrets."""
    variables: dict[str, str] = Field(default_factory=dict)
    """Variables of the driver that are no secrets."""
    volume_claim: str = ""
    """A PersistentVolumeClaim for a store that is a folder; empty for an object store."""
    volume_path: str = "/mnt/serin"
    """Where it is mounted, in the task and in Ray's pods."""
    active_deadline_s: int = Field(default=43_200, ge=1)
    """KubeRay ends a job that is this old, the time in Kueue's queue left aside."""
    pre_running_deadline_s: int = Field(default=900, ge=1)
    """KubeRay ends a job whose driver has not started after this long."""
    queue_deadline_s: int = Field(default=86_400, ge=1)
    """The launcher ends a job that waits in Kueue's queue for longer."""
    hopeless_after_s: float = Field(default=180.0, ge=0)
    """The launcher ends a job that lacks its image, a Secret or quota for this long."""
    ttl_s: int = Field(default=600, ge=0)
    """KubeRay removes the cluster of a job that ended this long ago, where no launcher did."""

    address: str = ""
    """Of the standing cluster's dashboard, as http://serin-head-svc:8265."""
    entrypoint_cpus: float = Field(default=0.0, ge=0)
    """CPUs of the standing cluster that the driver takes."""
    entrypoint_gpus: float = Field(default=0.0, ge=0)
    """GPUs of the standing cluster that the driver takes."""

    poll_s: float = Field(default=10.0, gt=0)
    """How often the launcher looks where nothing tells it of changes."""
    patience_s: float = Field(default=300.0, gt=0)
    """How long an API that does not answer is asked again."""
    lease_interval_s: float = Field(default=30.0, gt=0)
    """How often the launcher renews its lease."""
    lease_expiry_s: float = Field(default=300.0, gt=0)
    """The driver ends when the lease was not renewed for this long."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "rayjob" and not self.image:
            raise ValueError("kind rayjob needs an image")
        if self.kind == "ray_cluster" and not self.address.startswith(("http://", "https://")):
            raise ValueError("kind ray_cluster needs the http:// address of a dashboard")
        if self.lease_expiry_s < 2 * self.lease_interval_s:
            raise ValueError(
                "lease_expiry_s must be at least two lease_interval_s, or one late renewal ends a training"
            )
        if self.pre_running_deadline_s >= self.active_deadline_s:
            raise ValueError("pre_running_deadline_s must be below active_deadline_s")
        if named := sorted(name for name in self.variables if SECRET_WORDS.search(name)):
            # No ValueError: pydantic's would hold the value, and its message would show it.
            raise ConfigError(f"{named[0]} looks like a secret: give it by reference, in secret_variables or secrets.")
        return self
