"""Versions and runs: uploaded once, started once, whatever happens to the answers."""

from pathlib import Path
from typing import Any

import pytest

from serin.core.errors import ConfigError
from serin_pipelines.compiling import compile_pipeline, pipelines
from serin_pipelines.environments import Environment
from serin_pipelines.kubeflow import runs
from serin_pipelines.kubeflow.client import Kubeflow, KubeflowError
from serin_pipelines.kubeflow.packages import Package, read_package

from .fake_kfp import FakeKubeflow

ARGUMENTS = {"source_uri": "s3://bucket/source"}


def order(kubeflow: Kubeflow, package: Package, **changes: Any) -> runs.Order:
    """What to run, with the version uploaded."""
    version = runs.publish(kubeflow, package)
    values = {"version": version, "experiment_id": runs.experiment(kubeflow, "serin-test"), "name": "a run"}
    return runs.Order(**{**values, "arguments": ARGUMENTS, **changes})


def silent(_: str) -> None:
    """Takes a sentence."""


def test_the_same_package_again_uses_the_version_that_is_there(
    fake: FakeKubeflow, kubeflow: Kubeflow, package: Package
) -> None:
    first, again = runs.publish(kubeflow, package), runs.publish(kubeflow, package)
    assert (first.reused, again.reused) == (False, True)
    assert first.id == again.id
    assert len(fake.pipelines) == len(fake.versions) == 1
    stored = fake.versions[first.id]
    assert stored["name"] == package.version_name
    assert stored["pipeline_spec"]["pipelineInfo"]["name"] == "serin-small"


def test_a_pipeline_and_a_version_that_someone_else_makes_in_between_are_adopted(
    fake: FakeKubeflow, kubeflow: Kubeflow, package: Package
) -> None:
    other = Kubeflow(fake.host, fake.host, "serin-test", None, kubeflow.patience)

    def race(method: str, path: str) -> None:
        if method == "POST" and path.endswith("/pipelines"):
            fake.before = None
            runs.publish(other, package)

    fake.before = race
    with other:
        version = runs.publish(kubeflow, package)
    assert len(fake.pipelines) == len(fake.versions) == 1
    assert version.id in fake.versions
    assert fake.sent("POST", "/pipelines$") == 2


def test_a_version_that_someone_else_uploads_in_between_is_adopted(
    fake: FakeKubeflow, kubeflow: Kubeflow, package: Package
) -> None:
    other = Kubeflow(fake.host, fake.host, "serin-test", None, kubeflow.patience)

    def race(method: str, path: str) -> None:
        if method == "POST" and path.endswith("upload_version"):
            fake.before = None
            runs.publish(other, package)

    fake.before = race
    with other:
        version = runs.publish(kubeflow, package)
    assert list(fake.versions) == [version.id]
    assert fake.sent("POST", "upload_version") == 2


def test_a_version_name_that_stands_for_another_pipeline_is_refused(
    kubeflow: Kubeflow, package: Package, tmp_path: Path
) -> None:
    runs.publish(kubeflow, package, "v1")
    changed = tmp_path / "changed.yaml"
    changed.write_text(package.path.read_text().replace("second", "zweite"))
    with pytest.raises(ConfigError, match="Version 'v1' of serin-small is another pipeline already"):
        runs.publish(kubeflow, read_package(changed), "v1")


def test_ir_that_does_not_parse_is_refused_with_the_servers_words(
    kubeflow: Kubeflow, package: Package, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(package.path.read_text().replace("deploymentSpec:", "deploymentSpek:"))
    with pytest.raises(KubeflowError, match=r"refuses to upload version .* \(400\): .*valid pipeline spec"):
        runs.publish(kubeflow, read_package(broken))


def test_a_run_starts_once_with_its_arguments(fake: FakeKubeflow, kubeflow: Kubeflow, package: Package) -> None:
    run = runs.start(kubeflow, order(kubeflow, package, service_account="serin-pipeline", key="abc"), silent)
    stored = fake.runs[run.run_id]
    assert stored["runtime_config"]["parameters"] == ARGUMENTS
    assert stored["service_account"] == "serin-pipeline"
    assert runs.key_of(run) == "abc"
    assert len(fake.runs) == 1


@pytest.mark.parametrize("status", [0, 502])
def test_a_lost_answer_to_a_runs_creation_makes_no_second_run(
    fake: FakeKubeflow, kubeflow: Kubeflow, package: Package, status: int
) -> None:
    wanted = order(kubeflow, package)
    fake.fail("POST", "/runs$", status=status, done=True)
    run = runs.start(kubeflow, wanted, silent)
    assert list(fake.runs) == [run.run_id]
    assert fake.sent("POST", "/runs$") == 1


@pytest.mark.parametrize("status", [0, 503])
def test_a_creation_that_never_happened_is_sent_again(
    fake: FakeKubeflow, kubeflow: Kubeflow, package: Package, status: int
) -> None:
    wanted = order(kubeflow, package)
    fake.fail("POST", "/runs$", status=status, times=2)
    run = runs.start(kubeflow, wanted, silent)
    assert list(fake.runs) == [run.run_id]
    assert fake.sent("POST", "/runs$") == 3


def test_a_second_run_from_a_creation_that_came_late_is_ended(
    fake: FakeKubeflow, kubeflow: Kubeflow, package: Package
) -> None:
    wanted = order(kubeflow, package)
    fake.fail("POST", "/runs$", late=True)
    run = runs.start(kubeflow, wanted, silent)
    assert len(fake.runs) == 2
    assert min(fake.runs) == run.run_id
    assert fake.runs[max(fake.runs)]["state"] == "CANCELED"


def test_a_server_that_stays_away_is_one_sentence(fake: FakeKubeflow, kubeflow: Kubeflow, package: Package) -> None:
    wanted = order(kubeflow, package)
    fake.stop()
    with pytest.raises(KubeflowError, match=r"does not answer \(connection refused or name unknown\)") as caught:
        runs.start(kubeflow, wanted, silent)
    assert caught.value.exit_code == 7
    fake.start()
    assert fake.runs == {}


def test_the_mlflow_plugin_is_used_where_the_server_has_it(
    fake: FakeKubeflow, kubeflow: Kubeflow, package: Package
) -> None:
    fake.plugins = "mlflow"
    said: list[str] = []
    run = runs.start(
        kubeflow, order(kubeflow, package, plugins={"mlflow": {"experiment_name": "assistant"}}), said.append
    )
    output = fake.runs[run.run_id]["plugins_output"]["mlflow"]
    assert output["entries"]["experiment_name"]["value"] == "assistant"
    assert said == ["The server's mlflow plugin follows the run."]


@pytest.mark.parametrize(
    ("server", "sentence"),
    [("none", "This server has no mlflow plugin"), ("old", "This server knows no plugins")],
)
def test_a_server_without_the_plugin_runs_without_it_and_we_say_so(
    fake: FakeKubeflow, kubeflow: Kubeflow, package: Package, server: str, sentence: str
) -> None:
    fake.plugins = server
    said: list[str] = []
    run = runs.start(
        kubeflow, order(kubeflow, package, plugins={"mlflow": {"experiment_name": "assistant"}}), said.append
    )
    assert list(fake.runs) == [run.run_id]
    assert len(said) == 1
    assert sentence in said[0]


@pytest.mark.parametrize("name", sorted(pipelines()))
def test_our_own_pipelines_are_taken_by_the_server_with_their_defaults(
    fake: FakeKubeflow, kubeflow: Kubeflow, environment: Environment, name: str, tmp_path: Path
) -> None:
    package = read_package(compile_pipeline(name, tmp_path, environment))
    required = [f"{one}=x" for one, found in package.parameters.items() if "defaultValue" not in found]
    run = runs.start(kubeflow, order(kubeflow, package, arguments=package.arguments(required)), silent)
    assert list(fake.runs) == [run.run_id]
    assert runs.tasks_of(kubeflow, run) == package.tasks
    assert package.tasks


def test_unknown_settings_of_the_mlflow_plugin_are_refused() -> None:
    assert runs.plugin_settings(["mlflow.disabled=true"]) == {"mlflow": {"disabled": True}}
    with pytest.raises(ConfigError, match="has no setting 'experiment'"):
        runs.plugin_settings(["mlflow.experiment=x"])
    with pytest.raises(ConfigError, match="not of the form"):
        runs.plugin_settings(["mlflow"])
