"""The overlays and what the pipelines and the code take for granted about a cluster are one."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import pytest
import typer

from serin.serve.access import ADMIN_VARIABLE, KEYS_VARIABLE, Access
from serin.serve.gateway import Gateway
from serin.serve.metrics import Metrics
from serin_pipelines.cli import app
from serin_pipelines.environments import Environment, load_environment
from tests.manifests.building import MANIFESTS, OVERLAYS, Object, build, of_kind, one, pods
from tests.manifests.policies import EXTERNAL_SECRETS, matches


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest, scratch: Path) -> tuple[Environment, list[Object]]:
    """An environment of the pipelines and the overlay of that name."""
    return load_environment(request.param), build(request.param, scratch)


def test_runs_are_where_the_overlay_is(overlay: tuple[Environment, list[Object]]) -> None:
    environment, objects = overlay
    assert [item["metadata"]["name"] for item in of_kind(objects, "Namespace")] == [environment.namespace]
    account = one(objects, "ServiceAccount", environment.service_account)
    assert account["metadata"]["namespace"] == environment.namespace
    bindings = [
        b
        for b in of_kind(objects, "RoleBinding")
        if any(s["name"] == account["metadata"]["name"] for s in b["subjects"])
    ]
    assert [binding["roleRef"]["name"] for binding in bindings] == ["serin-workflow"]


def test_the_namespace_is_one_that_kubeflows_object_store_admits(overlay: tuple[Environment, list[Object]]) -> None:
    labels = of_kind(overlay[1], "Namespace")[0]["metadata"]["labels"]
    assert labels["app.kubernetes.io/part-of"] == "kubeflow-profile"


def test_secrets_of_the_environment_are_those_of_the_manifests(overlay: tuple[Environment, list[Object]]) -> None:
    secrets = overlay[0].secrets
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= EXTERNAL_SECRETS[secrets.object_store]
    assert {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"} <= EXTERNAL_SECRETS[secrets.tracking]
    assert "SERIN_ADMIN_TOKEN" in EXTERNAL_SECRETS[secrets.gateway]


@pytest.mark.parametrize("field", ["gateway_url", "tracking_uri"])
def test_addresses_are_services_of_the_overlay(field: str, overlay: tuple[Environment, list[Object]]) -> None:
    environment, objects = overlay
    address = urlparse(getattr(environment, field))
    name, namespace, kind = str(address.hostname).split(".")
    service = one(objects, "Service", name)
    assert (service["metadata"]["namespace"], kind) == (namespace, "svc")
    assert address.port in {port["port"] for port in service["spec"]["ports"]}


def test_settings_of_the_pods_are_those_of_the_pipelines(overlay: tuple[Environment, list[Object]]) -> None:
    environment, objects = overlay
    settings = one(objects, "ConfigMap", "serin-settings")["data"]
    assert settings["SERIN_STORE_URI"] == environment.store_uri
    assert settings["SERIN_ENDPOINT"] == environment.endpoint
    assert settings["MLFLOW_TRACKING_URI"] == environment.tracking_uri


def test_mlflow_answers_to_the_name_that_the_pipelines_use(overlay: tuple[Environment, list[Object]]) -> None:
    environment, objects = overlay
    settings = next(c["data"] for c in of_kind(objects, "ConfigMap") if c["metadata"]["name"].startswith("mlflow-"))
    assert urlparse(environment.tracking_uri).netloc in settings["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    bucket = urlparse(environment.store_uri).netloc
    assert urlparse(settings["MLFLOW_ARTIFACTS_DESTINATION"]).netloc == bucket


def test_images_are_those_of_the_pipelines(overlay: tuple[Environment, list[Object]]) -> None:
    environment, objects = overlay
    used = {container["image"] for pod in pods(objects) for container in pod.containers}
    assert used == {environment.images.cpu, environment.images.serve}


def test_pods_of_runs_are_taken_by_the_network_policies(overlay: tuple[Environment, list[Object]]) -> None:
    environment, objects = overlay
    labels = {**environment.labels, "workflows.argoproj.io/workflow": "a-run"}
    taken = [p for p in of_kind(objects, "NetworkPolicy") if matches(p["spec"]["podSelector"], labels)]
    assert {policy["metadata"]["name"] for policy in taken} == {"default-deny", "dns", "object-store", "pipelines"}
    deployed = one(objects, "Deployment", "gateway")["spec"]["template"]["metadata"]["labels"]
    assert environment.labels.items() <= deployed.items()


def test_the_queue_has_a_quota_for_the_namespace(overlay: tuple[Environment, list[Object]], scratch: Path) -> None:
    environment, objects = overlay
    cluster = build("kueue", scratch)
    queue = one(cluster, "ClusterQueue", one(objects, "LocalQueue", "serin")["spec"]["clusterQueue"])
    assert queue["spec"]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": environment.namespace}
    assert environment.gpu.resource in [
        name for group in queue["spec"]["resourceGroups"] for name in group["coveredResources"]
    ]
    flavor = one(cluster, "ResourceFlavor", "serin-gpu")["spec"]
    assert flavor["nodeLabels"] == environment.gpu.node_selector
    assert [toleration["key"] for toleration in flavor["tolerations"]] == [environment.gpu.toleration]


@pytest.mark.parametrize("component", ["kserve/llm", "kuberay/raycluster", "kuberay/rayjob", "kuberay/rayservice"])
def test_gpu_pods_go_where_the_gpu_tasks_go(component: str, scratch: Path) -> None:
    gpu = load_environment("prod").gpu
    users = [
        pod
        for pod in pods(build(f"prod + {component}", scratch))
        if any(gpu.resource in c["resources"]["limits"] for c in pod.containers)
    ]
    assert users
    for pod in users:
        assert pod.spec["nodeSelector"] == gpu.node_selector
        assert [toleration["key"] for toleration in pod.spec["tolerations"]] == [gpu.toleration]


def test_the_gateway_is_started_as_its_command_line_allows(prod: list[Object]) -> None:
    container = one(prod, "Deployment", "gateway")["spec"]["template"]["spec"]["containers"][0]
    program, command = container["command"]
    serve = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    known = {option for parameter in serve.params for option in parameter.opts}
    given = {argument.partition("=")[0] for argument in container["args"]}
    assert program == "serin"
    assert given <= known
    assert {ADMIN_VARIABLE, KEYS_VARIABLE} <= {variable["name"] for variable in container["env"]}


def test_mlflow_is_started_as_its_command_line_allows(prod: list[Object]) -> None:
    container = one(prod, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["mlflow", "server"]
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--help"]
    known = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert all(f" {argument} " in known for argument in container["args"] if argument.startswith("--"))


def test_probes_and_monitor_ask_for_pages_that_the_gateway_has(prod: list[Object]) -> None:
    gateway = Gateway("assistant", None, None, Metrics(), Access())  # type: ignore[arg-type]
    pages = {route.path for route in gateway.app().routes}  # type: ignore[attr-defined]
    container = one(prod, "Deployment", "gateway")["spec"]["template"]["spec"]["containers"][0]
    asked = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    asked |= {endpoint["path"] for endpoint in one(prod, "ServiceMonitor", "gateway")["spec"]["endpoints"]}
    assert asked <= pages


def test_the_readme_names_every_secret_and_key() -> None:
    readme = (MANIFESTS / "README.md").read_text(encoding="utf-8")
    for name, keys in EXTERNAL_SECRETS.items():
        assert all(f"`{word}`" in readme for word in [name, *keys])


def test_external_secrets_fill_every_key(scratch: Path) -> None:
    made = of_kind(build("prod + components/external-secrets", scratch), "ExternalSecret")
    filled = {item["spec"]["target"]["name"]: {entry["secretKey"] for entry in item["spec"]["data"]} for item in made}
    assert filled == EXTERNAL_SECRETS
