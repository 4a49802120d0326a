"""Follow a run to its end: our own wait loop.

The SDK's takes FAILED for an end like any other, never ends on CANCELED, and gives up at the first lost connection.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from serin.core.errors import InterruptedRunError
from serin_pipelines.kubeflow.client import NOT_FOUND, Kubeflow, KubeflowError

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
WEIGHT = ("SKIPPED", "SUCCEEDED", "PENDING", "PAUSED", "RUNNING", "CANCELING", "CANCELED", "FAILED")
"""A task that runs several times (in a loop) shows the weightiest of its states."""
HIDDEN = ("root", "executor")
"""Nodes of the workflow that are no tasks of the pipeline."""


@dataclass(frozen=True)
class Watch:
    """How to follow."""

    poll_s: float = 5.0
    timeout_s: float = 86400.0
    """Following ends after this long; the run goes on."""
    lost_s: float = 600.0
    """A server that is away is waited for this long."""


@dataclass(frozen=True)
class TaskView:
    """One task."""

    name: str
    state: str
    error: str = ""
    started: datetime | None = None
    ended: datetime | None = None

    @property
    def seconds(self) -> float | None:
        """How long it took; None while it has not ended."""
        return (self.ended - self.started).total_seconds() if self.started and self.ended else None


@dataclass(frozen=True)
class RunView:
    """A run as it is now."""

    run_id: str
    name: str
    state: str
    url: str
    tasks: tuple[TaskView, ...] = ()
    error: str = ""

    @property
    def failed_task(self) -> TaskView | None:
        """The task that failed first; the innermost, where a condition or a loop failed with it."""
        failed = [(task.ended is None, task.ended, -at) for at, task in enumerate(self.tasks) if task.state == "FAILED"]
        return self.tasks[-min(failed)[2]] if failed else None

    def sentence(self) -> str:
        """How it ended, for people."""
        if self.state == "FAILED":
            task = self.failed_task
            where = f"failed in task {task.name!r}" if task else "failed"
            return f"Run {self.run_id} {where}: {(task and task.error) or self.error or 'the server gives no reason'}"
        ends = {"SUCCEEDED": "succeeded", "CANCELED": "was canceled", "SKIPPED": "was skipped, so nothing was done"}
        return f"Run {self.run_id} {ends.get(self.state, f'is {self.state.lower()}')}."


def follow(
    kubeflow: Kubeflow,
    run_id: str,
    watch: Watch,
    *,
    show: Callable[[RunView], None],
    say: Callable[[str], None],
    tasks: tuple[str, ...] = (),
    again: str = "",
) -> RunView:
    """Follow a run until it ends.

    Args:
        kubeflow: the server.
        run_id: the run.
        watch: intervals and limits.
        show: takes each new view.
        say: takes sentences about the connection.
        tasks: the pipeline's tasks in order; empty shows what the server lists.
        again: the command that follows the run again, for messages.

    Raises:
        InterruptedRunError: the time limit is reached; the run goes on.
        KubeflowError: the run was deleted, the token is not taken, or the server stays away.
    """
    again = again or f"serin submit --attach {run_id}"
    deadline = time.monotonic() + watch.timeout_s
    lost_since: float | None = None
    while True:
        try:
            run = kubeflow.call("read the run", kubeflow.kfp.runs.run_service_get_run, run_id)
        except KubeflowError as error:
            lost_since = _lost(error, run_id, lost_since, watch, say, again)
        else:
            if lost_since is not None:
                say("Kubeflow Pipelines answers again.")
                lost_since = None
            view = view_of(run, kubeflow.run_url(run_id), tasks)
            show(view)
            if view.state in ENDED:
                return view
        if time.monotonic() + watch.poll_s > deadline:
            raise InterruptedRunError(
                f"Run {run_id} has not ended after {watch.timeout_s:g} s and goes on: '{again}' follows it again."
            )
        time.sleep(watch.poll_s)


def view_of(run: Any, url: str, tasks: tuple[str, ...] = ()) -> RunView:
    """A run as the API gives it (``V2beta1Run``), in what people ask for."""
    details = (run.run_details.task_details if run.run_details else None) or []
    listed = {detail.display_name: detail.state for detail in details if _is_task(detail)}
    names = [name for name in tasks if name in listed] if tasks else list(listed)
    if not any(listed[name] == "FAILED" for name in names):
        # a condition or a loop that fails without any task in it is worth a line of its own
        names += [name for name, state in listed.items() if state == "FAILED"]
    return RunView(
        run_id=run.run_id,
        name=run.display_name or "",
        state=run.state or "PENDING",
        url=url,
        tasks=tuple(_task(name, details) for name in names),
        error=_text(run.error),
    )


def _lost(
    error: KubeflowError,
    run_id: str,
    since: float | None,
    watch: Watch,
    say: Callable[[str], None],
    again: str,
) -> float:
    """When the server went away, if waiting for it makes sense."""
    now = time.monotonic()
    if error.status == NOT_FOUND:
        raise KubeflowError(f"Run {run_id} was deleted while it was followed: start another.", NOT_FOUND) from error
    if not error.passing:
        text = str(error).rstrip(".")
        raise KubeflowError(f"{text}; the run goes on, and '{again}' follows it again.", error.status) from error
    if since is None:
        say(f"Kubeflow Pipelines is away; trying again for up to {watch.lost_s:g} s.")
    elif now - since > watch.lost_s:
        text = str(error).rstrip(".")
        raise KubeflowError(f"{text}; the run may go on, and '{again}' follows it again.", error.status) from error
    return since or now


def _is_task(detail: Any) -> bool:
    name = detail.display_name or ""
    return bool(name) and _base(name) not in HIDDEN and not _base(name).endswith("-driver")


def _base(name: str) -> str:
    """A node's name without the number of its retry, as in ``executor(0)``."""
    return re.sub(r"\(\d+\)$", "", name)


def _task(name: str, details: list[Any]) -> TaskView:
    mine = [detail for detail in details if detail.display_name == name]
    worst = max(mine, key=lambda detail: WEIGHT.index(detail.state) if detail.state in WEIGHT else -1)
    state = worst.state or "PENDING"
    return TaskView(
        name=name,
        state=state,
        error=(_text(worst.error) or _inner_error(worst, details)) if state == "FAILED" else "",
        started=worst.start_time,
        # the API gives tasks that have not ended the time zero
        ended=worst.end_time if state in ENDED else None,
    )


def _inner_error(task: Any, details: list[Any]) -> str:
    """What a task's driver or executor says, which are nodes of their own."""
    pods = {child.pod_name for child in task.child_tasks or () if child.pod_name}
    driver = f"{task.display_name}-driver"
    mine = [_text(one.error) for one in details if one.display_name == driver or (one.pod_name or "-") in pods]
    # where the server links no nodes: the only executor that says anything speaks for the task
    others = [_text(one.error) for one in details if _base(one.display_name or "") == "executor" and _text(one.error)]
    return next(filter(None, mine), others[0] if len(others) == 1 else "")


def _text(error: Any | None) -> str:
    return " ".join(str(error.message or "").split()) if error else ""
