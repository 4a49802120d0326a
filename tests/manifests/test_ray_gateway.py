"""The RayService of the gateway's own app."""

from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.manifests import policies
from tests.manifests.building import SHARED_CRDS, Object, build, named, one
from tests.manifests.schemas import problems

NAME = "prod + kuberay/rayservice-gateway"


@pytest.fixture
def objects(scratch: Path) -> list[Object]:
    return build(NAME, scratch)


def test_it_follows_its_definition(objects: list[Object]) -> None:
    if not SHARED_CRDS.is_dir():
        pytest.skip("needs the CustomResourceDefinitions in ../shared/crds, which are not here")
    found = {named(item): problems(item) for item in objects if item["kind"] in ("RayService", "NetworkPolicy")}
    assert "RayService gateway" in found
    assert {name: messages for name, messages in found.items() if messages} == {}


def test_it_keeps_the_policies_of_all_manifests(objects: list[Object]) -> None:
    found = [
        *policies.images_are_pinned(objects, version("serin")),
        *policies.containers_have_resources(objects),
        *policies.pods_are_restricted(objects),
        *policies.tokens_are_mounted_only_where_needed(objects),
        *policies.no_secret_values(objects),
        *policies.network_is_closed_by_default(objects),
    ]
    assert found == []


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")
def test_serve_imports_our_app_with_arguments_that_it_takes(objects: list[Object]) -> None:
    from serin.serve.ray_app import RayGatewayConfig
    from serin.serve.supervisor import EngineSettings

    service = one(objects, "RayService", "gateway")["spec"]
    assert service["rayClusterConfig"]["rayVersion"] == version("ray")
    application = yaml.safe_load(service["serveConfigV2"])["applications"][0]
    assert application["import_path"] == "serin.serve.ray_app:app"
    config = RayGatewayConfig.load(application["args"])
    assert EngineSettings(**config.engine).threads == 1
    workers = service["rayClusterConfig"]["workerGroupSpecs"][0]
    cpus = int(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert workers["replicas"] * cpus >= config.num_replicas * config.cpus_per_replica


def test_no_process_of_ray_reports_its_usage(objects: list[Object]) -> None:
    cluster = one(objects, "RayService", "gateway")["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
