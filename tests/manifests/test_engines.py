"""What the templates of Ray and KServe promise."""

import copy
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from kubernetes.utils.quantity import parse_quantity

from serin_pipelines.environments import load_environment
from tests.manifests.building import OVERLAYS, Object, build, mappings, of_kind, one, pods

MAX_RAY_JOB_NAME = 47
"""KubeRay adds to it what makes the names of its pods, of 63 characters at most."""


@pytest.mark.parametrize("component", ["raycluster", "rayjob", "rayservice"])
def test_ray_is_of_our_version_and_asks_for_a_token(component: str, scratch: Path) -> None:
    clusters = [
        inner
        for item in build(f"prod + kuberay/{component}", scratch)
        for inner in mappings(item)
        if "headGroupSpec" in inner
    ]
    assert len(clusters) == 1
    assert clusters[0]["rayVersion"] == version("ray")
    assert clusters[0]["authOptions"] == {"mode": "token"}
    assert clusters[0]["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


@pytest.mark.parametrize("component", ["raycluster", "rayjob", "rayservice"])
def test_what_waits_in_kueues_queue_has_a_fixed_size(component: str, scratch: Path) -> None:
    for item in build(f"prod + kuberay/{component}", scratch):
        queued = "kueue.x-k8s.io/queue-name" in item["metadata"].get("labels", {})
        grows = any(inner.get("enableInTreeAutoscaling") for inner in mappings(item))
        assert not (queued and grows), "Kueue refuses a job with an autoscaler"


def test_a_ray_job_ends_whatever_happens_and_waits_in_the_queue(scratch: Path) -> None:
    job = one(build("prod + kuberay/rayjob", scratch), "RayJob", "serin-finetune")
    spec = job["spec"]
    assert len(job["metadata"]["name"]) <= MAX_RAY_JOB_NAME
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "serin"
    assert "suspend" not in spec, "Kueue sets it"
    assert spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert spec["activeDeadlineSeconds"] == load_environment("prod").components["finetune"].timeout_s
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0


def test_ray_serve_has_the_same_engine_options_as_kserve(scratch: Path) -> None:
    service = one(build("prod + kuberay/rayservice", scratch), "RayService", "assistant")["spec"]
    model = yaml.safe_load(service["serveConfigV2"])["applications"][0]["args"]["llm_configs"][0]
    options = model["engine_kwargs"]
    assert options["enable_prefix_caching"]
    assert options["enable_chunked_prefill"]
    assert options["enable_lora"]
    mounts = [
        m
        for pod in pods([{"kind": "RayService", "metadata": {"name": "x"}, "spec": service}])
        for c in pod.containers
        for m in c["volumeMounts"]
    ]
    assert any(model["model_loading_config"]["model_source"].startswith(mount["mountPath"] + "/") for mount in mounts)


def _arguments(objects: list[Object]) -> list[str]:
    return list(one(objects, "InferenceService", "assistant")["spec"]["predictor"]["model"]["args"])


def test_vllm_has_adapters_prefix_cache_and_chunked_prefill(scratch: Path) -> None:
    arguments = _arguments(build("prod + kserve/vllm", scratch))
    assert {"--enable-lora", "--enable-prefix-caching", "--enable-chunked-prefill"} <= set(arguments)
    service = one(build("prod + kserve/llm", scratch), "LLMInferenceService", "assistant")["spec"]
    given = next(v["value"] for v in service["template"]["containers"][0]["env"] if v["name"] == "VLLM_ADDITIONAL_ARGS")
    assert {"--enable-prefix-caching", "--enable-chunked-prefill"} <= set(given.split())
    assert service["model"]["lora"]["adapters"]


def test_quantisation_adds_to_the_arguments_and_changes_none(scratch: Path) -> None:
    plain, quantised = (_arguments(build(f"prod + kserve/{name}", scratch)) for name in ("vllm", "vllm-fp8"))
    assert quantised == [*plain, "--quantization=fp8", "--kv-cache-dtype=fp8"]


def test_what_a_rollout_splits_has_fixed_replicas_and_a_route(scratch: Path) -> None:
    service = one(build("prod + kserve/vllm-canary", scratch), "InferenceService", "assistant")
    assert {"minReplicas", "maxReplicas"}.isdisjoint(service["spec"]["predictor"]), "a canary needs fixed replicas"
    assert "networking.kserve.io/visibility" not in service["metadata"]["labels"]


def test_two_services_of_a_group_differ_in_their_weight_only(scratch: Path) -> None:
    objects = build("prod + kserve/llm-pair", scratch)
    first, second = (copy.deepcopy(one(objects, "LLMInferenceService", f"assistant{end}")) for end in ("", "-next"))
    assert second["spec"]["router"]["route"].pop("weight") == 0
    assert first["spec"]["router"]["route"].pop("weight") > 0
    assert first["spec"] == second["spec"]


def test_engines_are_not_reached_from_outside(scratch: Path, prod: list[Object]) -> None:
    public = one(prod, "HTTPRoute", "gateway")["spec"]["parentRefs"][0]["name"]
    router = one(build("prod + kserve/llm", scratch), "LLMInferenceService", "assistant")["spec"]["router"]
    assert public not in [reference["name"] for reference in router["gateway"]["refs"]]
    service = one(build("prod + kserve/vllm", scratch), "InferenceService", "assistant")
    assert service["metadata"]["labels"]["networking.kserve.io/visibility"] == "cluster-local"


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_task_of_a_run_at_once_fits_the_quota_beside_what_stands(name: str, scratch: Path) -> None:
    environment, objects = load_environment(name), build(name, scratch)
    quota = one(objects, "ResourceQuota", "serin")["spec"]["hard"]
    standing = [c["resources"] for pod in pods(of_kind(objects, "Deployment")) for c in pod.spec["containers"]]
    tasks = environment.components.values()
    for kind in ("cpu", "memory"):
        wanted = sum(parse_quantity(getattr(task, kind)) for task in tasks)
        wanted += sum(parse_quantity(resources["requests"][kind]) for resources in standing)
        assert wanted <= parse_quantity(quota[f"requests.{kind}"])
    assert sum(task.gpus for task in tasks) <= int(quota[f"requests.{environment.gpu.resource}"])
