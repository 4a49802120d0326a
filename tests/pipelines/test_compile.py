"""The pipeline functions as Kubeflow IR: parsed into KFP's own protobufs, checked for dangling references, compared
with what is committed, and held to how tasks are placed on a cluster."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from golden import committed
from golden import compiled as compiled_for_golden
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from serin.core.digests import code_version
from serin.core.errors import ConfigError
from serin_pipelines.compiling import arguments_for, build, compile_pipeline, pipelines
from serin_pipelines.environments import LOCAL, Environment, load_environment
from serin_pipelines.lint import lint_file
from serin_pipelines.placement import DISPLAY_NAMES, EFFECTS

ENVIRONMENTS = ("local", "staging", "prod")
TASKS = {
    "training": {"data-prep", "finetune", "index", "release", "evaluate", "deploy", "monitor", "conclude"},
    "index_refresh": {"data-prep", "index", "refresh", "evaluate", "deploy", "conclude"},
    "promotion": {"resolve", "evaluate", "deploy", "conclude"},
    "monitoring": {"resolve", "monitor", "conclude"},
    "verdict": {"verdict", "conclude"},
}
TASKS["retraining"] = {"trigger", *TASKS["training"]}


class Compiled:
    """A pipeline's compiled documents."""

    def __init__(self, name: str, environment: str, path: Path) -> None:
        self.name, self.environment, self.path = name, environment, path
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
        self.spec: dict[str, Any] = documents[0]
        self.platform: dict[str, Any] = documents[1]["platforms"]["kubernetes"] if len(documents) > 1 else {}

    @property
    def dags(self) -> dict[str, dict[str, Any]]:
        found = {name: one for name, one in self.spec["components"].items() if "dag" in one}
        return {"root": self.spec["root"], **found}

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """All tasks that run a container, by name."""
        every = {name: task for dag in self.dags.values() for name, task in dag["dag"]["tasks"].items()}
        return {name: task for name, task in every.items() if self.executor_label(task)}

    def executor_label(self, task: dict[str, Any]) -> str:
        return self.spec["components"][task["componentRef"]["name"]].get("executorLabel", "")

    def container(self, task: str) -> dict[str, Any]:
        return self.spec["deploymentSpec"]["executors"][self.executor_label(self.tasks[task])]["container"]

    def pod(self, task: str) -> dict[str, Any]:
        return self.platform["deploymentSpec"]["executors"][self.executor_label(self.tasks[task])]


Compile = Callable[[str, str], Compiled]


@pytest.fixture(scope="session")
def compile_for(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles a pipeline for an environment, once."""
    folder = tmp_path_factory.mktemp("ir")

    @cache
    def made(name: str, environment: str) -> Compiled:
        path = compile_pipeline(name, folder / environment, load_environment(environment))
        return Compiled(name, environment, path)

    return made


@pytest.fixture(params=[(name, env) for name in sorted(TASKS) for env in ENVIRONMENTS], ids="-".join)
def compiled(request: pytest.FixtureRequest, compile_for: Compile) -> Compiled:
    """Every pipeline in every environment."""
    return compile_for(*request.param)


@pytest.fixture(params=[(name, env) for name in sorted(TASKS) for env in ENVIRONMENTS[1:]], ids="-".join)
def on_cluster(request: pytest.FixtureRequest, compile_for: Compile) -> Compiled:
    """Every pipeline on every cluster."""
    return compile_for(*request.param)


def test_every_pipeline_is_tested_here() -> None:
    assert set(pipelines()) == set(TASKS)


def test_every_component_has_an_effect_and_a_name_for_people() -> None:
    assert set(EFFECTS) == set(DISPLAY_NAMES)
    assert {task.replace("-", "_") for tasks in TASKS.values() for task in tasks} == set(EFFECTS)


def test_the_ir_parses_into_kfps_own_messages(compiled: Compiled) -> None:
    message = json_format.ParseDict(compiled.spec, pipeline_spec_pb2.PipelineSpec())
    assert message.pipeline_info.name == f"serin-{compiled.name.replace('_', '-')}"
    for executor in compiled.platform.get("deploymentSpec", {}).get("executors", {}).values():
        json_format.ParseDict(executor, kubernetes_executor_config_pb2.KubernetesExecutorConfig())


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_ir_is_the_committed_one(name: str, tmp_path: Path) -> None:
    assert compiled_for_golden(name, tmp_path) == committed(name), "if that is meant, say 'make golden' and commit it"


def test_our_own_linter_finds_nothing_on_a_cluster(on_cluster: Compiled) -> None:
    assert lint_file(on_cluster.path) == []


def test_the_tasks_are_the_expected_ones_and_install_nothing(compiled: Compiled) -> None:
    assert set(compiled.tasks) == TASKS[compiled.name]
    for task in compiled.tasks:
        assert "pip install" not in " ".join(compiled.container(task)["command"])


def test_every_reference_between_tasks_leads_somewhere(compiled: Compiled) -> None:
    for name, component in compiled.dags.items():
        tasks = component["dag"]["tasks"]
        declared = component.get("inputDefinitions", {})
        for task in tasks.values():
            for kind in ("parameters", "artifacts"):
                for value in task.get("inputs", {}).get(kind, {}).values():
                    _check_reference(value, kind, tasks, declared, compiled.spec, name)


def _check_reference(value: dict, kind: str, tasks: dict, declared: dict, spec: dict[str, Any], where: str) -> None:
    producer = value.get("taskOutputParameter") or value.get("taskOutputArtifact")
    if producer:
        component = spec["components"][tasks[producer["producerTask"]]["componentRef"]["name"]]
        key = producer.get("outputParameterKey") or producer.get("outputArtifactKey")
        assert key in component["outputDefinitions"][kind], f"{where}: {producer}"
    inner = value.get("componentInputParameter") or value.get("componentInputArtifact")
    if inner:
        assert inner in declared.get(kind, {}), f"{where}: {inner}"


@pytest.mark.parametrize("name", [name for name, tasks in TASKS.items() if "deploy" in tasks])
def test_deploy_waits_for_a_passed_gate(name: str, compile_for: Compile) -> None:
    compiled = compile_for(name, "prod")
    every = [task for dag in compiled.dags.values() for task in dag["dag"]["tasks"].values()]
    (guarded,) = [task for task in every if task.get("triggerPolicy", {}).get("condition")]
    assert "evaluate-Output'] == true" in guarded["triggerPolicy"]["condition"]
    assert "deploy" in compiled.spec["components"][guarded["componentRef"]["name"]]["dag"]["tasks"]


def test_whatever_happens_the_run_is_concluded(compiled: Compiled) -> None:
    root = compiled.spec["root"]["dag"]["tasks"]
    (handler,) = [name for name in root if name != "conclude"]
    assert root["conclude"]["dependentTasks"] == [handler]
    assert root["conclude"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}


@pytest.mark.parametrize("name", ["training", "retraining"])
def test_index_and_finetune_do_not_wait_for_each_other(name: str, compile_for: Compile) -> None:
    compiled = compile_for(name, "local")
    assert compiled.tasks["index"]["dependentTasks"] == ["data-prep"]
    assert compiled.tasks["finetune"]["dependentTasks"] == ["data-prep"]


def test_kubeflow_caches_what_is_pure_with_the_code_version_as_input_and_nothing_else(compiled: Compiled) -> None:
    for name, task in compiled.tasks.items():
        pure = EFFECTS[name.replace("-", "_")] == "pure"
        cached = bool(task.get("cachingOptions", {}).get("enableCache"))
        assert cached == (pure and compiled.environment != "local"), name
        if pure:
            given = task["inputs"]["parameters"]["code_version"]["runtimeValue"]["constant"]
            assert given == code_version(name.replace("-", "_"))


def test_only_what_may_run_twice_is_retried(on_cluster: Compiled) -> None:
    for name, task in on_cluster.tasks.items():
        retried = task.get("retryPolicy", {}).get("maxRetryCount", 0) > 0
        assert retried == (EFFECTS[name.replace("-", "_")] != "acts"), name


def test_every_pod_is_limited_in_time_and_resources_and_is_nobody(on_cluster: Compiled) -> None:
    for name in on_cluster.tasks:
        pod, resources = on_cluster.pod(name), on_cluster.container(name)["resources"]
        assert int(pod["activeDeadlineSeconds"]) > 0
        assert resources["resourceCpuLimit"] == resources["resourceCpuRequest"]
        assert resources["resourceMemoryLimit"] == resources["resourceMemoryRequest"]
        assert pod["securityContext"] == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}
        assert {"mountPath": "/tmp", "volumeName": "scratch"} in pod["emptyDirMounts"]
        assert pod["podMetadata"]["labels"]["serin.dev/component"] == name.replace("-", "_")
        assert {"name": "SERIN_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"} in pod["fieldPathAsEnv"]


def test_images_are_the_environments(on_cluster: Compiled) -> None:
    environment = load_environment(on_cluster.environment)
    for name in on_cluster.tasks:
        placement = environment.placement(name.replace("-", "_"))
        assert on_cluster.container(name)["image"] == environment.image(placement.image)


@pytest.mark.parametrize("name", ["training", "retraining"])
def test_a_gpu_comes_with_its_toleration_its_nodes_and_shared_memory(name: str, compile_for: Compile) -> None:
    on_cluster = compile_for(name, "prod")
    accelerator = on_cluster.container("finetune")["resources"]["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", "1")
    pod = on_cluster.pod("finetune")
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["nodeSelector"]["labels"] == {"serin.dev/accelerator": "gpu"}
    assert {"mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "16Gi", "volumeName": "shared-memory"} in pod[
        "emptyDirMounts"
    ]


def test_secrets_come_by_reference_and_each_only_to_the_tasks_that_use_it(on_cluster: Compiled) -> None:
    users = {"serin-gateway": ("deploy", "conclude"), "serin-signing": ("release", "refresh")}
    for name in on_cluster.tasks:
        secrets = {secret["secretName"] for secret in on_cluster.pod(name)["secretAsEnv"]}
        of_its_own = {secret for secret, tasks in users.items() if name in tasks}
        assert secrets == {"serin-object-store", "serin-mlflow", *of_its_own}


def test_finished_workflows_are_removed_and_long_ones_ended(on_cluster: Compiled) -> None:
    environment = load_environment(on_cluster.environment)
    config = on_cluster.platform["pipelineConfig"]
    assert config["resourceTtlOnCompletion"] == environment.keep_finished_s
    assert config["activeDeadlineSeconds"] == environment.deadline_s


def test_the_form_in_the_ui_explains_itself(compiled: Compiled) -> None:
    parameters = compiled.spec["root"]["inputDefinitions"]["parameters"]
    assert all(parameter.get("description") for parameter in parameters.values())
    assert compiled.spec["pipelineInfo"]["displayName"].startswith("Serin ")
    required = {name for name, parameter in parameters.items() if not parameter.get("isOptional")}
    here = compiled.environment == "local"
    assert required == (
        ({"release_id"} if compiled.name == "promotion" else set())
        | ({"store_uri"} if here else set())
        | ({"source_uri"} if here and "source_uri" in parameters else set())
    )
    names = {task["taskInfo"]["name"] for task in compiled.tasks.values()}
    assert names == {DISPLAY_NAMES[task.replace("-", "_")] for task in compiled.tasks}


def test_every_task_shows_something_in_the_ui(compiled: Compiled) -> None:
    shown = {"system.Metrics", "system.Markdown", "system.HTML", "system.ClassificationMetrics"}
    for name, task in compiled.tasks.items():
        outputs = compiled.spec["components"][task["componentRef"]["name"]].get("outputDefinitions", {})
        kinds = {one["artifactType"]["schemaTitle"] for one in outputs.get("artifacts", {}).values()}
        assert kinds & shown, name


def test_kubernetes_native_resources_hold_the_same_pipeline(tmp_path: Path) -> None:
    environment = load_environment("prod")
    path = compile_pipeline("monitoring", tmp_path, environment, kubernetes_manifests=True)
    pipeline, version = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    assert (pipeline["kind"], pipeline["metadata"]["name"]) == ("Pipeline", "serin-monitoring")
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"]
    assert version["metadata"]["namespace"] == environment.namespace
    plain = Compiled("monitoring", "prod", compile_pipeline("monitoring", tmp_path / "ir", environment))
    assert version["spec"]["pipelineSpec"]["components"] == plain.spec["components"]


def test_images_given_by_digest_replace_the_environments(tmp_path: Path) -> None:
    digest = f"registry.example/serin/cpu@sha256:{'0' * 64}"
    environment = load_environment("staging", {"cpu": digest})
    made = Compiled("monitoring", "staging", compile_pipeline("monitoring", tmp_path, environment))
    assert {made.container(task)["image"] for task in made.tasks} == {digest}


def test_a_store_on_a_volume_is_mounted_everywhere(tmp_path: Path) -> None:
    environment = load_environment("staging").model_copy(update={"volume_claim": "serin-store"})
    made = Compiled("monitoring", "staging", compile_pipeline("monitoring", tmp_path, environment))
    for task in made.tasks:
        assert made.pod(task)["pvcMount"][0]["mountPath"] == environment.volume_path


def test_training_on_kuberay_leaves_a_small_task_that_names_the_environments_image_secrets_and_gpus(
    tmp_path: Path,
) -> None:
    training = {"kind": "rayjob", "num_workers": 2, "gpus_per_worker": 1, "queue": "training"}
    environment = load_environment("prod").model_copy(update={"training": training})
    made = Compiled("training", "prod", compile_pipeline("training", tmp_path, environment))
    cluster = made.tasks["finetune"]["inputs"]["parameters"]["cluster"]["runtimeValue"]["constant"]
    assert (cluster["kind"], cluster["image"], cluster["queue"]) == ("rayjob", environment.images.ray, "training")
    assert cluster["secrets"] == ["serin-object-store", "serin-mlflow"]
    assert cluster["tolerations"][0]["key"] == environment.gpu.toleration
    assert "accelerator" not in made.container("finetune")["resources"]
    assert made.pod("finetune")["activeDeadlineSeconds"] == str(environment.components["finetune"].timeout_s)
    assert lint_file(made.path) == []


def test_what_cannot_be_compiled_or_run_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no pipeline 'trainig': choose from training"):
        build("trainig")
    with pytest.raises(ConfigError, match="There is no environment 'moon': choose from local, prod, staging"):
        load_environment("moon")
    with pytest.raises(ConfigError, match="'gpu' is not a setting of Images"):
        load_environment("prod", {"gpu": "x"})
    (tmp_path / "own.yaml").write_text("components: [1]")
    with pytest.raises(ConfigError, match="Environment cannot be used: 'components'"):
        load_environment(str(tmp_path / "own.yaml"))


def test_arguments_are_checked_before_anything_runs() -> None:
    settings = {"endpoint": "shop", "finetune_config": {"epochs": 2}}
    given = {"release_id": "0123abcd", "evaluate_config": "{num_golden: 5}"}
    assert arguments_for("promotion", settings, given) == {
        "endpoint": "shop", "release_id": "0123abcd", "evaluate_config": {"num_golden": 5},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="needs 'release_id'"):
        arguments_for("promotion", settings, {})
    with pytest.raises(ConfigError, match="has no parameter 'relase_id'"):
        arguments_for("promotion", settings, {"relase_id": "x"})
    with pytest.raises(ConfigError, match="must be a mapping"):
        arguments_for("promotion", settings, {"release_id": "0123abcd", "deploy_config": "3"})


def test_an_environment_of_ones_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "berlin.yaml"
    path.write_text("namespace: ml\nstore_uri: s3://berlin/store\n")
    environment = load_environment(str(path))
    assert isinstance(environment, Environment)
    assert (environment.name, environment.namespace, environment.on_cluster) == ("berlin", "ml", True)
    assert not LOCAL.on_cluster


def test_components_are_interface_only() -> None:
    root = Path(__file__).resolve().parents[2] / "components" / "serin"
    found = list(root.glob("*/*component.py"))
    assert len(found) == len(EFFECTS)
    for path in found:
        body = path.read_text().split('"""', 4)[-1]
        assert len(body.splitlines()) <= 45, path
