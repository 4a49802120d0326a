"""The linter on a pipeline of our own: nothing on the good one, exactly one rule on each broken copy."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kfp import compiler, dsl, kubernetes
from kfp.compiler.compiler_utils import KubernetesManifestOptions
from typer.testing import CliRunner

from serin.core.errors import ConfigError
from serin_pipelines.cli_lint import lint as lint_command
from serin_pipelines.lint import RULES, Finding, lint_file, rule_names

IMAGE = "registry.example/serin/cpu:0.1.0"
Spec = dict[str, Any]
Change = Callable[[Spec, Spec], None]


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare(rows: int, data: dsl.Output[dsl.Dataset]) -> bool:
    return rows > 0


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def score(data: dsl.Input[dsl.Dataset], seed: int, weight: float = 0.5) -> float:
    return seed * weight


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def average(scores: list) -> float:
    return sum(scores) / len(scores)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def double(rows: int) -> float:
    return 2.0 * rows


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(value: float) -> str:
    return "promoted"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def conclude(status: dsl.PipelineTaskFinalStatus) -> None:
    print(status.state)


def place(task: dsl.PipelineTask, effect: str) -> dsl.PipelineTask:
    task.set_cpu_limit("1").set_memory_limit("1Gi").set_caching_options(effect == "pure")
    kubernetes.set_timeout(task, 600)
    kubernetes.set_security_context(task, run_as_user=10001, run_as_non_root=True)
    return kubernetes.add_pod_label(task, "serin.dev/effect", effect)


@dsl.pipeline(name="small", description="Rows to a score, deployed when there are rows.")
def small(rows: int = 3) -> float:
    """Score and deploy.

    Args:
        rows: how many.
    """
    with dsl.ExitHandler(place(conclude(), "acts"), name="guarded"):
        prepared = place(prepare(rows=rows), "pure").set_retry(2)
        kubernetes.use_secret_as_env(prepared, "store", {"key": "AWS_SECRET_ACCESS_KEY"})
        prepared.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(1)
        kubernetes.add_toleration(prepared, key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
        with dsl.ParallelFor([1, 2]) as seed:
            scored = place(score(data=prepared.outputs["data"], seed=seed), "idempotent")
        mean = place(average(scores=dsl.Collected(scored.output)), "pure")
        with dsl.If(prepared.outputs["Output"] == True, name="rows"):  # noqa: E712 - KFP builds the condition
            place(deploy(value=mean.output), "acts")
    return place(double(rows=rows), "pure").output


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ir") / "small.yaml"
    compiler.Compiler().compile(small, str(path))
    return path


@pytest.fixture
def changed(good: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """Writes a copy of the good file with one change made to it."""

    def change(mutation: Change) -> Path:
        spec, platform = yaml.load_all(good.read_text(), Loader=yaml.CSafeLoader)
        mutation(spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"])
        path = tmp_path / "changed.yaml"
        path.write_text(yaml.safe_dump_all([copy.deepcopy(spec), copy.deepcopy(platform)]))
        return path

    return change


def inner(spec: Spec) -> Spec:
    """The tasks inside the exit handler."""
    return spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]


def in_loop(spec: Spec) -> Spec:
    return spec["components"]["comp-for-loop-3"]["dag"]["tasks"]["score"]


def container(spec: Spec, name: str) -> Spec:
    return spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"]


def contain_itself(spec: Spec) -> None:
    again = {"componentRef": {"name": "comp-spare"}}
    spec["components"]["comp-spare"] = {"dag": {"tasks": {"again": again}}}
    spec["root"]["dag"]["tasks"]["spare"] = again


def compare_text(spec: Spec) -> None:
    text = {"parameterType": "STRING"}
    spec["components"]["comp-prepare"]["outputDefinitions"]["parameters"]["Output"] = text
    group = spec["components"]["comp-condition-4"]["inputDefinitions"]
    group["parameters"]["pipelinechannel--prepare-Output"] = text


def env(spec: Spec, name: str, value: str) -> None:
    container(spec, "deploy").update(env=[{"name": name, "value": value}])


def rules(findings: list[Finding]) -> set[str]:
    return {finding.rule for finding in findings}


def test_the_good_pipeline_has_no_finding(good: Path) -> None:
    assert lint_file(good) == []


# Each entry: the rule, the change, and a word of the advice.
STRUCTURAL: list[tuple[str, Change, str]] = [
    ("readable", lambda spec, _: spec.update(components_1={}), "components_1"),
    ("readable", lambda spec, _: spec["root"]["dag"].update(tasks=[1]), "PipelineSpec"),
    ("readable", lambda spec, _: container(spec, "deploy").update(imag="x"), "PipelineDeploymentConfig"),
    ("readable", lambda _, platform: platform["exec-deploy"].update(timeout=3), "KubernetesExecutorConfig"),
    ("name", lambda spec, _: spec["pipelineInfo"].update(name=None), "give @dsl.pipeline a name"),
    ("component-ref", lambda spec, _: inner(spec)["average"]["componentRef"].update(name="comp-sum"), "comp-average"),
    ("executor", lambda spec, _: spec["components"]["comp-deploy"].update(executorLabel="exec-x"), "exec-deploy"),
    ("executor", lambda spec, _: spec["components"]["comp-deploy"].pop("executorLabel"), "executorLabel"),
    ("executor-body", lambda spec, _: container(spec, "deploy").pop("image"), "base_image"),
    ("platform-executor", lambda _, platform: platform.update({"exec-gone": {}}), "exec-average"),
    ("dependency", lambda spec, _: inner(spec)["average"]["dependentTasks"].append("tidy"), "wait for a task of"),
    ("upstream", lambda spec, _: inner(spec)["average"].pop("dependentTasks"), "list it in dependentTasks"),
    ("cycle", lambda spec, _: inner(spec)["prepare"].update(dependentTasks=["condition-4"]), "remove one .after()"),
    ("recursion", lambda spec, _: contain_itself(spec), "call another one"),
    ("final-status", lambda spec, _: spec["root"]["dag"]["tasks"]["conclude"].pop("triggerPolicy"), "COMPLETED"),
    (
        "final-status",
        lambda spec, _: spec["root"]["dag"]["tasks"]["conclude"]["inputs"]["parameters"]["status"].update(
            taskFinalStatus={"producerTask": "gone"}
        ),
        "dsl.ExitHandler",
    ),
    (
        "producer",
        lambda spec, _: inner(spec)["average"]["inputs"]["parameters"]["scores"]["taskOutputParameter"].update(
            producerTask="score"
        ),
        "return it from that group",
    ),
    (
        "producer",
        lambda _, platform: platform["exec-average"].update(
            secretAsEnv=[
                {"secretNameParameter": {"taskOutputParameter": {"producerTask": "gone", "outputParameterKey": "a"}}}
            ]
        ),
        "return it from that group",
    ),
    (
        "output-key",
        lambda spec, _: inner(spec)["for-loop-3"]["inputs"]["artifacts"]["pipelinechannel--prepare-data"][
            "taskOutputArtifact"
        ].update(outputArtifactKey="date"),
        "use one of data",
    ),
    (
        "input-declared",
        lambda spec, _: spec["components"]["comp-exit-handler-1"].pop("inputDefinitions"),
        "pass it into the group",
    ),
    (
        "argument",
        lambda spec, _: in_loop(spec)["inputs"]["parameters"].update(wait={"runtimeValue": {"constant": 1.0}}),
        "use one of seed, weight",
    ),
    ("argument-source", lambda spec, _: in_loop(spec)["inputs"]["parameters"].update(weight={}), "name a value"),
    ("input-required", lambda spec, _: in_loop(spec)["inputs"]["parameters"].pop("seed"), "give the input a default"),
    (
        "parameter-type",
        lambda spec, _: in_loop(spec)["inputs"]["parameters"].update(weight={"runtimeValue": {"constant": "much"}}),
        "convert it",
    ),
    (
        "parameter-type",
        lambda spec, _: spec["root"]["inputDefinitions"]["parameters"]["rows"].update(
            parameterType="STRING", defaultValue="3"
        ),
        "convert it",
    ),
    (
        "artifact-type",
        lambda spec, _: spec["components"]["comp-score"]["inputDefinitions"]["artifacts"]["data"].update(
            artifactType={"schemaTitle": "system.Model"}
        ),
        "pass another one",
    ),
    (
        "condition",
        lambda spec, _: inner(spec)["condition-4"]["triggerPolicy"].update(
            condition="inputs.parameter_values['pipelinechannel--gone'] == true"
        ),
        "add it to the task's inputs",
    ),
    (
        "condition",
        lambda spec, _: inner(spec)["condition-4"]["triggerPolicy"].update(condition="int(3"),
        "compile it again",
    ),
    (
        "iterator",
        lambda spec, _: inner(spec)["for-loop-3"]["parameterIterator"]["items"].update(raw='"one"'),
        "dsl.ParallelFor",
    ),
    (
        "iterator",
        lambda spec, _: inner(spec)["for-loop-3"]["parameterIterator"].update(items={"inputParameter": "gone"}),
        "pass the list to it",
    ),
    (
        "dag-output",
        lambda spec, _: spec["root"]["dag"]["outputs"]["parameters"]["Output"]["valueFromParameter"].update(
            producerSubtask="gone"
        ),
        "use one of conclude, double, exit-handler-1",
    ),
    (
        "dag-output",
        lambda spec, _: spec["root"]["outputDefinitions"]["parameters"]["Output"].update(parameterType="STRING"),
        "declare it as NUMBER_DOUBLE",
    ),
    ("dag-output", lambda spec, _: spec["root"]["dag"].pop("outputs"), "return it from the pipeline"),
    (
        "placeholder",
        lambda spec, _: container(spec, "average")["args"].append("{{$.inputs.parameters['gone']}}"),
        "use a literal",
    ),
    (
        "placeholder",
        lambda spec, _: in_loop(spec)["inputs"]["parameters"].update(
            weight={"runtimeValue": {"constant": "{{$.inputs.parameters['pipelinechannel--gone']}}"}}
        ),
        "use a literal",
    ),
]
HOUSE: list[tuple[str, Change, str]] = [
    ("pinned-image", lambda spec, _: container(spec, "deploy").update(image="serin/cpu:latest"), "@sha256"),
    ("pinned-image", lambda spec, _: container(spec, "deploy").update(image="host:5000/serin/cpu"), "@sha256"),
    ("no-install", lambda spec, _: container(spec, "deploy")["command"].append("pip install -U x"), "into the image"),
    ("no-install", lambda spec, _: container(spec, "deploy")["args"].append("python3 -m pip -q install x"), "image"),
    (
        "known-effect",
        lambda _, platform: platform["exec-average"]["podMetadata"]["labels"].update({"serin.dev/effect": "often"}),
        "pure, idempotent, acts",
    ),
    (
        "uncached-action",
        lambda spec, _: in_loop(spec)["cachingOptions"].update(enableCache=True),
        "set_caching_options(False)",
    ),
    (
        "safe-retry",
        lambda spec, _: inner(spec)["condition-4"].update(retryPolicy={"maxRetryCount": 1}),
        "remove set_retry",
    ),
    ("timeout", lambda _, platform: platform["exec-deploy"].pop("activeDeadlineSeconds"), "kubernetes.set_timeout"),
    ("limits", lambda spec, _: container(spec, "deploy").pop("resources"), "set_cpu_limit(...) and task.set_memory"),
    ("gpu", lambda _, platform: platform["exec-prepare"].pop("tolerations"), "kubernetes.add_toleration"),
    (
        "gpu",
        lambda spec, _: container(spec, "prepare")["resources"].pop("accelerator"),
        "task.set_accelerator_limit",
    ),
    ("non-root", lambda _, platform: platform["exec-deploy"].pop("securityContext"), "run_as_non_root=True"),
    ("non-root", lambda _, platform: platform["exec-deploy"]["securityContext"].update(runAsUser="0"), "run_as_user"),
    ("description", lambda spec, _: spec["pipelineInfo"].pop("description"), "description=..."),
    (
        "parameter-description",
        lambda spec, _: spec["root"]["inputDefinitions"]["parameters"]["rows"].pop("description"),
        "docstring's Args",
    ),
    (
        "few-required",
        lambda spec, _: spec["root"]["inputDefinitions"]["parameters"].update(
            {f"need_{n}": {"parameterType": "STRING", "description": "One."} for n in range(6)}
        ),
        "give some a default",
    ),
    ("scalar-condition", lambda spec, _: compare_text(spec), "return a bool"),
    ("secret-env", lambda spec, _: env(spec, "MLFLOW_TRACKING_PASSWORD", "hunter2"), "use_secret_as_env"),
    ("secret-env", lambda spec, _: env(spec, "DATABASE", "postgres://serin:hunter2@db/serin"), "use_secret_as_env"),
    ("secret-command", lambda spec, _: container(spec, "deploy")["args"].append("API_TOKEN=hunter2"), "use_secret"),
    (
        "secret-argument",
        lambda spec, _: (
            spec["components"]["comp-score"]["inputDefinitions"]["parameters"].update(
                api_key={"parameterType": "STRING"}
            ),
            in_loop(spec)["inputs"]["parameters"].update(api_key={"runtimeValue": {"constant": "hunter2"}}),
        ),
        "use_secret_as_env",
    ),
    (
        "secret-default",
        lambda spec, _: spec["root"]["inputDefinitions"]["parameters"].update(
            settings={
                "parameterType": "STRUCT",
                "description": "All.",
                "defaultValue": {"adminToken": "hunter2"},
            }
        ),
        "use_secret_as_env",
    ),
]


@pytest.mark.parametrize(("rule", "mutation", "advice"), STRUCTURAL)
def test_a_file_that_cannot_run_breaks_exactly_one_rule(
    rule: str, mutation: Change, advice: str, changed: Callable[[Change], Path]
) -> None:
    findings = lint_file(changed(mutation), off=rule_names("house"))
    assert rules(findings) == {rule}, findings
    assert all(finding.kind == "error" and finding.where for finding in findings)
    assert advice in findings[0].message


@pytest.mark.parametrize(("rule", "mutation", "advice"), HOUSE)
def test_a_broken_house_rule_is_named_with_its_fix_and_can_be_switched_off(
    rule: str, mutation: Change, advice: str, changed: Callable[[Change], Path]
) -> None:
    path = changed(mutation)
    findings = lint_file(path)
    assert rules(findings) == {rule}, findings
    assert advice in findings[0].message
    assert findings[0].kind == "house"
    assert "hunter2" not in findings[0].message
    assert lint_file(path, off=[rule]) == []


def test_every_rule_is_tried() -> None:
    apart = {"root", "exit-handler"}
    assert {rule for rule, _, _ in STRUCTURAL} | apart >= set(rule_names("error"))
    assert {rule for rule, _, _ in HOUSE} | apart >= set(rule_names("house"))
    assert set(RULES) == set(rule_names())


@dsl.pipeline(name="bare", description="An action with nobody to tell.")
def bare() -> None:
    with dsl.ParallelFor([0.5, 0.7]) as value:
        deploy(value=value)


def test_an_action_outside_an_exit_handler_is_found_by_its_name_too(tmp_path: Path) -> None:
    compiler.Compiler().compile(bare, str(tmp_path / "bare.yaml"))
    findings = lint_file(tmp_path / "bare.yaml")
    assert rules(findings) == {"exit-handler", "timeout", "limits", "non-root", "uncached-action"}
    assert "dsl.ExitHandler" in next(one.message for one in findings if one.rule == "exit-handler")


@dsl.pipeline(name="trap", description="A limit from a parameter inside a condition.")
def trap(cpu: str = "1", rows: int = 2) -> None:
    with dsl.If(rows == 2):
        prepare(rows=3).set_cpu_limit(cpu)


def test_a_limit_from_a_parameter_inside_a_condition_is_a_dangling_reference(tmp_path: Path) -> None:
    compiler.Compiler().compile(trap, str(tmp_path / "trap.yaml"))
    found = lint_file(tmp_path / "trap.yaml", off=rule_names("house"))
    assert rules(found) == {"input-declared"}
    assert "use a literal" in found[0].message


def test_a_component_alone_is_not_asked_for_its_placement(tmp_path: Path) -> None:
    compiler.Compiler().compile(deploy, str(tmp_path / "deploy.yaml"))
    assert rules(lint_file(tmp_path / "deploy.yaml")) == {"description", "parameter-description"}


def test_a_kubernetes_manifest_is_linted_like_its_ir(tmp_path: Path) -> None:
    options = KubernetesManifestOptions(pipeline_name="small", namespace="serin", include_pipeline_manifest=True)
    target = str(tmp_path / "small.yaml")
    compiler.Compiler().compile(small, target, kubernetes_manifest_format=True, kubernetes_manifest_options=options)
    assert lint_file(Path(target)) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"# only a comment\n", "empty"),
        (b"a: [", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"- one\n", "no mapping but a list"),
        (b"{}\n---\n{}\n---\n{}\n", "3 documents"),
        (b"root: {dag: {tasks: {a: {}, a: {}}}}", "'a' is there twice"),
        (b"root: &a\n  dag: *a\n", "does not parse"),
        (b"1: 2\n", "does not parse"),
        (b"name: echo\nimplementation: {container: {image: x}}\n", "does not parse"),
        (b"kind: PipelineVersion\nspec: {pipelineSpec: [1]}\n", "no mapping"),
    ],
)
def test_a_file_that_is_no_ir_is_one_finding(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    (finding,) = lint_file(path)
    assert (finding.rule, finding.kind) == ("readable", "error")
    assert said in finding.message


def test_a_pipeline_without_tasks_has_no_root(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("pipelineInfo: {name: a, description: b}\nroot: {dag: {}}\n")
    assert rules(lint_file(path)) == {"root"}


def test_a_missing_file_and_a_wrong_rule_name_are_errors(good: Path) -> None:
    with pytest.raises(ConfigError, match="no IR file"):
        lint_file(good.with_name("gone.yaml"))
    with pytest.raises(ConfigError, match="There is no rule 'times'"):
        lint_file(good, off=["times"])
    with pytest.raises(ConfigError, match="cannot be switched off"):
        lint_file(good, off=["cycle"])


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of everything in nested mappings and lists."""
    found = [prefix] if prefix else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        found += paths(inside, (*prefix, key))
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_file_raises(data: st.DataObject, good: Path, tmp_path: Path) -> None:
    spec, platform = yaml.load_all(good.read_text(), Loader=yaml.CSafeLoader)
    both = {"spec": spec, "platform": platform}
    place = data.draw(st.sampled_from(paths(both)[2:]))
    holder: Any = both
    for key in place[:-1]:
        holder = holder[key]
    if data.draw(st.booleans()):
        holder[place[-1]] = data.draw(st.sampled_from([None, "", "x", 1, -1.5, True, [], {}, [{}], {"a": "b"}]))
    else:
        del holder[place[-1]]
    path = tmp_path / "damaged.yaml"
    path.write_text(yaml.dump_all([both.get("spec"), both.get("platform")], Dumper=yaml.CSafeDumper))
    findings = lint_file(path)
    assert findings == sorted(findings, key=lambda one: (one.kind, one.where, one.rule, one.message))
    assert all(one.rule in RULES and one.message and "\n" not in one.message for one in findings)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_no_bytes_raise(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bytes.yaml"
    path.write_bytes(content)
    assert all(one.kind in ("error", "house") for one in lint_file(path))


def cli(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(lint_command)
    return CliRunner().invoke(app, arguments)


def test_the_command_prints_a_line_for_each_finding_and_ends_with_3(
    good: Path, changed: Callable[[Change], Path]
) -> None:
    bad = changed(lambda _, platform: platform["exec-deploy"].pop("activeDeadlineSeconds"))
    result = cli(str(good), str(bad))
    assert result.exit_code == 3
    (line,) = result.output.splitlines()
    assert line.startswith(f"{bad}: comp-condition-4/deploy: task 'deploy' may run for ever")
    assert line.endswith("[timeout]")
    assert cli(str(bad), "--off", "timeout").exit_code == 0


def test_the_command_as_json(good: Path) -> None:
    result = cli(str(good), "--json")
    assert json.loads(result.output) == {"ok": True, "files": {str(good): []}}


def test_the_command_lists_the_rules_and_asks_for_a_file() -> None:
    listed = cli("--rules").output
    assert all(name in listed and line in listed for name, line in RULES.items())
    assert json.loads(cli("--rules", "--json").output)["house"]["timeout"] == RULES["timeout"]
    assert cli().exit_code == 2
