"""Structural rules on what is read from where: inputs, outputs, types, conditions, loops, placeholders."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from serin_pipelines.lint.document import PLACED, Dag, Document, Task, declared
from serin_pipelines.lint.findings import Rule
from serin_pipelines.lint.flow import produced
from serin_pipelines.lint.types import LIST_OF, artifact_type, fits, parameter_type

Found = Iterator[tuple[str, str]]
KINDS = ("parameters", "artifacts")
PLACEHOLDER = re.compile(r"\{\{\$\.(inputs|outputs)\.(parameters|artifacts)\[\s*\\*['\"]([^'\"\\]+)\\*['\"]\s*\]")
PRESENCE = re.compile(r"\"InputName\"\s*:\s*\"([^\"]+)\"")
CONDITION_INPUT = re.compile(r"inputs\.(?:parameter_values|parameters)\[\s*['\"]([^'\"]+)['\"]\s*\]")


def producers_exist(document: Document) -> Found:
    for task in document.tasks:
        siblings = document.dags[task.dag].tasks
        for name, kind, key in _outputs_read(task):
            if kind and name not in siblings:
                yield (
                    task.where,
                    f"task {task.name!r} reads {key!r} of task {name!r}, which is not in its DAG: "
                    f"return it from that group, or read it in {task.dag!r}",
                )


def outputs_exist(document: Document) -> Found:
    for task in document.tasks:
        siblings = document.dags[task.dag].tasks
        for name, kind, key in _outputs_read(task):
            producer = siblings.get(name)
            if kind and producer and producer.component and key not in producer.outputs(kind):
                yield task.where, f"task {task.name!r} reads {key!r} of {name!r}: {_one_of(producer.outputs(kind))}"


def inputs_are_declared(document: Document) -> Found:
    for task in document.tasks:
        dag = document.dags[task.dag]
        for kind, name in _inputs_read({"inputs": task.spec.get("inputs", {}), "platform": task.platform}):
            if name not in dag.inputs(kind):
                yield (
                    task.where,
                    f"task {task.name!r} reads input {name!r}, which {dag.name!r} does not declare: "
                    "use a literal, or pass it into the group",
                )


def arguments_are_declared(document: Document) -> Found:
    for task in document.tasks:
        for kind in KINDS:
            for name in task.arguments(kind):
                internal = name.startswith("pipelinechannel--") or name in PLACED
                if task.component and not internal and name not in task.inputs(kind):
                    yield (
                        task.where,
                        f"task {task.name!r} is given {name!r}, which its component does not declare: "
                        f"{_one_of(task.inputs(kind))}",
                    )


def arguments_say_something(document: Document) -> Found:
    for task in document.tasks:
        for kind in KINDS:
            for name, argument in task.arguments(kind).items():
                if not set(argument) - {"parameterExpressionSelector"}:
                    yield (
                        task.where,
                        f"task {task.name!r} gives {name!r} from nowhere: name a value, an input or a task",
                    )


def required_inputs_are_given(document: Document) -> Found:
    for task in document.tasks:
        item = task.iterator.get("itemInput", "")
        for kind in KINDS:
            for name, spec in task.inputs(kind).items():
                if name != item and name not in task.arguments(kind) and _is_required(spec):
                    yield task.where, f"task {task.name!r} lacks {name!r}: pass it, or give the input a default"


def parameter_types_fit(document: Document) -> Found:
    for task in document.tasks:
        for name, argument in task.arguments("parameters").items():
            wanted = task.inputs("parameters").get(name, {}).get("parameterType", "")
            given = parameter_type(document.dags[task.dag], argument)
            if wanted and given and not fits(given, wanted, argument):
                yield (
                    task.where,
                    f"task {task.name!r} takes {name!r} as {wanted} and is given {given}: convert it before",
                )


def artifact_types_fit(document: Document) -> Found:
    for task in document.tasks:
        for name, argument in task.arguments("artifacts").items():
            spec = task.inputs("artifacts").get(name)
            wanted = artifact_type(spec) if spec else ""
            given = _given_artifact(document.dags[task.dag], argument)
            generic = {title.removeprefix(LIST_OF) for title in (wanted, given)} & {"system.Artifact", ""}
            if wanted and given and not generic and wanted != given:
                yield (
                    task.where,
                    f"task {task.name!r} takes {name!r} as {wanted} and is given {given}: pass another one",
                )


def conditions_use_inputs(document: Document) -> Found:
    for task in document.tasks:
        condition = task.spec.get("triggerPolicy", {}).get("condition", "")
        for name in sorted(set(CONDITION_INPUT.findall(condition))):
            if name not in task.arguments("parameters"):
                yield (
                    task.where,
                    f"the condition of {task.name!r} reads {name!r}, which the task is not given, so it would be "
                    "false without a word: add it to the task's inputs",
                )
        if _outside_quotes(condition).count("(") != _outside_quotes(condition).count(")"):
            yield task.where, f"the condition of {task.name!r} has unbalanced brackets: compile it again"


def loops_have_items(document: Document) -> Found:
    for task in document.tasks:
        if not task.iterator:
            continue
        kind = "parameters" if "parameterIterator" in task.spec else "artifacts"
        item, items = task.iterator.get("itemInput", ""), task.iterator.get("items", {})
        if task.component and item not in task.inputs(kind):
            yield task.where, f"loop {task.name!r} gives its item as {item!r}: {_one_of(task.inputs(kind))}"
        source = items.get("inputParameter") or items.get("inputArtifact")
        if source and source not in task.arguments(kind):
            yield task.where, f"loop {task.name!r} runs over {source!r}, which it is not given: pass the list to it"
        if not source and not _is_list(items.get("raw", "")):
            yield task.where, f"loop {task.name!r} runs over no list: give dsl.ParallelFor a list or an output"


def dag_outputs_exist(document: Document) -> Found:
    for dag in document.dags.values():
        for kind in KINDS:
            promised = declared(dag.component, "outputDefinitions", kind)
            sources = dag.outputs.get(kind, {})
            for name in sorted(set(promised) ^ set(sources)):
                said = "declared but comes from no task" if name in promised else "made but not declared"
                yield dag.name, f"output {name!r} of {dag.name!r} is {said}: return it from the pipeline"
            for name, source in sources.items():
                for selector in _selectors(source):
                    yield from _selected(dag, kind, name, selector, promised.get(name, {}))


def placeholders_have_values(document: Document) -> Found:
    for task in document.tasks:
        for side, kind, name in sorted(_placeholders(task)):
            known = task.outputs(kind) if side == "outputs" else {**task.inputs(kind), **task.arguments(kind)}
            if name not in known:
                yield (
                    task.where,
                    f"task {task.name!r} uses a placeholder of {side[:-1]} {name!r}, which it does not have: "
                    "use a literal, since limits from parameters do not reach into groups",
                )


def _outputs_read(task: Task) -> Iterator[tuple[str, str, str]]:
    yield from produced(task.spec.get("inputs", {}))
    yield from produced(task.platform)


def _inputs_read(values: Any) -> Iterator[tuple[str, str]]:
    """(kind, name) of the DAG's inputs that are read at any depth."""
    if isinstance(values, Mapping):
        for field, value in values.items():
            if field in ("componentInputParameter", "componentInputArtifact"):
                yield f"{field.removeprefix('componentInput').lower()}s", str(value)
            elif field != "runtimeValue":
                yield from _inputs_read(value)
    elif isinstance(values, list):
        for value in values:
            yield from _inputs_read(value)


def _is_required(spec: Mapping[str, Any]) -> bool:
    injected = spec.get("parameterType") in ("TASK_FINAL_STATUS", "TASK_CONFIG")
    return not injected and not spec.get("isOptional") and "defaultValue" not in spec


def _given_artifact(dag: Dag, argument: Mapping[str, Any]) -> str:
    if name := argument.get("componentInputArtifact"):
        return artifact_type(dag.inputs("artifacts").get(name, {}))
    source = argument.get("taskOutputArtifact", {})
    producer = dag.tasks.get(source.get("producerTask", ""))
    spec = producer.outputs("artifacts").get(source.get("outputArtifactKey", "")) if producer else None
    if producer and producer.iterator and spec:
        return artifact_type({**spec, "isArtifactList": True})
    return artifact_type(spec or {})


def _outside_quotes(condition: str) -> str:
    return re.sub(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", "", condition)


def _is_list(raw: str) -> bool:
    try:
        return isinstance(json.loads(raw), list)
    except (ValueError, RecursionError):
        return "{{" in raw  # filled in when the run starts


def _selectors(source: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a DAG's output may come from: one task, or one of several."""
    if "valueFromParameter" in source:
        return [source["valueFromParameter"]]
    return list(source.get("valueFromOneof", {}).get("parameterSelectors", [])) + list(
        source.get("artifactSelectors", [])
    )


def _selected(dag: Dag, kind: str, name: str, selector: Mapping[str, Any], promised: Mapping[str, Any]) -> Found:
    subtask = selector.get("producerSubtask", "")
    key = selector.get("outputParameterKey") or selector.get("outputArtifactKey") or ""
    producer = dag.tasks.get(subtask)
    if producer is None:
        yield dag.name, f"output {name!r} of {dag.name!r} comes from task {subtask!r}: {_one_of(dag.tasks)}"
    elif producer.component and key not in producer.outputs(kind):
        yield dag.name, f"output {name!r} of {dag.name!r} is {key!r} of {subtask!r}: {_one_of(producer.outputs(kind))}"
    elif kind == "parameters" and producer.component:
        wanted = promised.get("parameterType", "")
        given = "LIST" if producer.iterator else producer.outputs(kind)[key].get("parameterType", "")
        # A group declares what dsl.Collected gathers as a list of what one round makes.
        collected = name.startswith("pipelinechannel--") and wanted == "LIST"
        if wanted and given and wanted != given and not collected:
            yield (
                dag.name,
                f"output {name!r} of {dag.name!r} is declared {wanted} and is {given}: declare it as {given}",
            )


def _placeholders(task: Task) -> set[tuple[str, str, str]]:
    """(inputs or outputs, kind, name) of the placeholders in a task's constants and in its executor."""
    constants = [argument.get("runtimeValue") for argument in task.arguments("parameters").values()]
    text = json.dumps([constants, task.executor], ensure_ascii=False)
    found = {(side, kind, name) for side, kind, name in PLACEHOLDER.findall(text)}
    for name in PRESENCE.findall(text.replace("\\", "")):
        found.add(("inputs", "artifacts" if name in task.inputs("artifacts") else "parameters", name))
    runtime = task.executor.get("importer", {}).get("artifactUri", {}).get("runtimeParameter")
    return found | ({("inputs", "parameters", runtime)} if runtime else set())


def _one_of(names: Mapping[str, Any]) -> str:
    known = sorted(names)
    return f"use one of {', '.join(known[:8])}" if known else "there is none of that kind, so declare it"


REFERENCES = (
    Rule("producer", "A task reads outputs of tasks in its own DAG.", producers_exist),
    Rule("output-key", "The outputs that are read are declared.", outputs_exist),
    Rule("input-declared", "The inputs that are read are declared by the DAG.", inputs_are_declared),
    Rule("argument", "A task is given inputs that its component declares.", arguments_are_declared),
    Rule("argument-source", "Every argument has a source.", arguments_say_something),
    Rule("input-required", "Required inputs are given.", required_inputs_are_given),
    Rule("parameter-type", "Parameters are of the type that the component takes.", parameter_types_fit),
    Rule("artifact-type", "Artefacts are of the type that the component takes.", artifact_types_fit),
    Rule("condition", "Conditions read inputs that the task is given.", conditions_use_inputs),
    Rule("iterator", "Loops have a list and hand on an item.", loops_have_items),
    Rule("dag-output", "A DAG's outputs come from its tasks, with the declared type.", dag_outputs_exist),
    Rule("placeholder", "Placeholders name inputs and outputs of the task.", placeholders_have_values),
)
