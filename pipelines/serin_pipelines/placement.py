"""How tasks run in an environment: image, resources, GPUs, secrets, limits, caching, retries.

A pipeline function says ``place(data_prep=task, ...)`` once; on the embedded default that only gives the tasks their
names, on a cluster it is where all of ``kfp.kubernetes`` is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from kfp import kubernetes
from kfp.dsl import PipelineTask

from serin.core.context import RUN_VARIABLE
from serin.core.digests import canonical_json
from serin.core.gateway_client import GATEWAY_VARIABLE, TOKEN_VARIABLE
from serin.core.signing import KEY_VARIABLE
from serin.core.verification import REQUIREMENTS_VARIABLE, ReleaseRequirements
from serin_pipelines.environments import LOCAL, Environment, Placement

Effect = Literal["pure", "idempotent", "acts"]

EFFECTS: dict[str, Effect] = {
    "data_prep": "idempotent",  # what its URI holds may change
    "finetune": "pure",
    "index": "pure",
    "release": "idempotent",
    "resolve": "idempotent",
    "refresh": "idempotent",
    "evaluate": "idempotent",  # against whatever the champion is now
    "deploy": "acts",
    "verdict": "idempotent",
    "monitor": "idempotent",
    "trigger": "idempotent",
    "conclude": "acts",
}
"""``pure``: Kubeflow may reuse an earlier result and may run it twice; ``idempotent``: it may run twice; ``acts``:
neither.  Pure components take their code version as an input, since Kubeflow's cache does not see imported code."""

DISPLAY_NAMES = {
    "data_prep": "Prepare data",
    "finetune": "Fine-tune on Ray",
    "index": "Build the index",
    "release": "Make the release",
    "resolve": "Verify the release",
    "refresh": "Champion with the new index",
    "evaluate": "Evaluate and gate",
    "deploy": "Canary",
    "verdict": "Verdict of the canary",
    "monitor": "Look for drift",
    "trigger": "Record the trigger",
    "conclude": "Report, clean up, restore traffic",
}

RUN_AS_USER = 10_001
"""The images' user."""
EFFECT_LABEL = "serin.dev/effect"
COMPONENT_LABEL = "serin.dev/component"

_ACTIVE: ContextVar[Environment] = ContextVar("environment", default=LOCAL)


@contextmanager
def placed_in(environment: Environment) -> Iterator[None]:
    """Pipelines that are traced inside the block are placed in this environment."""
    token = _ACTIVE.set(environment)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def place(**tasks: PipelineTask) -> None:
    """Give each task, named by its component, its place in the active environment."""
    environment = _ACTIVE.get()
    for component, task in tasks.items():
        task.set_display_name(DISPLAY_NAMES[component])
        # Locally the artefact store reuses finished work and says so; a task that kfp.local skips says nothing.
        task.set_caching_options(environment.on_cluster and EFFECTS[component] == "pure")
        if environment.on_cluster:
            _on_cluster(component, task, environment)


def ray_cluster() -> dict[str, Any]:
    """Where fine-tuning's Ray is in the active environment, as the component's parameter."""
    environment = _ACTIVE.get()
    return environment.ray_cluster().parameters() if environment.training else {}


def _on_cluster(component: str, task: PipelineTask, environment: Environment) -> None:
    placement = environment.placement(component)
    task.set_container_image(environment.image(placement.image))
    task.set_cpu_request(placement.cpu).set_cpu_limit(placement.cpu)
    task.set_memory_request(placement.memory).set_memory_limit(placement.memory)
    if EFFECTS[component] != "acts" and placement.retries:
        task.set_retry(placement.retries, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="600s")
    kubernetes.set_timeout(task, placement.timeout_s)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.set_security_context(task, run_as_user=RUN_AS_USER, run_as_group=RUN_AS_USER, run_as_non_root=True)
    kubernetes.empty_dir_mount(task, "scratch", "/tmp")  # noqa: S108 - a volume, so that the root can be read-only
    if environment.volume_claim:
        kubernetes.mount_pvc(task, environment.volume_claim, environment.volume_path)
    for name, value in {**environment.labels, COMPONENT_LABEL: component, EFFECT_LABEL: EFFECTS[component]}.items():
        kubernetes.add_pod_label(task, name, value)
    _gpus(task, placement, environment)
    _variables(component, task, environment)


def _gpus(task: PipelineTask, placement: Placement, environment: Environment) -> None:
    if placement.shared_memory:
        kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", "Memory", placement.shared_memory)  # noqa: S108
    if not placement.gpus:
        return
    task.set_accelerator_type(environment.gpu.resource).set_accelerator_limit(placement.gpus)
    kubernetes.add_toleration(task, key=environment.gpu.toleration, operator="Exists", effect="NoSchedule")
    for name, value in environment.gpu.node_selector.items():
        kubernetes.add_node_selector(task, name, value)


def _variables(component: str, task: PipelineTask, environment: Environment) -> None:
    kubernetes.use_field_path_as_env(task, RUN_VARIABLE, "metadata.labels['pipeline/runid']")
    if environment.object_store_url:
        task.set_env_variable("AWS_ENDPOINT_URL", environment.object_store_url)
    _secret(task, environment.secrets.object_store, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    _secret(task, environment.secrets.tracking, "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    if component in ("deploy", "conclude") and environment.gateway_url:
        task.set_env_variable(GATEWAY_VARIABLE, environment.gateway_url)
        _secret(task, environment.secrets.gateway, TOKEN_VARIABLE)
    if component == "deploy" and environment.release != ReleaseRequirements():
        task.set_env_variable(REQUIREMENTS_VARIABLE, canonical_json(environment.release.parameters()))
    if component in ("release", "refresh"):
        _secret(task, environment.secrets.signing, KEY_VARIABLE)


def _secret(task: PipelineTask, name: str, *variables: str) -> None:
    if name:
        kubernetes.use_secret_as_env(task, name, {variable: variable for variable in variables})
