"""Where pipelines run: the settings of a cluster, as ``staging.yaml`` and ``prod.yaml`` beside this file.

An environment is named (``--env prod``) or given as a file of one's own (``--env clusters/berlin.yaml``).  It decides
placement, never results: images, secrets by reference, resources, time limits.  ``local`` is the embedded default.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from serin.core.config import Section
from serin.core.errors import ConfigError
from serin.core.verification import ReleaseRequirements
from serin.finetune.cluster.config import ClusterConfig

Target = Literal["cpu", "ray", "serve"]


class Images(Section):
    """One reference for each target of ``manifests/images/Dockerfile``; pinned by digest, or by our version."""

    cpu: str = "serin/cpu:0.1.0"
    ray: str = "serin/ray:0.1.0"
    serve: str = "serin/serve:0.1.0"


class Secrets(Section):
    """Names of Kubernetes Secrets; their values never pass through a pipeline."""

    object_store: str = ""
    """Keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; empty where the pods have a role of their own."""
    tracking: str = ""
    """Keys MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; empty where MLflow asks for none."""
    gateway: str = ""
    """Key SERIN_ADMIN_TOKEN, with which a rollout moves the gateway's traffic; empty where there is no gateway."""
    signing: str = ""
    """Key SERIN_SIGNING_KEY, with which releases are signed; empty: they are not signed here."""


class Gpu(Section):
    """Where the GPUs are."""

    resource: str = "nvidia.com/gpu"
    """Name of the extended resource."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that have them."""
    toleration: str = "nvidia.com/gpu"
    """Key of the taint on those nodes."""


class Placement(Section):
    """How the tasks of one component run."""

    image: Target = "cpu"
    cpu: str = "1"
    """Request and limit, in cores."""
    memory: str = "2Gi"
    """Request and limit."""
    gpus: int = Field(0, ge=0)
    shared_memory: str = ""
    """Size of /dev/shm, where Ray keeps its objects; empty leaves the runtime's 64 MiB."""
    timeout_s: int = Field(3600, gt=0)
    """The pod is ended after this long."""
    retries: int = Field(2, ge=0)
    """For tasks that may run twice; the others are never retried, whatever this says."""


class Schedule(Section):
    """A recurring run."""

    pipeline: str
    cron: str
    """Six fields (seconds first), UTC."""
    arguments: dict[str, str] = Field(default_factory=dict)
    """Of the pipeline; the others keep their defaults."""


class Environment(Section):
    """A place where pipelines run."""

    name: str
    namespace: str = "serin"
    endpoint: str = "assistant"
    images: Images = Images()
    store_uri: str = ""
    """Default of the pipelines' parameter; empty leaves it to whoever starts a run."""
    source_uri: str = ""
    """Default of the documents' and conversations' place."""
    tracking_uri: str = ""
    volume_claim: str = ""
    """A PersistentVolumeClaim for a store that is a folder, mounted at ``volume_path``; empty for an object store."""
    volume_path: str = "/mnt/serin"
    object_store_url: str = ""
    """S3 endpoint other than the provider's own (AWS_ENDPOINT_URL)."""
    kfp_host: str = ""
    """API of Kubeflow Pipelines, for submit, schedule, promote and doctor."""
    kfp_ui: str = ""
    """The same for people, for links; empty: ``kfp_host``."""
    experiment: str = "serin"
    gateway_url: str = ""
    """The endpoint's gateway, for rollouts; empty starts one of its own for a rollout's length."""
    service_account: str = ""
    """Runs the pipelines' pods."""
    secrets: Secrets = Secrets()
    gpu: Gpu = Gpu()
    default: Placement = Placement()
    components: dict[str, Placement] = Field(default_factory=dict)
    """By component name, with its underscores."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Where fine-tuning's Ray is (ClusterConfig); empty: in the task's own pod."""
    release: ReleaseRequirements = ReleaseRequirements()
    """What a release must show before it is deployed here; a run's own config cannot take it back."""
    labels: dict[str, str] = Field(default_factory=dict)
    """On every pod."""
    keep_finished_s: int | None = None
    """A finished Workflow is removed after this long."""
    deadline_s: int | None = None
    """A run is ended after this long."""
    schedules: dict[str, Schedule] = Field(default_factory=dict)
    """By name."""

    @property
    def on_cluster(self) -> bool:
        """Whether pipelines run as pods."""
        return self.name != LOCAL.name

    def placement(self, component: str) -> Placement:
        """How a component's tasks run here; fine-tuning that runs elsewhere leaves a small task that waits for it."""
        placement = self.components.get(component, self.default)
        if component == "finetune" and self.ray_cluster().kind != "here":
            return self.default.model_copy(update={"timeout_s": placement.timeout_s, "retries": placement.retries})
        return placement

    def ray_cluster(self) -> ClusterConfig:
        """Where fine-tuning's Ray is, with this environment's image, GPUs, secrets and volume.

        Raises:
            ConfigError: a setting of ``training`` is wrong.
        """
        if not self.training:
            return ClusterConfig()
        mine = {
            "namespace": self.namespace,
            "image": self.images.ray,
            "gpu_resource": self.gpu.resource,
            "node_selector": self.gpu.node_selector,
            "tolerations": [{"key": self.gpu.toleration}],
            "secrets": [name for name in (self.secrets.object_store, self.secrets.tracking) if name],
            "labels": self.labels,
            "volume_claim": self.volume_claim,
            "volume_path": self.volume_path,
        }
        return ClusterConfig.load({**mine, **self.training})

    def image(self, target: Target) -> str:
        """The reference of a target's image."""
        return str(getattr(self.images, target))


LOCAL = Environment(name="local", store_uri="", tracking_uri="")


def load_environment(name: str, images: Mapping[str, str] | None = None) -> Environment:
    """An environment by name, or from a YAML file.

    Args:
        name: local, the name of a file beside this one, or a path that ends in .yaml.
        images: target to reference, over what the file says (CI gives the digests that it has just built).

    Raises:
        ConfigError: there is none of that name, or a setting in it is wrong.
    """
    if name == LOCAL.name:
        return LOCAL
    path = Path(name) if name.endswith((".yaml", ".yml")) else Path(__file__).parent / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(environment_names())
        raise ConfigError(f"There is no environment {name!r}: choose from {known}, or name a YAML file.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"Environment {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"Environment {path} must be a mapping, not {type(values).__name__}.")
    environment = Environment.load({"name": path.stem, **values})
    return environment.model_copy(update={"images": Images.load({**environment.images.dump(), **(images or {})})})


def environment_names() -> list[str]:
    """The environments that can be named."""
    return [LOCAL.name, *sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))]
