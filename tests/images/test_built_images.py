"""The images, built for real, under the restrictions of a pod: no network, a read-only root, no capabilities."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from serin.core.digests import code_version
from serin_pipelines.compiling import compile_pipeline
from serin_pipelines.placement import RUN_AS_USER

from .conftest import ROOT, Build, Container, Image

pytestmark = [pytest.mark.images, pytest.mark.slow, pytest.mark.timeout(1200)]

MAX_BYTES = {"cpu": 2_200_000_000, "serve": 1_850_000_000, "ray": 2_300_000_000}
"""A tenth above what they measured with a CPU build of torch; see manifests/images/README.md."""
INSTALLED = """
import json
from importlib.metadata import distributions
print(json.dumps({found.name: found.version for found in distributions()}))
"""
WRITABLE = """
import os
print([root for root in ("/opt", "/usr", "/etc", "/var") for root, _, _ in os.walk(root) if os.access(root, os.W_OK)])
"""
JOB = "import ray; ray.init(address='auto'); print('answer', ray.get(ray.remote(lambda: 6 * 7).remote()))"
ARTIFACTS = {"dataset": "system.Dataset", "documents": "system.Dataset", "summary": "system.Markdown"}

Start = Callable[[Image], Container]


@pytest.fixture
def cpu(build: Build) -> Image:
    return build("cpu")


@pytest.fixture
def serve(build: Build) -> Image:
    return build("serve")


@pytest.fixture
def ray(build: Build) -> Image:
    return build("ray", "GPU_TORCH=any")


@pytest.fixture(params=["cpu", "serve", "ray"])
def image(request: pytest.FixtureRequest) -> Image:
    return request.getfixturevalue(request.param)


def test_an_image_is_small_labelled_and_not_roots(image: Image) -> None:
    target = image.reference.split("/")[1].split(":")[0]
    assert int(image.inspect("{{.Size}}")) <= MAX_BYTES[target]
    assert image.inspect("{{.Config.User}}") == f"{RUN_AS_USER}:{RUN_AS_USER}"
    labels = json.loads(image.inspect("{{json .Config.Labels}}"))
    assert labels["org.opencontainers.image.revision"] == "tested"
    assert labels["org.opencontainers.image.version"] == re.search(
        r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    ).group(1)


def test_nothing_of_how_it_was_built_stays_in_an_image(image: Image, start: Start) -> None:
    address = image.index.removeprefix("http://").rstrip("/")
    assert address not in image.engine.call("history", "--no-trunc", image.reference, timeout_s=60).stdout
    container = start(image)
    found = container.run("grep", "-rlsI", address, "/etc", "/opt", "/root", check=False).stdout
    assert not found
    for path in ("/requirements", "/build", "/wheels", "/run/secrets", "/etc/pip.conf", "/opt/pip"):
        assert container.run("test", "-e", path, check=False).returncode == 1, path


def test_a_container_is_nobody_special_and_can_install_and_write_nothing(image: Image, start: Start) -> None:
    container = start(image)
    assert container.run("id", "-u").stdout.strip() == str(RUN_AS_USER)
    assert container.python(WRITABLE) == "[]"
    for module in ("pip", "ensurepip"):
        assert container.run("python3", "-m", module, "--version", check=False).returncode != 0
    for program in ("pip", "pip3", "gcc", "cc", "make"):
        assert container.run("sh", "-c", f"command -v {program}", check=False).returncode != 0, program


def test_every_package_is_installed_at_its_locked_version(image: Image, start: Start) -> None:
    locked = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    locked = {_normal(name): version for name, version in locked.items()}
    installed = json.loads(start(image).python(INSTALLED))
    public = {_normal(name): version.partition("+")[0] for name, version in installed.items()}
    del public["serin"]
    assert {name: (version, locked.get(name)) for name, version in public.items() if locked.get(name) != version} == {}


def test_an_image_has_the_code_that_pipelines_are_compiled_from(image: Image, start: Start) -> None:
    stages = ["data_prep", "finetune", "index", "release", "evaluate", "deploy", "monitor", "serve", None]
    code = f"from serin.core.digests import code_version as v\nprint([v(stage) for stage in {stages}])"
    assert start(image).python(code) == str([code_version(stage) for stage in stages])


def test_doctor_finds_a_cpu_container_fit(cpu: Image, start: Start) -> None:
    report = json.loads(start(cpu).run("serin", "doctor", "--json").stdout)
    assert report["ok"], report
    assert {check["name"]: check["status"] for check in report["checks"]}["libraries"] == "ok"


def test_a_component_runs_from_its_compiled_command_without_a_network(cpu: Image, start: Start, tmp_path: Path) -> None:
    container = start(cpu)
    container.run("serin", "data", "samples", "/tmp/samples")
    pipeline = next(yaml.safe_load_all(compile_pipeline("training", tmp_path).read_text()))
    command = _as_kubeflow_starts(pipeline, "data-prep", "/tmp/samples", "/tmp/store")
    container.run(*command, timeout_s=240)
    outputs = json.loads(container.run("cat", "/tmp/outputs/executor_output.json").stdout)["artifacts"]
    dataset = outputs["dataset"]["artifacts"][0]["metadata"]
    assert re.fullmatch(r"[0-9a-f]{64}", dataset["digest"])
    assert dataset["lineage_id"] == "in-a-container"
    assert dataset["uri"].startswith("file:///tmp/store/")
    manifest = json.loads(container.run("cat", "/minio/artifacts/dataset").stdout)
    assert manifest["kind"] == "dataset"
    assert container.run("cat", "/minio/artifacts/summary").stdout.startswith("#")


def _as_kubeflow_starts(pipeline: dict[str, Any], component: str, source: str, store: str) -> list[str]:
    container = pipeline["deploymentSpec"]["executors"][f"exec-{component}"]["container"]
    given = {"source_uri": source, "store_uri": store, "endpoint": "assistant", "lineage_id": "in-a-container"}
    declared = pipeline["components"][f"comp-{component}"]["inputDefinitions"]["parameters"]
    empty = {name: {} if it["parameterType"] == "STRUCT" else "" for name, it in declared.items()}
    executor_input = {
        "inputs": {"parameterValues": {**empty, **given}},
        "outputs": {
            "artifacts": {name: {"artifacts": [_output(name, schema)]} for name, schema in ARTIFACTS.items()},
            "outputFile": "/tmp/outputs/executor_output.json",
        },
    }
    arguments = [json.dumps(executor_input) if one == "{{$}}" else one for one in container["args"]]
    return [*container["command"], *arguments]


def _output(name: str, schema: str) -> dict[str, Any]:
    kind = {"schemaTitle": schema, "schemaVersion": "0.0.1"}
    return {"name": name, "uri": f"minio://artifacts/{name}", "type": kind, "metadata": {}}


def test_the_endpoints_image_has_what_it_serves_and_rolls_out_with(serve: Image, start: Start) -> None:
    container = start(serve)
    container.python("import serin.serve.server, serin.serve.engine, serin.deploy.component, serin.deploy.rollout")
    refused = container.run("serin", "serve", "--host", "0.0.0.0", "--store", "file:///tmp/store", check=False)
    assert refused.returncode in range(1, 9), refused
    assert "Traceback" not in refused.stderr


def test_a_ray_cluster_starts_from_a_login_shell_and_takes_jobs(ray: Image, start: Start) -> None:
    container = start(ray)
    head = "ray start --head --dashboard-host 127.0.0.1 --include-dashboard true --num-cpus 1 --port 6379"
    container.run("bash", "-lc", head, timeout_s=120)
    submit = ["ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--", "python3", "-c", JOB]
    assert "answer 42" in container.run(*submit, timeout_s=240).stdout
    health = "from urllib.request import urlopen as u; print(u('http://127.0.0.1:{}').read().decode())"
    assert container.python(health.format("8265/api/gcs_healthz")) == "success"
    assert container.python(health.format("52365/api/local_raylet_healthz")) == "success"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
