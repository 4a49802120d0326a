"""What runs on the fake server do, step by step, and how the server lists their tasks."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


@dataclass
class Script:
    """What a run does: one step each time somebody reads it.

    A step maps task names to states; ``RUN`` is the run itself.  Errors are what tasks say when they fail.
    """

    steps: list[dict[str, str]]
    errors: dict[str, str] = field(default_factory=dict)
    at: dict[int, Callable[[str], None]] = field(default_factory=dict)
    """Called with the run's id before that step is shown."""


def succeeding(*tasks: str, at: dict[int, Callable[[str], None]] | None = None) -> Script:
    """Each task runs and succeeds, then the run does."""
    steps: list[dict[str, str]] = [{"RUN": "PENDING"}]
    for task in tasks:
        steps += [{"RUN": "RUNNING", task: "RUNNING"}, {task: "SUCCEEDED"}]
    return Script([*steps, {"RUN": "SUCCEEDED"}], at=at or {})


def failing(*tasks: str, message: str, at: dict[int, Callable[[str], None]] | None = None) -> Script:
    """The last of the tasks fails, and the run with it."""
    script = succeeding(*tasks, at=at)
    script.steps[-2:] = [{tasks[-1]: "FAILED"}, {"RUN": "FAILED"}]
    script.errors[tasks[-1]] = message
    return script


def canceled(*tasks: str, at: dict[int, Callable[[str], None]] | None = None) -> Script:
    """The run is canceled while its last task runs."""
    script = succeeding(*tasks, at=at)
    script.steps[-2:] = [{"RUN": "CANCELING"}, {tasks[-1]: "CANCELED", "RUN": "CANCELED"}]
    return script


def task_details(run: dict[str, Any], errors: dict[str, str]) -> list[dict[str, Any]]:
    """Tasks as the server lists them: between them the workflow's own nodes, in no order that means anything."""
    details = [_detail(run, "root", run["state"]), _detail(run, "root-driver", "SUCCEEDED")]
    for name, state in run["tasks"].items():
        task, executor = _detail(run, name, state), _detail(run, "executor(0)", state)
        task["child_tasks"] = [{"pod_name": executor["pod_name"]}]
        if state == "FAILED":
            executor["error"] = {"code": 2, "message": errors.get(name, "")}
        details += [executor, task, _detail(run, f"{name}-driver", "SUCCEEDED")]
    return details


def _detail(run: dict[str, Any], name: str, state: str) -> dict[str, Any]:
    identifier = uuid.uuid4().hex[:8]
    ended = state in ENDED
    return {
        "run_id": run["run_id"],
        "task_id": identifier,
        "display_name": name,
        "pod_name": f"pod-{identifier}",
        "state": state,
        "start_time": run["created_at"],
        "end_time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}" if ended else "1970-01-01T00:00:00Z",
    }
