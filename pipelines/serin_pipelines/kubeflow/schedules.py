"""Recurring runs, kept as an environment wants them.

The server's recurring runs cannot be changed, so an update disables the old one, waits until no run of it is under
way, makes the new one and deletes the old.  Whatever fails on the way, one of the two is enabled: when the new one
cannot be made, the old one is enabled again; when two updates race, the newest wins in both.

Always: a pinned version, six-field cron in UTC, no catching up on missed times, one run at a time.
"""

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serin.core.errors import ConfigError, InterruptedRunError
from serin_pipelines.kubeflow.client import NOT_FOUND, Kubeflow, KubeflowError
from serin_pipelines.kubeflow.cron import next_times
from serin_pipelines.kubeflow.runs import ATTEMPT, Say, Version, knows_no_plugins, label

MARK = "serin-schedule"
"""In the description of the recurring runs that are ours to prune."""


@dataclass(frozen=True)
class Wanted:
    """A recurring run as it should be."""

    name: str
    version: Version
    cron: str
    """Six fields, UTC."""
    arguments: Mapping[str, Any]
    service_account: str = ""
    plugins: Mapping[str, Mapping[str, Any]] | None = None
    """``plugins_input`` of its runs; servers without the plugins keep it unread."""


@dataclass(frozen=True)
class Limits:
    """How to wait for the runs of a schedule that is being replaced."""

    poll_s: float = 5.0
    idle_s: float = 3600.0
    """Its runs may take this long to end."""


@dataclass(frozen=True)
class Change:
    """What was done to a schedule."""

    name: str
    action: str
    """created, updated, enabled, unchanged, removed, extra."""
    reasons: tuple[str, ...] = ()


def listed(kubeflow: Kubeflow, experiment_id: str) -> list[Any]:
    """The recurring runs of an experiment (``V2beta1RecurringRun``), by name, newest last."""
    found = kubeflow.pages(
        "list the schedules",
        kubeflow.kfp.recurring_runs.recurring_run_service_list_recurring_runs,
        "recurring_runs",
        experiment_id=experiment_id,
    )
    return sorted(found, key=lambda one: (one.display_name, one.created_at, one.recurring_run_id))


def named(kubeflow: Kubeflow, experiment_id: str, name: str) -> list[Any]:
    """The recurring runs of that name, newest last; one, unless something went wrong."""
    return [one for one in listed(kubeflow, experiment_id) if one.display_name == name]


def enabled(one: Any) -> bool:
    """Whether a recurring run starts runs."""
    return bool(one.status == "ENABLED" if one.status else one.mode == "ENABLE")


def cron_of(one: Any) -> str:
    """A recurring run's cron expression; empty for a periodic one."""
    schedule = one.trigger.cron_schedule if one.trigger else None
    return str(schedule.cron) if schedule else ""


def create(kubeflow: Kubeflow, experiment_id: str, wanted: Wanted) -> Change:
    """Make a schedule that is not there.

    Raises:
        ConfigError: there is one of that name, or the cron expression is wrong.
        KubeflowError: the server refuses.
    """
    next_times(wanted.cron, 1)
    if named(kubeflow, experiment_id, wanted.name):
        raise ConfigError(f"Schedule {wanted.name!r} is there already: change it with 'serin schedule update'.")
    made = _create(kubeflow, experiment_id, wanted)
    _settle(kubeflow, experiment_id, made)
    return Change(wanted.name, "created")


def update(kubeflow: Kubeflow, experiment_id: str, wanted: Wanted, limits: Limits, say: Say) -> Change:
    """Make a schedule what it should be; nothing happens to one that is.

    Raises:
        ConfigError: there is none of that name, or the cron expression is wrong.
        InterruptedRunError: a run of the old one does not end in time; the old one is enabled again.
        KubeflowError: the server refuses; says which of the two is enabled.
    """
    next_times(wanted.cron, 1)
    old = named(kubeflow, experiment_id, wanted.name)
    if not old:
        raise ConfigError(f"There is no schedule {wanted.name!r}: make it with 'serin schedule create'.")
    same = [one for one in old if not differences(one, wanted)]
    if same:
        return _keep(kubeflow, same[-1], [one for one in old if one is not same[-1]])
    reasons = differences(old[-1], wanted)
    _replace(kubeflow, experiment_id, old, wanted, limits, say)
    return Change(wanted.name, "updated", tuple(reasons))


def remove(kubeflow: Kubeflow, experiment_id: str, name: str) -> Change:
    """Remove a schedule; runs that it has started go on.

    Raises:
        ConfigError: there is none of that name.
    """
    found = named(kubeflow, experiment_id, name)
    if not found:
        raise ConfigError(f"There is no schedule {name!r}: 'serin schedule list' shows them.")
    for one in found:
        _delete(kubeflow, one)
    return Change(name, "removed")


def apply(
    kubeflow: Kubeflow, experiment_id: str, wanted: list[Wanted], limits: Limits, say: Say, *, prune: bool = False
) -> list[Change]:
    """Make an experiment's schedules what they should be.

    Args:
        kubeflow: the server.
        experiment_id: the experiment.
        wanted: all schedules that should be.
        limits: how long to wait for runs of those that change.
        say: takes sentences for the user.
        prune: remove those that are ours and not wanted; others are only reported.
    """
    for one in wanted:
        next_times(one.cron, 1)
    there = {one.display_name: one for one in listed(kubeflow, experiment_id)}
    changes = [
        update(kubeflow, experiment_id, one, limits, say) if one.name in there else create(kubeflow, experiment_id, one)
        for one in wanted
    ]
    for name in sorted(set(there) - {one.name for one in wanted}):
        if prune and MARK in str(there[name].description or ""):
            changes.append(remove(kubeflow, experiment_id, name))
        else:
            why = "serin did not make it" if prune else "not in the environment; --prune removes it"
            changes.append(Change(name, "extra", (why,)))
    return changes


def differences(one: Any, wanted: Wanted) -> list[str]:
    """In what a recurring run is not as it should be; being disabled does not count."""
    reference, config = one.pipeline_version_reference, one.runtime_config
    found: list[tuple[str, Any, Any]] = [
        ("version", reference.pipeline_version_id if reference else "", wanted.version.id),
        ("cron", cron_of(one), wanted.cron),
        ("parameters", dict((config.parameters if config else None) or {}), dict(wanted.arguments)),
        ("no_catchup", bool(one.no_catchup), True),
        ("max_concurrency", str(one.max_concurrency), "1"),
    ]
    if one.plugins_input:
        found.append(("plugins", dict(one.plugins_input), dict(wanted.plugins or {})))
    if wanted.service_account:
        found.append(("service account", one.service_account, wanted.service_account))
    return [f"{name}: {before} -> {after}" for name, before, after in found if before != after]


def _keep(kubeflow: Kubeflow, kept: Any, others: list[Any]) -> Change:
    for one in others:
        _delete(kubeflow, one)
    if enabled(kept):
        return Change(kept.display_name, "unchanged")
    _enable(kubeflow, kept)
    return Change(kept.display_name, "enabled", ("it was disabled",))


def _replace(kubeflow: Kubeflow, experiment_id: str, old: list[Any], wanted: Wanted, limits: Limits, say: Say) -> None:
    were_enabled = [one for one in old if enabled(one)]
    for one in were_enabled:
        _disable(kubeflow, one)
    attempt = uuid.uuid4().hex
    try:
        _wait_idle(kubeflow, experiment_id, old, limits, say)
        made = _create(kubeflow, experiment_id, wanted, attempt)
    except (KubeflowError, InterruptedRunError) as error:
        adopted = _recover(kubeflow, experiment_id, wanted.name, attempt, were_enabled, error)
        if adopted is None:
            text = str(error).rstrip(".")
            raise type(error)(f"{text}; schedule {wanted.name!r} is enabled again as it was.") from error
        made = adopted
    for one in old:
        _delete(kubeflow, one)
    _settle(kubeflow, experiment_id, made)


def _recover(
    kubeflow: Kubeflow, experiment_id: str, name: str, attempt: str, were_enabled: list[Any], error: Exception
) -> Any | None:
    """After a failure: the new one, if it was made after all; else the old one is enabled again."""
    try:
        there = named(kubeflow, experiment_id, name)
        made = [one for one in there if label(one, ATTEMPT) == attempt]
        if made:
            return made[-1]
        if were_enabled and not any(enabled(one) for one in there):
            _enable(kubeflow, were_enabled[-1])
        return None
    except KubeflowError as second:
        text = str(error).rstrip(".")
        raise KubeflowError(
            f"{text}; schedule {name!r} is disabled now, because the server does not take it back either: run 'serin "
            "schedule apply' when it answers.",
            second.status,
        ) from error


def _wait_idle(kubeflow: Kubeflow, experiment_id: str, old: list[Any], limits: Limits, say: Say) -> None:
    """Wait until two looks in a row find no run: the scheduler may have been about to start one."""
    ids = {one.recurring_run_id for one in old}
    deadline = time.monotonic() + limits.idle_s
    quiet, said = 0, False
    while True:
        busy = [run for run in kubeflow.active_runs(experiment_id) if run.recurring_run_id in ids]
        quiet = 0 if busy else quiet + 1
        if quiet == 2:
            return
        if busy and not said:
            say(f"Waiting for run {busy[0].run_id} of {old[-1].display_name!r} to end.")
            said = True
        if time.monotonic() + limits.poll_s > deadline and busy:
            raise InterruptedRunError(f"Run {busy[0].run_id} has not ended after {limits.idle_s:g} s.")
        time.sleep(limits.poll_s)


def _create(kubeflow: Kubeflow, experiment_id: str, wanted: Wanted, attempt: str = "") -> Any:
    attempt = attempt or uuid.uuid4().hex
    body = _body(kubeflow.models, experiment_id, wanted, attempt)

    def find() -> Any | None:
        there = named(kubeflow, experiment_id, wanted.name)
        return next((one for one in there if label(one, ATTEMPT) == attempt), None)

    def post() -> Any:
        return kubeflow.kfp.recurring_runs.recurring_run_service_create_recurring_run(recurring_run=body)

    what = f"create the schedule {wanted.name!r}"
    try:
        return kubeflow.create(what, find, post)[0]
    except KubeflowError as error:
        if not (wanted.plugins and knows_no_plugins(error)):
            raise
    body.plugins_input = None
    return kubeflow.create(what, find, post)[0]


def _body(models: Any, experiment_id: str, wanted: Wanted, attempt: str) -> Any:
    """The recurring run; the SDK's own function for it takes no plugins."""
    return models.V2beta1RecurringRun(
        experiment_id=experiment_id,
        display_name=wanted.name,
        description=f"{MARK} (cron in UTC) {ATTEMPT}={attempt}",
        mode="ENABLE",
        pipeline_version_reference=models.V2beta1PipelineVersionReference(
            pipeline_id=wanted.version.pipeline_id, pipeline_version_id=wanted.version.id
        ),
        runtime_config=models.V2beta1RuntimeConfig(parameters=dict(wanted.arguments)),
        trigger=models.V2beta1Trigger(cron_schedule=models.V2beta1CronSchedule(cron=wanted.cron)),
        max_concurrency="1",
        no_catchup=True,
        service_account=wanted.service_account or None,
        plugins_input=dict(wanted.plugins) if wanted.plugins else None,
    )


def _settle(kubeflow: Kubeflow, experiment_id: str, made: Any) -> None:
    """Two updates at once have made two: the newest stays, and both updates agree on which that is."""
    for one in named(kubeflow, experiment_id, made.display_name)[:-1]:
        _delete(kubeflow, one)


def _delete(kubeflow: Kubeflow, one: Any) -> None:
    recurring = kubeflow.kfp.recurring_runs
    if enabled(one):
        _disable(kubeflow, one)
    _gone_is_fine(
        lambda: kubeflow.call(
            f"delete the schedule {one.display_name!r}",
            recurring.recurring_run_service_delete_recurring_run,
            one.recurring_run_id,
        )
    )


def _disable(kubeflow: Kubeflow, one: Any) -> None:
    recurring = kubeflow.kfp.recurring_runs
    _gone_is_fine(
        lambda: kubeflow.call(
            f"disable the schedule {one.display_name!r}",
            recurring.recurring_run_service_disable_recurring_run,
            one.recurring_run_id,
        )
    )


def _enable(kubeflow: Kubeflow, one: Any) -> None:
    kubeflow.call(
        f"enable the schedule {one.display_name!r}",
        kubeflow.kfp.recurring_runs.recurring_run_service_enable_recurring_run,
        one.recurring_run_id,
    )


def _gone_is_fine(act: Callable[[], Any]) -> None:
    try:
        act()
    except KubeflowError as error:
        if error.status != NOT_FOUND:
            raise
