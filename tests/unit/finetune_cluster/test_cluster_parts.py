"""The parts of a launch on their own: settings, names, the object, the request, the lease, progress."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_worlds import CONFIG, World
from fake_kuberay import REPOSITORY, _problems, ray_job_schema

from serin.core.errors import ConfigError, StorageError, UnavailableError
from serin.core.kubernetes import Clock, LostError, Patience, RefusedError, connect
from serin.core.storage import storage_for
from serin.finetune.cluster.config import ClusterConfig
from serin.finetune.cluster.driver import main
from serin.finetune.cluster.lease import LeaseWatch, lease_renewed
from serin.finetune.cluster.manifest import job_name, ray_job
from serin.finetune.cluster.progress import LineReader, LineReporter
from serin.finetune.cluster.request import LEASE, Attempt, JobRequest, Outcome, RequestBook, read_order
from serin.finetune.config import FinetuneConfig


def request_of(store_uri: str, **changes: Any) -> JobRequest:
    given = {
        "config": CONFIG.dump(),
        "base_model": "serin://tiny",
        "prompt": {},
        "dataset_uri": "s3://b/dataset/1",
        "dataset_digest": "d",
        "documents_uri": "s3://b/documents/1",
        "documents_digest": "e",
        "store_uri": store_uri,
        "tracking_uri": "",
        "endpoint": "assistant",
        "lineage_id": "run-1",
        "code_version": "c",
    }
    return JobRequest.load({**given, **changes})


FULL = {
    "kind": "rayjob",
    "image": "serin/ray@sha256:0",
    "num_workers": 4,
    "gpus_per_worker": 2,
    "node_selector": {"serin.dev/accelerator": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu"}],
    "queue": "serin",
    "priority_class": "training",
    "image_pull_secrets": ["registry"],
    "labels": {"app.kubernetes.io/part-of": "serin"},
    "config_maps": ["serin-settings"],
    "secrets": ["serin-object-store"],
    "secret_variables": {"HF_TOKEN": {"name": "hub", "key": "token"}},
    "variables": {"HF_HUB_OFFLINE": "1"},
    "volume_claim": "store",
}
ATTEMPT = Attempt("0123456789abcdef" * 2 + "01234567", 1, "s3://b/jobs/finetune/run-1/0123/001")


@pytest.fixture
def full() -> dict[str, Any]:
    """A RayJob that uses every setting."""
    if ray_job_schema() is None:
        pytest.skip("needs the CustomResourceDefinitions in ../shared/crds, which are not here")
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "1"}
    return ray_job(ClusterConfig.load(FULL), ATTEMPT, job_name("run-1", ATTEMPT), [owner])


def test_a_job_with_every_setting_follows_its_definition(full: dict[str, Any]) -> None:
    assert _problems(full) == []


@pytest.mark.parametrize(
    "path", [("spec",), ("spec", "rayClusterSpec", "headGroupSpec"), ("spec", "submitterPodTemplate", "spec")]
)
def test_an_unknown_field_is_rejected_by_the_definition(full: dict[str, Any], path: tuple[str, ...]) -> None:
    broken = copy.deepcopy(full)
    inner = broken
    for key in path:
        inner = inner[key]
    inner["activeDeadlineSecond"] = 1
    assert any("activeDeadlineSecond" in problem for problem in _problems(broken))


def test_the_workers_take_what_was_asked_for(full: dict[str, Any]) -> None:
    group = full["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    pod = group["template"]["spec"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (4, 4, 4)
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["nodeSelector"] == {"serin.dev/accelerator": "gpu"}
    assert pod["priorityClassName"] == "training"
    assert {"name": "store", "persistentVolumeClaim": {"claimName": "store"}} in pod["volumes"]
    assert (full["spec"]["entrypointNumCpus"], full["spec"]["entrypointNumGpus"]) == (8, 2)


def test_the_template_for_a_run_by_hand_has_the_same_pods() -> None:
    path = REPOSITORY / "manifests" / "kuberay" / "rayjob" / "ray-job.yaml"
    template = yaml.safe_load(path.read_text())["spec"]
    settings = {
        "kind": "rayjob",
        "image": "serin/ray",
        "gpus_per_worker": 1,
        "node_selector": {"serin.dev/accelerator": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu"}],
        "queue": "serin",
        "config_maps": ["serin-settings"],
        "secrets": ["serin-object-store", "serin-mlflow"],
    }
    made = ray_job(ClusterConfig.load(settings), ATTEMPT, "x")["spec"]
    for own in ("entrypoint", "runtimeEnvYAML"):
        del made[own], template[own]
    assert made == template


def test_every_pod_is_restricted(full: dict[str, Any]) -> None:
    cluster = full["spec"]["rayClusterSpec"]
    pods = [full["spec"]["submitterPodTemplate"], cluster["headGroupSpec"]["template"]]
    pods += [group["template"] for group in cluster["workerGroupSpecs"]]
    for pod in pods:
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("run", ["", "run-1", "0f3c9a52-3b7e-4a7b-9a50-1f2e3d4c5b6a", "Ümläut & Co. " * 9])
def test_names_are_short_valid_and_always_the_same(run: str) -> None:
    attempt = Attempt(ATTEMPT.digest, 999, "")
    name = job_name(run, attempt)
    assert len(name) <= 47
    assert name == job_name(run, attempt)
    assert name.replace("-", "").isalnum()
    assert name.isascii()
    assert name == name.lower()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "rayjob"}, "needs an image"),
        ({"kind": "ray_cluster"}, "http:// address"),
        ({"lease_expiry_s": 20}, "at least two lease_interval_s"),
        ({"active_deadline_s": 60}, "pre_running_deadline_s must be below"),
        ({"variables": {"HF_TOKEN": "x"}}, r"^HF_TOKEN looks like a secret: give it by reference, in [a-z_ ]+\.$"),
        ({"gpus": 2}, "'gpus' is not a setting"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ClusterConfig.load(values)


def test_a_tracking_uri_with_a_password_is_not_kept(tmp_path: Path) -> None:
    request = request_of(str(tmp_path), tracking_uri="https://me:secret@mlflow.example")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD by Secret"):
        RequestBook(request, lease_expiry_s=300)


def test_what_is_asked_decides_the_digest_and_how_does_not(tmp_path: Path) -> None:
    request = request_of(str(tmp_path))
    assert request.digest == request_of(str(tmp_path)).digest
    assert request.digest != request_of(str(tmp_path), dataset_digest="x").digest
    one = RequestBook(request, lease_expiry_s=300).attempt(1)
    other = RequestBook(request, lease_expiry_s=10, mlflow_run_id="r").attempt(1)
    assert one == other


def test_requests_leases_and_outcomes_live_in_an_object_store_too(s3_bucket: str) -> None:
    book = RequestBook(request_of(f"s3://{s3_bucket}/store"), lease_expiry_s=300, mlflow_run_id="r")
    attempt = book.attempt(1)
    book.write(attempt)
    order, found = read_order(attempt.request_uri)
    assert (order.request, order.mlflow_run_id, found) == (book.request, "r", attempt)
    assert book.numbers() == [1]
    with lease_renewed(attempt.storage, 60):
        pass
    assert attempt.storage.exists(LEASE)
    assert attempt.outcome() is None


def test_the_lease_counts_renewals_by_the_watchers_own_clock(tmp_path: Path) -> None:
    storage, now = storage_for(str(tmp_path)), [0.0]
    watch = LeaseWatch(storage, 10.0, Clock(now=lambda: now[0]))
    now[0] = 9.0
    assert not watch.expired(), "a launcher may need a moment"
    storage.write(LEASE, b"1")
    assert not watch.expired()
    now[0] = 18.0
    assert not watch.expired()
    storage.write(LEASE, b"2")
    assert not watch.expired()
    storage.delete(LEASE)
    now[0] = 27.0
    assert not watch.expired(), "what cannot be read counts as unchanged"
    now[0] = 28.0
    assert watch.expired()


def test_progress_passes_through_a_log_and_back() -> None:
    written, shown, events = io.StringIO(), io.StringIO(), []
    now = iter([0.0, 1.0, 3.0])
    report = LineReporter(written, clock=lambda: next(now))
    report("progress", message="a", fraction=0.1)
    report("progress", message="b", fraction=0.2)
    report("progress", message="c", fraction=0.3)
    report("reused", kind="base")
    report("finished", summary={})
    reader = LineReader(lambda event, **fields: events.append((event, fields)), shown)
    for line in ["before", *written.getvalue().splitlines(), "(pid=1) ::serin:: {cut"]:
        reader(line)
    assert events == [
        ("progress", {"message": "a", "fraction": 0.1}),
        ("progress", {"message": "c", "fraction": 0.3}),
        ("reused", {"kind": "base"}),
    ]
    assert shown.getvalue() == "before\n(pid=1) ::serin:: {cut\n", "what cannot be read is shown"


def test_an_error_of_a_name_that_is_not_ours_is_still_one_sentence() -> None:
    assert "failed with ZeroDivisionError (x)" in str(
        Outcome(digest="d", error="ZeroDivisionError", text="x").failure()
    )
    assert "failed with SystemExit" in str(Outcome(digest="d", error="SystemExit").failure())


def test_patience_waits_longer_each_time_and_ends() -> None:
    now, pauses = [0.0], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    def lost() -> None:
        raise LostError("connection lost")

    with pytest.raises(UnavailableError, match=r"did not answer for 20 s .connection lost."):
        Patience(1.0, 4.0, 20.0).call(lost, Clock(lambda: now[0], sleep))
    assert pauses == [1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 4.0]


def test_patience_is_not_for_refusals() -> None:
    def refused() -> None:
        raise RefusedError(403, "no")

    with pytest.raises(RefusedError):
        Patience().call(refused, Clock(sleep=lambda seconds: pytest.fail("waited")))


def test_no_kubeconfig_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(UnavailableError, match="set KUBECONFIG to a kubeconfig that works"):
        connect()


def test_the_driver_refuses_what_is_no_request(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes one argument"):
        main([])
    with pytest.raises(StorageError, match="does not exist"):
        main([f"{tmp_path.as_uri()}/request.json"])
    (tmp_path / "request.json").write_text(json.dumps({"attempt": 1}))
    with pytest.raises(ConfigError, match="one image for launcher and driver"):
        main([f"{tmp_path.as_uri()}/request.json"])


def test_a_driver_that_shall_use_the_clusters_workers_does_or_refuses(world: World) -> None:
    from serin.finetune.cluster.driver import _config

    book = RequestBook(request_of(world.store.uri), lease_expiry_s=300, attach=True)
    book.write(book.attempt(1))
    order, _ = read_order(book.attempt(1).request_uri)
    if "ray_address" in type(CONFIG).model_fields:
        assert _config(order).dump()["ray_address"] == "auto"
    else:
        with pytest.raises(ConfigError, match="set driver_on to worker"):
            _config(order)


@pytest.mark.parametrize(
    ("cluster", "finetune", "store", "problem"),
    [
        ({}, {"num_workers": 0}, "/mnt/serin/store", "num_workers to 1 or more, or driver_on to worker"),
        ({"gpus_per_worker": 1}, {}, "/mnt/serin/store", "would train on CPUs: set it to cuda"),
        ({}, {"device": "cuda"}, "/mnt/serin/store", r"needs 2 workers .* and 2 pods of 8 CPUs and 0 GPUs hold 0"),
        ({"num_workers": 1, "cpus": 3}, {}, "/mnt/serin/store", r"needs 2 workers of 2 CPUs, and 1 pods .* hold 1"),
        ({}, {}, "s3://bucket/store", "set SERIN_HOME, in variables, to a folder below its volume_path"),
        ({"variables": {"SERIN_HOME": "/home/serin"}}, {}, "s3://bucket/store", "SERIN_HOME"),
        ({}, {}, "/mnt/serin/store", ""),
        ({"num_workers": 1, "cpus": 3}, {"min_workers": 1}, "/mnt/serin/store", ""),
        ({"gpus_per_worker": 1}, {"device": "cuda"}, "/mnt/serin/store", ""),
        ({"variables": {"SERIN_HOME": "/mnt/serin/home"}}, {}, "s3://bucket/store", ""),
    ],
)
def test_what_a_driver_on_the_head_cannot_do_is_refused_before_pods_are_asked_for(
    cluster: dict[str, Any], finetune: dict[str, Any], store: str, problem: str
) -> None:
    from serin.finetune.cluster.launcher import require_places

    given: dict[str, Any] = {"kind": "rayjob", "image": "serin:1", "driver_on": "head", "volume_claim": "store"}
    where = ClusterConfig.load({**given, "num_workers": 2, **cluster})
    config = FinetuneConfig.load({"num_workers": 2, **finetune})
    if not problem:
        require_places(where, config, store)
        return
    with pytest.raises(ConfigError, match=problem):
        require_places(where, config, store)


def test_a_driver_of_other_code_says_so_in_its_outcome(world: World) -> None:
    book = RequestBook(request_of(world.store.uri, code_version="other"), lease_expiry_s=300)
    attempt = book.attempt(1)
    book.write(attempt)
    assert main([attempt.request_uri]) == ConfigError.exit_code
    outcome = attempt.outcome()
    assert outcome is not None
    assert outcome.error == "ConfigError"
    assert "compiled from code other" in outcome.text
