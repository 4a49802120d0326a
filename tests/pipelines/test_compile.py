"""The pipeline functions as Kubeflow IR: parsed into KFP's own protobufs and checked for dangling references."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from serin.core.images import component_image
from serin_pipelines.compiling import compile_pipeline, pipelines

TASKS = {"data-prep", "finetune", "index", "release", "evaluate", "deploy", "monitor"}


@pytest.fixture(scope="module", params=sorted(pipelines()))
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = compile_pipeline(request.param, tmp_path_factory.mktemp("ir"))
    documents = list(yaml.safe_load_all(path.read_text()))
    return documents[0]


def dags(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {"root": spec["root"]}
    return found | {name: c for name, c in spec["components"].items() if "dag" in c}


def test_the_ir_parses_into_the_pipeline_spec(compiled: dict[str, Any]) -> None:
    message = json_format.ParseDict(compiled, pipeline_spec_pb2.PipelineSpec())
    assert message.pipeline_info.name.startswith("serin-")


def test_every_stage_is_a_task_and_runs_our_image_without_installing(compiled: dict[str, Any]) -> None:
    tasks = {name for component in dags(compiled).values() for name in component["dag"]["tasks"]}
    assert tasks >= TASKS
    for executor in compiled["deploymentSpec"]["executors"].values():
        assert executor["container"]["image"] == component_image()
        assert "pip install" not in " ".join(executor["container"]["command"])


def test_every_reference_between_tasks_leads_somewhere(compiled: dict[str, Any]) -> None:
    for name, component in dags(compiled).items():
        tasks = component["dag"]["tasks"]
        declared = component.get("inputDefinitions", {})
        for task in tasks.values():
            for kind in ("parameters", "artifacts"):
                for value in task.get("inputs", {}).get(kind, {}).values():
                    _check_reference(value, kind, tasks, declared, compiled, name)


def _check_reference(value: dict, kind: str, tasks: dict, declared: dict, spec: dict[str, Any], where: str) -> None:
    producer = value.get("taskOutputParameter") or value.get("taskOutputArtifact")
    if producer:
        component = spec["components"][tasks[producer["producerTask"]]["componentRef"]["name"]]
        key = producer.get("outputParameterKey") or producer.get("outputArtifactKey")
        assert key in component["outputDefinitions"][kind], f"{where}: {producer}"
    inner = value.get("componentInputParameter") or value.get("componentInputArtifact")
    if inner:
        assert inner in declared.get(kind, {}), f"{where}: {inner}"


def test_deploy_waits_for_a_passed_gate(compiled: dict[str, Any]) -> None:
    guarded = [task for task in compiled["root"]["dag"]["tasks"].values() if "triggerPolicy" in task]
    assert len(guarded) == 1
    assert "evaluate-Output'] == true" in guarded[0]["triggerPolicy"]["condition"]
    inner = compiled["components"][guarded[0]["componentRef"]["name"]]["dag"]["tasks"]
    assert {"deploy", "monitor"} <= set(inner)
    assert "deploy" in inner["monitor"]["dependentTasks"]


def test_kfp_caches_nothing_because_the_store_reuses_by_code_version(compiled: dict[str, Any]) -> None:
    for component in dags(compiled).values():
        for name, task in component["dag"]["tasks"].items():
            if name in TASKS:
                assert not task.get("cachingOptions", {}).get("enableCache")


def test_index_and_finetune_do_not_wait_for_each_other(compiled: dict[str, Any]) -> None:
    tasks = compiled["root"]["dag"]["tasks"]
    assert tasks["index"]["dependentTasks"] == ["data-prep"]
    assert tasks["finetune"]["dependentTasks"] == ["data-prep"]


def test_every_parameter_is_described_and_operators_parameters_have_defaults(compiled: dict[str, Any]) -> None:
    parameters = compiled["root"]["inputDefinitions"]["parameters"]
    assert all(parameter.get("description") for parameter in parameters.values())
    required = {name for name, parameter in parameters.items() if not parameter.get("isOptional")}
    assert required == {"source_uri", "store_uri"}


def test_components_are_interface_only() -> None:
    root = Path(__file__).resolve().parents[2] / "components" / "serin"
    for path in root.glob("*/component.py"):
        body = path.read_text().split('"""', 4)[-1]
        assert len(body.splitlines()) <= 45, path
