"""The preflight of a cluster: each trouble is one line that says what to do, and hides no other line."""

import gzip
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import urllib3
from fake_kubernetes import (
    FakeKubernetes,
    FakeService,
    ForgetfulBucket,
    ReadOnlyBucket,
    as_json,
    gpu_node,
    quota,
    storage_class,
)

from serin.core.errors import ConfigError
from serin_pipelines.cluster_doctor import examine_cluster
from serin_pipelines.cluster_doctor.kubernetes_lines import KINDS
from serin_pipelines.doctor import Check
from serin_pipelines.environments import LOCAL, Environment

NAMESPACE = "serin-prod"
HEALTH = {"commit_sha": "4a3592c", "tag_name": "2.17.0", "multi_user": True, "pipeline_store": "database"}
KFP = {
    "/apis/v2beta1/healthz": as_json(200, HEALTH),
    "/apis/v2beta1/experiments": as_json(200, {"experiments": []}),
}
MLFLOW = {
    "/health": (200, "text/plain", b"OK"),
    "/api/2.0/mlflow/experiments/search": as_json(200, {"experiments": []}),
}
LOGIN = urllib3.make_headers(basic_auth="serin:hunter2")["authorization"]
CREDENTIALS = ("KFP_TOKEN", "KFP_TOKEN_FILE", "KF_PIPELINES_SA_TOKEN_PATH", "MLFLOW_TRACKING_TOKEN", "HTTP_PROXY")


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No identity of the machine's own takes part."""
    for name in (*CREDENTIALS, "KUBECONFIG", "KUBERNETES_SERVICE_HOST", "ACTIONS_ID_TOKEN_REQUEST_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "serin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeKubernetes]:
    with FakeKubernetes(NAMESPACE) as fake:
        fake.names = {"serviceaccounts": {"serin-pipeline"}, "secrets": {"serin-object-store", "serin-mlflow"}}
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
        yield fake


@pytest.fixture
def kfp_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    monkeypatch.setenv("KFP_TOKEN", "kfp-token")
    with FakeService(dict(KFP), login="Bearer kfp-token") as fake:
        yield fake


@pytest.fixture
def mlflow_server() -> Iterator[FakeService]:
    with FakeService(dict(MLFLOW), login=LOGIN) as fake:
        yield fake


@pytest.fixture
def environment(kfp_server: FakeService, mlflow_server: FakeService, s3_bucket: str) -> Environment:
    return settings(kfp_host=kfp_server.url, tracking_uri=mlflow_server.url, store_uri=f"s3://{s3_bucket}/store")


def settings(**fields: Any) -> Environment:
    return Environment.load(
        {
            "name": "prod",
            "namespace": NAMESPACE,
            "service_account": "serin-pipeline",
            "secrets": {"object_store": "serin-object-store", "tracking": "serin-mlflow"},
            "gpu": {"node_selector": {"serin.dev/accelerator": "gpu"}},
            "components": {"finetune": {"gpus": 2}},
            **fields,
        }
    )


def by_name(lines: list[Check]) -> dict[str, Check]:
    assert all((line.status == "ok") == (not line.fix) for line in lines), "each line is ok or has a fix"
    assert all("\n" not in line.found + line.fix for line in lines)
    assert not any(
        secret in line.found + line.fix for line in lines for secret in ("hunter2", "kfp-token", "kube-token")
    )
    return {line.name: line for line in lines}


def troubled(lines: list[Check]) -> dict[str, Check]:
    return {name: line for name, line in by_name(lines).items() if line.status != "ok"}


def only(environment: Environment, name: str) -> Check:
    """The one line that is not ok."""
    found = troubled(examine_cluster(environment))
    assert set(found) == {name}, found
    return found[name]


def test_a_cluster_that_has_everything_is_ok_and_left_as_it_was(
    cluster: FakeKubernetes, environment: Environment, s3_bucket: str
) -> None:
    lines = examine_cluster(environment)
    assert troubled(lines) == {}
    found = {line.name: line.found for line in lines}
    assert found["kubernetes"] == f"v1.34.1 at {cluster.url}, as system:serviceaccount:serin-prod:ci"
    assert found["LLMInferenceService API"] == "serving.kserve.io/v1alpha2"
    assert found["create rayjobs"] == "allowed: create, get, list, watch, delete in serin-prod"
    assert found["gpu nodes"] == "4 nvidia.com/gpu on 1 nodes"
    assert found["kfp experiments"] == "can be listed"
    assert boto3.client("s3").list_objects_v2(Bucket=s3_bucket)["KeyCount"] == 0
    assert {method for method, _ in cluster.requests} == {"GET", "POST"}
    assert all("reviews" in path for method, path in cluster.requests if method == "POST")


def test_of_secrets_only_the_metadata_is_read(cluster: FakeKubernetes, environment: Environment) -> None:
    lines = by_name(examine_cluster(environment))
    assert lines["secret serin-mlflow"].found == "serin-mlflow (metadata read, no value)"
    assert cluster.secret_values_read == 0


def test_a_right_that_is_missing_names_the_role(cluster: FakeKubernetes, environment: Environment) -> None:
    cluster.denied = {("create", "rayjobs"), ("watch", "rayjobs"), ("update", "inferenceservices")}
    found = troubled(examine_cluster(environment))
    assert {name: line.status for name, line in found.items()} == {
        "create rayjobs": "fail",
        "update inferenceservices": "fail",
    }
    assert found["create rayjobs"].found == "not allowed: create, watch"
    assert "create, get, list, watch, delete on rayjobs.ray.io in namespace serin-prod" in found["create rayjobs"].fix


def test_what_this_identity_may_not_see_is_a_warning(cluster: FakeKubernetes, environment: Environment) -> None:
    cluster.forbidden = {"nodes", "storageclasses", "serin-mlflow", "serin-pipeline", "resourcequotas"}
    found = troubled(examine_cluster(environment))
    assert set(found) == {"gpu nodes", "storage class", "secret serin-mlflow", "service account", "gpu quota"}
    assert {line.status for line in found.values()} == {"warn"}
    assert "kubectl -n serin-prod get secrets serin-mlflow" in found["secret serin-mlflow"].fix


def test_an_api_that_is_not_installed_names_what_brings_it(cluster: FakeKubernetes, environment: Environment) -> None:
    del cluster.groups["ray.io"]
    line = only(environment, "RayJob API")
    assert (line.status, line.found) == ("fail", "not installed")
    assert "Install KubeRay" in line.fix


def test_an_api_of_an_old_version_only_asks_for_an_upgrade(cluster: FakeKubernetes, environment: Environment) -> None:
    cluster.groups["ray.io"] = {"v1alpha1": ["rayjobs"], "v1": ["rayclusters"]}
    line = only(environment, "RayJob API")
    assert (line.status, line.found) == ("fail", "only at v1alpha1, not ray.io/v1")
    assert "Upgrade KubeRay" in line.fix


def test_apis_that_serin_can_do_without_are_warnings(cluster: FakeKubernetes, environment: Environment) -> None:
    del cluster.groups["monitoring.coreos.com"]
    assert only(environment, "ServiceMonitor API").status == "warn"


def test_a_quota_that_is_used_up_is_found(cluster: FakeKubernetes, environment: Environment) -> None:
    cluster.quotas = [quota(hard=4, used=3)]
    line = only(environment, "gpu quota")
    assert (line.status, line.found) == ("fail", "1 nvidia.com/gpu left in ResourceQuota compute")
    assert "A task needs 2" in line.fix


def test_a_quota_with_room_is_ok(cluster: FakeKubernetes, environment: Environment) -> None:
    cluster.quotas = [quota(hard=4, used=1), {"metadata": {"name": "pods"}, "status": {"hard": {"pods": "10"}}}]
    assert by_name(examine_cluster(environment))["gpu quota"].found.startswith("3 nvidia.com/gpu left")


@pytest.mark.parametrize(("reserved", "status"), [("0", "ok"), ("7", "fail")])
def test_kueues_queues_count_as_quota(
    reserved: str, status: str, cluster: FakeKubernetes, environment: Environment
) -> None:
    cluster.groups["kueue.x-k8s.io"] = {"v1beta2": ["localqueues", "clusterqueues"]}
    cluster.local_queues = [{"metadata": {"name": "serin"}, "spec": {"clusterQueue": "team"}}]
    resources = [{"name": "cpu", "nominalQuota": "64"}, {"name": "nvidia.com/gpu", "nominalQuota": 8}]
    used = [{"name": "nvidia.com/gpu", "total": reserved}]
    cluster.cluster_queues["team"] = {
        "spec": {"resourceGroups": [{"flavors": [{"name": "h", "resources": resources}]}]},
        "status": {"flavorsReservation": [{"name": "h", "resources": used}]},
    }
    line = by_name(examine_cluster(environment))["gpu quota"]
    assert line.status == status
    assert line.found == f"{8 - int(reserved)} nvidia.com/gpu left in ClusterQueue team"


@pytest.mark.parametrize(
    ("nodes", "status"),
    [([], "warn"), ([gpu_node("a", 1), gpu_node("b", 1)], "fail"), ([gpu_node("a", 8, unschedulable=True)], "warn")],
)
def test_a_task_needs_its_gpus_on_one_node(
    nodes: list[dict[str, Any]], status: str, cluster: FakeKubernetes, environment: Environment
) -> None:
    cluster.nodes = nodes
    line = only(environment, "gpu nodes")
    assert line.status == status
    assert "serin.dev/accelerator=gpu" in line.fix


def test_without_gpu_tasks_no_gpu_is_asked_for(cluster: FakeKubernetes, environment: Environment) -> None:
    cluster.nodes = []
    assert troubled(examine_cluster(environment.model_copy(update={"components": {}}))) == {}


@pytest.mark.parametrize(
    ("classes", "status", "found", "fix"),
    [
        ([], "fail", "no default among none", "is-default-class=true"),
        ([storage_class("a"), storage_class("b")], "fail", "no default among a, b", "is-default-class=true"),
        ([storage_class("a", default=True), storage_class("b", default=True)], "fail", "2 defaults: a, b", "Leave one"),
        (
            [storage_class("a", default=True, provisioner="kubernetes.io/no-provisioner")],
            "fail",
            "a makes no volumes",
            "CSI",
        ),
        (
            [storage_class("a", default=True, allowVolumeExpansion=False, volumeBindingMode="Immediate")],
            "warn",
            "a (csi.example)",
            "WaitForFirstConsumer",
        ),
    ],
)
def test_the_default_storage_class_must_fit(
    classes: list[dict[str, Any]],
    status: str,
    found: str,
    fix: str,
    cluster: FakeKubernetes,
    environment: Environment,
) -> None:
    cluster.storage_classes = classes
    line = only(environment, "storage class")
    assert (line.status, line.found) == (status, found)
    assert fix in line.fix


def test_a_secret_and_a_service_account_that_are_missing_are_named(
    cluster: FakeKubernetes, environment: Environment
) -> None:
    cluster.names = {"serviceaccounts": set(), "secrets": {"serin-mlflow"}}
    found = troubled(examine_cluster(environment))
    assert {name: line.found for name, line in found.items()} == {
        "service account": "missing",
        "secret serin-object-store": "missing",
    }
    assert "Create serin-object-store in namespace serin-prod" in found["secret serin-object-store"].fix


KUBERNETES_LINES = {"RayJob API", "create rayjobs", "gpu nodes", "gpu quota", "storage class", "secrets"}


def assert_only_kubernetes_is_away(lines: list[Check]) -> Check:
    found = by_name(lines)
    assert {found[name].status for name in KUBERNETES_LINES} == {"warn"}
    assert {found[name].found for name in KUBERNETES_LINES} == {"skipped"}
    assert [line.name for line in lines if line.status == "fail"] == ["kubernetes"]
    assert {found[name].status for name in ("kfp", "mlflow", "store")} == {"ok"}
    return found["kubernetes"]


def test_without_a_kubeconfig_the_other_servers_are_examined(environment: Environment) -> None:
    line = assert_only_kubernetes_is_away(examine_cluster(environment))
    assert "no usable kubeconfig" in line.found
    assert "Set KUBECONFIG" in line.fix


@pytest.mark.parametrize("content", ["", "a: [", "clusters: []\n", "current-context: x\ncontexts: []\nclusters: []\n"])
def test_a_kubeconfig_that_is_broken_is_one_line(
    content: str, environment: Environment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken").write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "broken"))
    assert "no usable kubeconfig" in assert_only_kubernetes_is_away(examine_cluster(environment)).found


def test_an_api_that_does_not_answer_is_one_line(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with FakeKubernetes(NAMESPACE) as fake:
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
    line = assert_only_kubernetes_is_away(examine_cluster(environment))
    assert line.found == f"{fake.url} does not answer (connection refused or name unknown)"


def test_an_expired_token_is_one_line(
    cluster: FakeKubernetes, environment: Environment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path, token="kube-token-of-yesterday")))
    line = assert_only_kubernetes_is_away(examine_cluster(environment))
    assert line.found == f"{cluster.url} refuses this identity (401)"
    assert "Log in again" in line.fix


def test_an_answer_of_an_odd_shape_is_one_line(cluster: FakeKubernetes, environment: Environment) -> None:
    cluster.broken = {"storageclasses"}
    assert only(environment, "storage class").status == "fail"


def test_a_bucket_that_can_only_be_read_is_found(
    cluster: FakeKubernetes, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ReadOnlyBucket() as bucket:
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
        line = only(environment, "store")
    assert "AccessDenied" in line.found
    assert "s3:PutObject" in line.fix


def test_a_bucket_that_does_not_exist_is_found(cluster: FakeKubernetes, environment: Environment) -> None:
    missing = environment.model_copy(update={"store_uri": "s3://no-such-bucket/store"})
    assert "NoSuchBucket" in only(missing, "store").found


@pytest.mark.parametrize(("keeps", "said"), [(False, "overwrites what it was asked to keep"), (True, "still there")])
def test_a_bucket_without_conditional_writes_or_removal_is_found(
    keeps: bool,
    said: str,
    cluster: FakeKubernetes,
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ForgetfulBucket(keeps=keeps) as bucket:
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
        assert said in only(environment, "store").found
        assert len(bucket.keys) == keeps


def test_an_object_store_of_ones_own_is_asked_for_when_its_address_is_not_set(
    cluster: FakeKubernetes, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    own = environment.model_copy(update={"object_store_url": "http://minio.serin-prod.svc:9000"})
    assert "Set AWS_ENDPOINT_URL" in only(own, "store").fix


def test_kubeflow_in_trouble_is_one_line(
    cluster: FakeKubernetes, environment: Environment, kfp_server: FakeService
) -> None:
    kfp_server.answers["/apis/v2beta1/healthz"] = (503, "text/html", b"<h1>upstream connect error</h1>")
    line = only(environment, "kfp")
    assert (line.status, line.found) == ("fail", f"{kfp_server.url}: HTTP 503: Service Unavailable")
    assert "look at its pods" in line.fix


def test_experiments_that_this_identity_may_not_list_are_found(
    cluster: FakeKubernetes, environment: Environment, kfp_server: FakeService
) -> None:
    kfp_server.answers["/apis/v2beta1/experiments"] = as_json(403, {"message": "User is not authorized"})
    line = only(environment, "kfp experiments")
    assert "User is not authorized" in line.found
    assert ("GET", "/apis/v2beta1/experiments?page_size=1&namespace=serin-prod") in kfp_server.requests


@pytest.mark.parametrize(
    ("version", "status"), [("2.17.3", "ok"), ("2.18.0", "ok"), ("unknown", "ok"), ("2.4.1", "warn"), ("1.8.5", "fail")]
)
def test_kubeflows_version_is_held_against_the_one_we_compile_for(
    version: str, status: str, cluster: FakeKubernetes, environment: Environment, kfp_server: FakeService
) -> None:
    kfp_server.answers["/apis/v2beta1/healthz"] = as_json(200, {**HEALTH, "tag_name": version})
    assert by_name(examine_cluster(environment))["kfp"].status == status


def test_a_page_in_place_of_the_api_is_found(
    cluster: FakeKubernetes, environment: Environment, kfp_server: FakeService
) -> None:
    kfp_server.answers["/apis/v2beta1/healthz"] = (200, "text/html", b"<title>Kubeflow</title>")
    assert "the answer is a page" in only(environment, "kfp").found


def test_a_login_page_is_a_missing_login(
    cluster: FakeKubernetes, environment: Environment, kfp_server: FakeService
) -> None:
    kfp_server.answers["/apis/v2beta1/healthz"] = (302, "text/html", b"")
    assert "KFP_TOKEN" in only(environment, "kfp").fix


def test_no_token_goes_out_over_plain_http(cluster: FakeKubernetes, environment: Environment) -> None:
    plain = environment.model_copy(update={"kfp_host": "http://kubeflow.example/pipeline"})
    assert "plain HTTP" in only(plain, "kfp").fix


def test_mlflow_that_refuses_the_login_is_found(
    cluster: FakeKubernetes,
    environment: Environment,
    mlflow_server: FakeService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mlflow_server.answers["/api/2.0/mlflow/experiments/search"] = (401, "text/html", b"You are not authenticated")
    line = only(environment, "mlflow experiments")
    assert "401" in line.found
    assert "MLFLOW_TRACKING_USERNAME" in line.fix


def test_servers_that_are_away_hide_nothing_and_cost_little_time(cluster: FakeKubernetes, s3_bucket: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        store_uri = f"s3://{s3_bucket}/store"
        environment = settings(kfp_host=silent_url, tracking_uri="http://127.0.0.1:9", store_uri=store_uri)
        start = time.monotonic()
        found = troubled(examine_cluster(environment))
    assert time.monotonic() - start < 10
    assert {name: line.status for name, line in found.items()} == {"kfp": "fail", "mlflow": "fail"}
    assert "timed out" in found["kfp"].found
    assert "connection refused" in found["mlflow"].found


def test_an_environment_without_addresses_is_warned_about(cluster: FakeKubernetes) -> None:
    bare = Environment(name="own", namespace=NAMESPACE)
    assert {name: line.status for name, line in troubled(examine_cluster(bare)).items()} == dict.fromkeys(
        ("service account", "kfp", "mlflow", "store"), "warn"
    )


def test_the_versions_that_we_ask_for_are_those_of_the_published_definitions() -> None:
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "crds"
    if not folder.is_dir():
        pytest.skip("needs the published definitions in ../shared/crds, which are not here")
    for kind in KINDS:
        with gzip.open(folder / f"{kind.group}_{kind.plural}.yaml.gz", "rt") as stream:
            # parsing all of it takes seconds, and the entries of spec.versions are little indented
            published = set(re.findall(r"^ {2,6}(?:- )?name: (v\d\w*)\r?$", stream.read(), re.MULTILINE))
        assert set(kind.versions) <= published, kind.name


def test_the_local_environment_is_refused() -> None:
    with pytest.raises(ConfigError, match="this machine"):
        examine_cluster(LOCAL)
