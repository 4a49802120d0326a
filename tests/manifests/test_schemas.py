"""Every object is what its schema says, and no schema lets an unknown field pass."""

import copy
from pathlib import Path

import pytest

from tests.manifests.building import BUILDS, SHARED_CRDS, Object, build, named, of_kind, one
from tests.manifests.schemas import BUILT_IN_GROUPS, OWN_SCHEMAS, UNCHECKED, problems


@pytest.fixture
def crds() -> None:
    """Skips where the CustomResourceDefinitions are absent."""
    if not SHARED_CRDS.is_dir():
        pytest.skip("needs the CustomResourceDefinitions in ../shared/crds, which are not here")


def _built_in(item: Object) -> bool:
    return item["apiVersion"].rpartition("/")[0] in BUILT_IN_GROUPS


def test_built_in_objects_follow_kubernetes_schemas(built: list[Object]) -> None:
    found = {named(item): problems(item) for item in built if _built_in(item)}
    assert {name: messages for name, messages in found.items() if messages} == {}


def test_custom_objects_follow_their_definitions(built: list[Object], crds: None) -> None:
    found = {named(item): problems(item) for item in built if not _built_in(item)}
    assert {name: messages for name, messages in found.items() if messages} == {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("prod", "HTTPRoute"),
        ("prod", "ServiceMonitor"),
        ("prod", "PrometheusRule"),
        ("prod", "LocalQueue"),
        ("prod + kserve/llm", "LLMInferenceService"),
        ("prod + kserve/llm", "PodMonitor"),
        ("prod + kserve/vllm-canary", "InferenceService"),
        ("prod + kserve/vllm", "ServingRuntime"),
        ("prod + kuberay/raycluster", "RayCluster"),
        ("prod + kuberay/rayjob", "RayJob"),
        ("prod + kuberay/rayservice", "RayService"),
        ("kueue", "ClusterQueue"),
    ],
)
def test_a_misspelt_field_of_a_custom_object_is_found(name: str, kind: str, scratch: Path, crds: None) -> None:
    item = copy.deepcopy(of_kind(build(name, scratch), kind)[0])
    item["spec"]["replicaz"] = 1
    assert any("replicaz" in message for message in problems(item))


def test_a_misspelt_field_deep_inside_a_pod_of_ray_is_found(scratch: Path, crds: None) -> None:
    item = copy.deepcopy(one(build("prod + kuberay/rayjob", scratch), "RayJob", "serin-finetune"))
    head = item["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["securityContext"]["runAsNoneRoot"] = True
    assert any("runAsNoneRoot" in message for message in problems(item))


def test_a_misspelt_field_of_a_built_in_object_is_found(prod: list[Object]) -> None:
    item = copy.deepcopy(one(prod, "Deployment", "gateway"))
    item["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    assert any("readinesProbe" in message for message in problems(item))


def test_kinds_without_a_published_schema_are_named_in_the_readme(scratch: Path) -> None:
    readme = (Path(__file__).resolve().parents[2] / "manifests" / "README.md").read_text(encoding="utf-8")
    used = {(item["apiVersion"], item["kind"]) for name in BUILDS for item in build(name, scratch)}
    for version, kind in [*UNCHECKED, *OWN_SCHEMAS]:
        assert (version, kind) in used, f"{kind} is not used any more"
        assert kind in readme
