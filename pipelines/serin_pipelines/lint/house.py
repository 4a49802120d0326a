"""House rules: what runs well on a shared cluster and can be run again, beyond what Kubeflow asks for."""

import re
from collections.abc import Iterator

from serin_pipelines.lint.document import EFFECT_LABEL, Document, Task
from serin_pipelines.lint.findings import Rule
from serin_pipelines.lint.flow import COMPLETED, reachable
from serin_pipelines.lint.references import CONDITION_INPUT
from serin_pipelines.lint.types import parameter_type

Found = Iterator[tuple[str, str]]
EFFECTS = ("pure", "idempotent", "acts")
MAX_REQUIRED = 5
"""Parameters that a person must fill in before a run starts."""
INSTALLS = re.compile(r"\b(?:pip3?|python3? -m pip|uv pip|conda|apt-get|apt) +(?:-\S+ +)*install\b")
SCALARS = ("BOOLEAN", "NUMBER_INTEGER", "NUMBER_DOUBLE")


def images_are_pinned(document: Document) -> Found:
    for task in document.container_tasks:
        image = task.container.get("image", "")
        if image and "{{" not in image and not _is_pinned(image):
            yield (
                task.where,
                f"task {task.name!r} runs image {image!r}, which can change: "
                "pin it by @sha256:..., or by a version as :1.2.3",
            )


def nothing_is_installed(document: Document) -> Found:
    for task in document.container_tasks:
        command = " ".join([*task.container.get("command", []), *task.container.get("args", [])])
        if INSTALLS.search(command):
            yield (
                task.where,
                f"task {task.name!r} installs packages when it starts: build them into the image and say "
                "@dsl.component(install_kfp_package=False) without packages_to_install",
            )


def effects_are_known(document: Document) -> Found:
    for task in document.container_tasks:
        if task.effect_said and task.effect_said not in EFFECTS:
            yield (
                task.where,
                f"task {task.name!r} has {EFFECT_LABEL} {task.effect_said!r}: say one of {', '.join(EFFECTS)}",
            )


def acting_tasks_are_not_cached(document: Document) -> Found:
    for task in _placed(document):
        caches = task.container and task.spec.get("cachingOptions", {}).get("enableCache")
        if caches and task.effect in ("acts", "idempotent"):
            yield (
                task.where,
                f"task {task.name!r} changes something outside ({task.effect}) and would be skipped by the cache: "
                "say task.set_caching_options(False)",
            )


def only_repeatable_tasks_retry(document: Document) -> Found:
    for task in document.tasks:
        if not task.spec.get("retryPolicy", {}).get("maxRetryCount"):
            continue
        acting = [one.name for one in _with_inner(document, task) if one.effect == "acts"]
        if acting:
            yield (
                task.where,
                f"task {task.name!r} is retried, and {', '.join(map(repr, acting))} must not act twice: "
                f"remove set_retry, or label it {EFFECT_LABEL}=idempotent if it may",
            )


def containers_have_a_timeout(document: Document) -> Found:
    for task in _placed_containers(document):
        if int(task.platform.get("activeDeadlineSeconds", 0)) <= 0:
            yield task.where, f"task {task.name!r} may run for ever: say kubernetes.set_timeout(task, seconds)"


def containers_have_limits(document: Document) -> Found:
    for task in _placed_containers(document):
        resources = task.container.get("resources", {})
        missing = [
            f"task.set_{name}_limit(...)"
            for name in ("cpu", "memory")
            if not (resources.get(f"resource{name.title()}Limit") or resources.get(f"{name}Limit"))
        ]
        if missing:
            yield task.where, f"task {task.name!r} may take a whole node: say {' and '.join(missing)}"


def gpu_tasks_are_complete(document: Document) -> Found:
    for task in _placed_containers(document):
        accelerator = task.container.get("resources", {}).get("accelerator", {})
        tolerations = [one for one in task.platform.get("tolerations", []) if _is_gpu_toleration(one)]
        if not accelerator and not tolerations:
            continue
        missing = []
        if accelerator.get("resourceCount", accelerator.get("count", "0")) in ("0", ""):
            missing.append("task.set_accelerator_limit(1)")
        if not tolerations:
            missing.append("kubernetes.add_toleration(task, key=..., operator='Exists', effect='NoSchedule')")
        if int(task.platform.get("activeDeadlineSeconds", 0)) <= 0:
            missing.append("kubernetes.set_timeout(task, seconds)")
        if missing:
            yield task.where, f"GPU task {task.name!r} is not complete: say {' and '.join(missing)}"


def containers_are_not_root(document: Document) -> Found:
    for task in _placed_containers(document):
        context = task.platform.get("securityContext", {})
        if not context.get("runAsNonRoot") or context.get("runAsUser") == "0":
            yield (
                task.where,
                f"task {task.name!r} may run as root: "
                "say kubernetes.set_security_context(task, run_as_user=..., run_as_non_root=True)",
            )


def actions_are_guarded(document: Document) -> Found:
    if document.is_component:
        return
    exits = [task for task in document.tasks if _is_exit_task(document, task)]
    groups = [document.dags[task.dag].tasks[name] for task in exits for name in task.dependencies]
    covered = {inner.where for group in (*exits, *groups) for inner in _with_inner(document, group)}
    bare = sorted({task.name for task in document.tasks if task.effect == "acts" and task.where not in covered})
    if bare:
        yield (
            "root",
            f"{', '.join(map(repr, bare))} can fail with nobody told: wrap them in dsl.ExitHandler(exit_task)",
        )


def pipeline_is_described(document: Document) -> Found:
    if not document.spec.get("pipelineInfo", {}).get("description"):
        yield "file", f"{document.name!r} has no description: give @dsl.pipeline(description=...) one"


def parameters_are_described(document: Document) -> Found:
    for kind in ("parameters", "artifacts"):
        for name, spec in document.root.get("inputDefinitions", {}).get(kind, {}).items():
            if not spec.get("description"):
                yield "root", f"parameter {name!r} has no description: add it to the docstring's Args"


def few_parameters_are_required(document: Document) -> Found:
    specs = document.root.get("inputDefinitions", {}).get("parameters", {})
    required = [name for name, spec in specs.items() if not spec.get("isOptional") and "defaultValue" not in spec]
    if len(required) > MAX_REQUIRED:
        yield "root", f"{len(required)} parameters must be filled in, {MAX_REQUIRED} at most: give some a default"


def conditions_are_scalar(document: Document) -> Found:
    for task in document.tasks:
        condition = task.spec.get("triggerPolicy", {}).get("condition", "")
        for name in sorted(set(CONDITION_INPUT.findall(condition))):
            kind = parameter_type(document.dags[task.dag], task.arguments("parameters").get(name, {}))
            if kind and kind not in SCALARS:
                yield (
                    task.where,
                    f"the condition of {task.name!r} compares {name!r}, a {kind}, and what cannot be compared is "
                    "false without a word: return a bool, an int or a float and compare that",
                )


def _is_pinned(image: str) -> bool:
    if re.search(r"@sha256:[0-9a-f]{64}$", image):
        return True
    _, colon, tag = image.rpartition("/")[2].partition(":")
    return bool(colon) and bool(re.match(r"v?\d+\.\d+", tag) or re.fullmatch(r"[0-9a-f]{7,64}", tag))


def _placed(document: Document) -> list[Task]:
    """Tasks whose placement the file can say; that of a component alone is up to the pipeline that calls it."""
    return [] if document.is_component else list(document.tasks)


def _placed_containers(document: Document) -> list[Task]:
    return [] if document.is_component else list(document.container_tasks)


def _is_gpu_toleration(toleration: dict[str, str]) -> bool:
    return "gpu" in toleration.get("key", "").lower()


def _with_inner(document: Document, task: Task) -> list[Task]:
    """A task and, for a group, all tasks in it."""
    edges = {name: [inner.component_name for inner in dag.tasks.values()] for name, dag in document.dags.items()}
    inner = {task.component_name} | reachable(task.component_name, edges)
    return [task, *(one for one in document.tasks if one.dag in inner)]


def _is_exit_task(document: Document, task: Task) -> bool:
    """Whether a task runs at the end of a group, however that ended."""
    siblings = document.dags[task.dag].tasks
    waits = [siblings[name] for name in task.dependencies if name in siblings]
    completed = task.spec.get("triggerPolicy", {}).get("strategy") == COMPLETED
    return completed and bool(waits) and all(one.is_group for one in waits)


HOUSE = (
    Rule("pinned-image", "Images are pinned by digest or version.", images_are_pinned),
    Rule("no-install", "Nothing is installed when a task starts.", nothing_is_installed),
    Rule("known-effect", f"{EFFECT_LABEL} is pure, idempotent or acts.", effects_are_known),
    Rule("uncached-action", "Tasks that change something outside are not cached.", acting_tasks_are_not_cached),
    Rule("safe-retry", "Only tasks that may run twice are retried.", only_repeatable_tasks_retry),
    Rule("timeout", "Every container has a timeout.", containers_have_a_timeout),
    Rule("limits", "Every container has limits of CPU and memory.", containers_have_limits),
    Rule("gpu", "A GPU task has a limit, a toleration and a timeout.", gpu_tasks_are_complete),
    Rule("non-root", "Containers do not run as root.", containers_are_not_root),
    Rule("exit-handler", "Tasks that act are inside an exit handler.", actions_are_guarded),
    Rule("description", "The pipeline has a description.", pipeline_is_described),
    Rule("parameter-description", "Every parameter has a description.", parameters_are_described),
    Rule("few-required", f"At most {MAX_REQUIRED} parameters are required.", few_parameters_are_required),
    Rule("scalar-condition", "Conditions compare bool, int or float.", conditions_are_scalar),
)
