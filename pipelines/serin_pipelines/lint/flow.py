"""Structural rules on what there is and in which order it runs: components, executors, dependencies."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serin_pipelines.lint.document import PLACED, Document, Task
from serin_pipelines.lint.findings import Rule

Found = Iterator[tuple[str, str]]
COMPLETED = "ALL_UPSTREAM_TASKS_COMPLETED"
"""The trigger strategy of exit tasks and of tasks that ignore a failure upstream."""


def has_name(document: Document) -> Found:
    if not document.name:
        yield "file", "pipelineInfo.name is missing: give @dsl.pipeline a name"


def has_root(document: Document) -> Found:
    if not document.root:
        yield "file", "there is no root: compile a pipeline or a component"
    elif "dag" in document.root and not document.root["dag"].get("tasks"):
        yield "root", "the pipeline has no tasks: call a component in it"


def components_exist(document: Document) -> Found:
    for task in document.tasks:
        if task.component_name not in document.components:
            yield (
                task.where,
                f"task {task.name!r} refers to component {task.component_name!r}, which is not there: "
                f"{_one_of(document.components)}",
            )


def executors_exist(document: Document) -> Found:
    for name, component in {"root": document.root, **document.components}.items():
        if not component or "dag" in component:
            continue
        label = component.get("executorLabel", "")
        if not label:
            yield name, f"component {name!r} has neither a DAG nor an executor: give it an executorLabel"
        elif label not in document.executors:
            yield name, f"component {name!r} runs executor {label!r}, which is not there: {_one_of(document.executors)}"


def executors_run(document: Document) -> Found:
    for label, executor in document.executors.items():
        if not executor:
            yield label, f"executor {label!r} runs nothing: give it a container or an importer"
        elif "container" in executor and not executor["container"].get("image"):
            yield label, f"executor {label!r} names no image: say @dsl.component(base_image=...)"


def platform_executors_exist(document: Document) -> Found:
    for label in document.platform:
        if label not in document.executors:
            yield (
                label,
                f"the platform document configures executor {label!r}, which is not there: "
                f"{_one_of(document.executors)}",
            )


def dependencies_exist(document: Document) -> Found:
    for task in document.tasks:
        for name in task.dependencies:
            if name not in document.dags[task.dag].tasks:
                yield (
                    task.where,
                    f"task {task.name!r} waits for {name!r}, which is not in its DAG: wait for a task of {task.dag!r}",
                )


def producers_come_first(document: Document) -> Found:
    for task in document.tasks:
        siblings = document.dags[task.dag].tasks
        before = reachable(task.name, {name: sibling.dependencies for name, sibling in siblings.items()})
        for name in sorted(producers(task) & set(siblings) - set(before) - {task.name}):
            yield (
                task.where,
                f"task {task.name!r} reads an output of {name!r} without waiting for it: list it in dependentTasks",
            )


def no_cycles(document: Document) -> Found:
    for dag in document.dags.values():
        edges = {name: [*task.dependencies, *producers(task)] for name, task in dag.tasks.items()}
        for name in dag.tasks:
            if name in reachable(name, edges):
                yield f"{dag.name}/{name}", f"task {name!r} waits for itself in a circle: remove one .after() or input"


def no_recursion(document: Document) -> Found:
    edges = {name: [task.component_name for task in dag.tasks.values()] for name, dag in document.dags.items()}
    for name in document.dags:
        if name in reachable(name, edges):
            yield name, f"component {name!r} contains itself: call another one in it"


def exit_tasks_wait(document: Document) -> Found:
    for task in document.tasks:
        for name, argument in task.arguments("parameters").items():
            status = argument.get("taskFinalStatus")
            if status is None:
                continue
            watched = status.get("producerTask", "")
            if watched not in document.dags[task.dag].tasks:
                yield (
                    task.where,
                    f"task {task.name!r} reads the final status of {watched!r}, which is not in its DAG: "
                    "use dsl.ExitHandler",
                )
            elif task.spec.get("triggerPolicy", {}).get("strategy") != COMPLETED:
                yield (
                    task.where,
                    f"task {task.name!r} reads a final status as {name!r} but is skipped on failure: "
                    f"its triggerPolicy.strategy must be {COMPLETED}",
                )


def producers(task: Task) -> set[str]:
    """Tasks whose outputs or status a task reads, through its inputs or its platform settings."""
    parameters = task.arguments("parameters")
    if PLACED & set(parameters):  # KFP itself does not wait for outputs that set limits
        parameters = {name: value for name, value in parameters.items() if name in task.inputs("parameters")}
    read = [*produced(parameters), *produced(task.arguments("artifacts")), *produced(task.platform)]
    return {producer for producer, _, _ in read}


def produced(values: Any) -> Iterator[tuple[str, str, str]]:
    """References to outputs at any depth of a mapping: (task, kind, key); a final status has neither of the latter."""
    if isinstance(values, Mapping):
        for field, value in values.items():
            if field == "taskOutputParameter":
                yield value.get("producerTask", ""), "parameters", value.get("outputParameterKey", "")
            elif field == "taskOutputArtifact":
                yield value.get("producerTask", ""), "artifacts", value.get("outputArtifactKey", "")
            elif field == "taskFinalStatus":
                yield value.get("producerTask", ""), "", ""
            elif field != "runtimeValue":
                yield from produced(value)
    elif isinstance(values, list):
        for value in values:
            yield from produced(value)


def reachable(start: str, edges: Mapping[str, Sequence[str]]) -> set[str]:
    """What can be reached from a node by its edges, itself only through a circle."""
    found: set[str] = set()
    waiting = list(edges.get(start, []))
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += edges.get(node, [])
    return found


def _one_of(names: Mapping[str, Any]) -> str:
    known = sorted(names)
    return f"use one of {', '.join(known[:8])}" if known else "there is none at all, so compile it again"


FLOW = (
    Rule("name", "The pipeline has a name.", has_name),
    Rule("root", "There is a root with at least one task.", has_root),
    Rule("component-ref", "Every task's component is there.", components_exist),
    Rule("executor", "Every component's executor is there.", executors_exist),
    Rule("executor-body", "Every executor runs something, a container an image.", executors_run),
    Rule("platform-executor", "Platform settings belong to executors that are there.", platform_executors_exist),
    Rule("dependency", "A task waits for tasks of its own DAG.", dependencies_exist),
    Rule("upstream", "A task waits for those whose outputs it reads.", producers_come_first),
    Rule("cycle", "No task waits for itself.", no_cycles),
    Rule("recursion", "No component contains itself.", no_recursion),
    Rule("final-status", "A task that reads a final status is run after a failure too.", exit_tasks_wait),
)
