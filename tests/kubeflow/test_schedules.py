"""Recurring runs: never none enabled, never two, whatever fails or races."""

import dataclasses
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serin.core.errors import ConfigError, InterruptedRunError
from serin_pipelines.environments import Environment
from serin_pipelines.kubeflow import runs, schedules
from serin_pipelines.kubeflow.client import Kubeflow, KubeflowError
from serin_pipelines.kubeflow.cron import next_times
from serin_pipelines.kubeflow.packages import Package, read_package
from serin_pipelines.kubeflow.schedules import Limits, Wanted

from .conftest import QUICK
from .fake_kfp import FakeKubeflow, until

LIMITS = Limits(poll_s=0.01, idle_s=5.0)
NIGHTLY, LATER = "0 0 2 * * *", "0 30 2 * * *"
AFTER = datetime(2026, 2, 27, 12, 0, tzinfo=UTC)


@pytest.fixture
def experiment_id(kubeflow: Kubeflow) -> str:
    """An experiment."""
    return runs.experiment(kubeflow, "serin-test")


@pytest.fixture
def wanted(kubeflow: Kubeflow, package: Package) -> Wanted:
    """A nightly schedule."""
    return wish(kubeflow, package)


def wish(kubeflow: Kubeflow, package: Package, name: str = "nightly", cron: str = NIGHTLY, epochs: int = 1) -> Wanted:
    """A schedule as it should be."""
    arguments = package.arguments([f"epochs={epochs}", "source_uri=s3://bucket/source"])
    return Wanted(name, runs.publish(kubeflow, package), cron, arguments, "serin-pipeline")


def silent(_: str) -> None:
    """Takes a sentence."""


def test_a_schedule_is_pinned_catches_nothing_up_and_runs_one_at_a_time(
    fake: FakeKubeflow, kubeflow: Kubeflow, experiment_id: str, wanted: Wanted
) -> None:
    assert schedules.create(kubeflow, experiment_id, wanted).action == "created"
    (job,) = fake.recurring.values()
    assert job["pipeline_version_reference"]["pipeline_version_id"] == wanted.version.id
    assert (job["no_catchup"], job["max_concurrency"], job["status"]) == (True, "1", "ENABLED")
    assert job["trigger"]["cron_schedule"]["cron"] == NIGHTLY
    assert job["service_account"] == "serin-pipeline"
    with pytest.raises(ConfigError, match="is there already"):
        schedules.create(kubeflow, experiment_id, wanted)


def test_a_lost_answer_to_a_schedules_creation_makes_no_second_one(
    fake: FakeKubeflow, kubeflow: Kubeflow, experiment_id: str, wanted: Wanted
) -> None:
    fake.fail("POST", "/recurringruns$", done=True)
    schedules.create(kubeflow, experiment_id, wanted)
    assert len(fake.recurring) == 1


def test_a_schedule_that_is_as_it_should_be_stays_untouched(
    fake: FakeKubeflow, kubeflow: Kubeflow, experiment_id: str, wanted: Wanted
) -> None:
    schedules.create(kubeflow, experiment_id, wanted)
    before = list(fake.recurring)
    assert schedules.update(kubeflow, experiment_id, wanted, LIMITS, silent).action == "unchanged"
    assert list(fake.recurring) == before
    assert fake.sent("POST", ":disable") == 0


def test_a_changed_schedule_is_disabled_then_made_anew_under_its_name(
    fake: FakeKubeflow, kubeflow: Kubeflow, experiment_id: str, package: Package, wanted: Wanted
) -> None:
    schedules.create(kubeflow, experiment_id, wanted)
    (old,) = fake.recurring
    changed = wish(kubeflow, package, cron=LATER, epochs=2)
    change = schedules.update(kubeflow, experiment_id, changed, LIMITS, silent)
    assert change.action == "updated"
    assert change.reasons[0] == f"cron: {NIGHTLY} -> {LATER}"
    (job,) = fake.recurring.values()
    assert job["recurring_run_id"] != old
    assert job["runtime_config"]["parameters"]["epochs"] == 2


def test_an_update_waits_for_the_run_that_the_old_schedule_has_started(
    fake: FakeKubeflow, kubeflow: Kubeflow, experiment_id: str, package: Package, wanted: Wanted
) -> None:
    schedules.create(kubeflow, experiment_id, wanted)
    (old,) = fake.recurring
    run_id = fake.fire(old)
    said: list[str] = []
    changed = wish(kubeflow, package, cron=LATER)
    thread = threading.Thread(target=schedules.update, args=(kubeflow, experiment_id, changed, LIMITS, said.append))
    thread.start()
    until(lambda: bool(said))
    assert said == [f"Waiting for run {run_id} of 'nightly' to end."]
    assert list(fake.recurring) == [old]
    assert fake.enabled("nightly") == []
    fake.set_state(run_id, "SUCCEEDED")
    thread.join(5)
    assert [job["trigger"]["cron_schedule"]["cron"] for job in fake.enabled("nightly")] == [LATER]
    assert len(fake.recurring) == 1


def test_a_run_that_does_not_end_leaves_the_old_schedule_enabled(
    fake: FakeKubeflow, kubeflow: Kubeflow, experiment_id: str, package: Package, wanted: Wanted
) -> None:
    schedules.create(kubeflow, experiment_id, wanted)
    (old,) = fake.recurring
    fake.fire(old)
    changed = wish(kubeflow, package, cron=LATER)
    with pytest.raises(InterruptedRunError, match=r"not ended after 0\.05 s; schedule 'nightly' is enabled again"):
        schedules.update(kubeflow, experiment_id, changed, Limits(poll_s=0.01, idle_s=0.05), silent)
    assert [job["recurring_run_id"] for job in fake.enabled("nightly")] == [old]


def test_a_new_schedule_that_cannot_be_made_leaves_the_old_one_enabled(
    fake: FakeKubeflow, kubeflow: Kubeflow, experiment_id: str, package: Package, wanted: Wanted
) -> None:
    schedules.create(kubeflow, experiment_id, wanted)
    (old,) = fake.recurring
    changed = wish(kubeflow, package, cron=LATER)
    fake.fail("POST", "/recurringruns$", status=400, message="no quota")
    with pytest.raises(KubeflowError, match=r"no quota; schedule 'nightly' is enabled again as it was"):
        schedules.update(kubeflow, experiment_id, changed, LIMITS, silent)
    assert [job["recurring_run_id"] for job in fake.enabled("nightly")] == [old]
    assert len(fake.recurring) == 1


def test_a_schedule_that_was_made_although_the_server_said_no_is_the_one_that_stays(
    fake: FakeKubeflow, kubeflow: Kubeflow, experiment_id: str, package: Package, wanted: Wanted
) -> None:
    schedules.create(kubeflow, experiment_id, wanted)
    changed = wish(kubeflow, package, cron=LATER)
    # made, the answer lost, and the look-ups of the next tries fail as well
    fake.fail("POST", "/recurringruns$", done=True)
    fake.fail("GET", "/recurringruns$", status=500, times=4, skip=1)
    schedules.update(kubeflow, experiment_id, changed, LIMITS, silent)
    assert [job["trigger"]["cron_schedule"]["cron"] for job in fake.enabled("nightly")] == [LATER]
    assert len(fake.recurring) == 1


def test_a_server_that_goes_away_in_the_middle_is_said_and_mended_by_the_next_update(
    fake: FakeKubeflow, kubeflow: Kubeflow, experiment_id: str, package: Package, wanted: Wanted
) -> None:
    schedules.create(kubeflow, experiment_id, wanted)
    changed = wish(kubeflow, package, cron=LATER)
    fake.fail("POST", "/recurringruns", status=503, times=100, skip=1)
    with pytest.raises(KubeflowError, match="schedule 'nightly' is disabled now"):
        schedules.update(kubeflow, experiment_id, changed, LIMITS, silent)
    assert fake.enabled("nightly") == []
    fake.faults.clear()
    assert schedules.update(kubeflow, experiment_id, changed, LIMITS, silent).action == "updated"
    assert len(fake.enabled("nightly")) == len(fake.recurring) == 1


def test_a_schedule_that_someone_has_disabled_is_enabled_again_and_leftovers_go(
    fake: FakeKubeflow, kubeflow: Kubeflow, experiment_id: str, package: Package, wanted: Wanted
) -> None:
    schedules.create(kubeflow, experiment_id, wanted)
    (job,) = fake.recurring.values()
    job["status"] = "DISABLED"
    fake.recurring["left-over"] = {**job, "recurring_run_id": "left-over", "created_at": "2025-01-01T00:00:00Z"}
    change = schedules.update(kubeflow, experiment_id, wanted, LIMITS, silent)
    assert change.action == "enabled"
    assert [one["recurring_run_id"] for one in fake.enabled("nightly")] == [job["recurring_run_id"]]
    assert len(fake.recurring) == 1


def test_two_updates_at_once_leave_one_schedule(
    fake: FakeKubeflow, kubeflow: Kubeflow, environment: Environment, experiment_id: str, package: Package,
    wanted: Wanted,
) -> None:  # fmt: skip
    schedules.create(kubeflow, experiment_id, wanted)
    errors: list[Exception] = []

    def update(mine: Kubeflow, cron: str) -> None:
        try:
            schedules.update(mine, experiment_id, wish(mine, package, cron=cron), LIMITS, silent)
        except Exception as error:
            errors.append(error)

    with Kubeflow.connect(environment, patience=QUICK) as other:
        for start in range(5):
            wishes = ((kubeflow, f"0 {start} 3 * * *"), (other, f"0 {start} 4 * * *"))
            threads = [threading.Thread(target=update, args=one) for one in wishes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
            assert errors == []
            assert len(fake.enabled("nightly")) == len(fake.recurring) == 1


def test_an_update_that_comes_between_anothers_steps_leaves_one_schedule(
    fake: FakeKubeflow, kubeflow: Kubeflow, environment: Environment, experiment_id: str, package: Package,
    wanted: Wanted,
) -> None:  # fmt: skip
    schedules.create(kubeflow, experiment_id, wanted)

    def other(method: str, path: str) -> None:
        if method == "POST" and path.endswith("/recurringruns"):
            fake.before = None
            with Kubeflow.connect(environment, patience=QUICK) as mine:
                schedules.update(mine, experiment_id, wish(mine, package, cron="0 0 5 * * *"), LIMITS, silent)

    changed = wish(kubeflow, package, cron=LATER)
    fake.before = other
    schedules.update(kubeflow, experiment_id, changed, LIMITS, silent)
    assert [job["trigger"]["cron_schedule"]["cron"] for job in fake.enabled("nightly")] == [LATER]
    assert len(fake.recurring) == 1


def test_apply_makes_changes_keeps_and_reports_and_prunes_only_ours(
    fake: FakeKubeflow, kubeflow: Kubeflow, experiment_id: str, package: Package
) -> None:
    for name in ("kept", "changed", "ours"):
        schedules.create(kubeflow, experiment_id, wish(kubeflow, package, name))
    foreign = dict(next(iter(fake.recurring.values())), recurring_run_id="foreign", display_name="foreign")
    fake.recurring["foreign"] = {**foreign, "description": "made in the UI"}
    should = [
        wish(kubeflow, package, "kept"),
        wish(kubeflow, package, "changed", LATER),
        wish(kubeflow, package, "new"),
    ]

    def actions(**options: Any) -> dict[str, str]:
        changes = schedules.apply(kubeflow, experiment_id, should, LIMITS, silent, **options)
        return {change.name: change.action for change in changes}

    assert actions() == {
        "kept": "unchanged",
        "changed": "updated",
        "new": "created",
        "foreign": "extra",
        "ours": "extra",
    }
    assert actions(prune=True)["ours"] == "removed"
    assert actions(prune=True) == {"kept": "unchanged", "changed": "unchanged", "new": "unchanged", "foreign": "extra"}
    assert {job["display_name"] for job in fake.recurring.values()} == {"kept", "changed", "new", "foreign"}


def test_all_pages_of_a_listing_are_read(
    fake: FakeKubeflow, kubeflow: Kubeflow, experiment_id: str, package: Package
) -> None:
    fake.page_limit = 2
    for number in range(5):
        schedules.create(kubeflow, experiment_id, wish(kubeflow, package, f"schedule-{number}"))
    assert len(schedules.listed(kubeflow, experiment_id)) == 5


def test_removing_disables_first_and_an_unknown_name_is_refused(
    fake: FakeKubeflow, kubeflow: Kubeflow, experiment_id: str, wanted: Wanted
) -> None:
    schedules.create(kubeflow, experiment_id, wanted)
    fake.fail("DELETE", "/recurringruns/", done=True)  # carried out, and the answer lost
    assert schedules.remove(kubeflow, experiment_id, "nightly").action == "removed"
    assert fake.recurring == {}
    with pytest.raises(ConfigError, match="There is no schedule 'nightly'"):
        schedules.remove(kubeflow, experiment_id, "nightly")
    with pytest.raises(ConfigError, match="There is no schedule 'nightly'"):
        schedules.update(kubeflow, experiment_id, wanted, LIMITS, silent)


@pytest.mark.parametrize(("server", "kept"), [("mlflow", True), ("none", True), ("old", False)])
def test_a_schedules_runs_go_to_the_endpoints_mlflow_experiment_where_the_server_can(
    fake: FakeKubeflow, kubeflow: Kubeflow, experiment_id: str, wanted: Wanted, server: str, kept: bool
) -> None:
    fake.plugins = server
    wanted = dataclasses.replace(wanted, plugins={"mlflow": {"experiment_name": "assistant"}})
    schedules.create(kubeflow, experiment_id, wanted)
    (job,) = fake.recurring.values()
    assert job.get("plugins_input") == (wanted.plugins if kept else None)
    assert schedules.update(kubeflow, experiment_id, wanted, LIMITS, silent).action == "unchanged"


def test_a_changed_pipeline_is_a_changed_schedule(
    kubeflow: Kubeflow, experiment_id: str, package: Package, wanted: Wanted, tmp_path: Path
) -> None:
    schedules.create(kubeflow, experiment_id, wanted)
    changed = tmp_path / "changed.yaml"
    changed.write_text(package.path.read_text().replace("second", "zweite"))
    change = schedules.update(kubeflow, experiment_id, wish(kubeflow, read_package(changed)), LIMITS, silent)
    assert [reason.split(":")[0] for reason in change.reasons] == ["version"]


@pytest.mark.parametrize(
    ("cron", "times"),
    [
        ("0 0 2 * * *", ["02-28 02:00:00", "03-01 02:00:00", "03-02 02:00:00"]),
        ("0 15 * * * *", ["02-27 12:15:00", "02-27 13:15:00", "02-27 14:15:00"]),
        ("0 0 3 ? * SUN", ["03-01 03:00:00", "03-08 03:00:00", "03-15 03:00:00"]),
        ("0 0 3 * * 0", ["03-01 03:00:00", "03-08 03:00:00", "03-15 03:00:00"]),
        ("0 0/20 12 * * *", ["02-27 12:20:00", "02-27 12:40:00", "02-28 12:00:00"]),
        ("30 0 0 1,15 JAN-mar *", ["03-01 00:00:30", "03-15 00:00:30", "01-01 00:00:30"]),
        ("0 0 0 13 * FRI", ["03-06 00:00:00", "03-13 00:00:00", "03-20 00:00:00"]),
        ("*/30 59 23 28 2 *", ["02-28 23:59:00", "02-28 23:59:30", "02-28 23:59:00"]),
    ],
)
def test_cron_fires_when_the_scheduler_does(cron: str, times: list[str]) -> None:
    assert [f"{moment:%m-%d %H:%M:%S}" for moment in next_times(cron, 3, AFTER)] == times


@given(
    cron=st.tuples(
        st.sampled_from(["0", "*/20", "5,40"]),
        st.sampled_from(["0", "10-30/7", "*"]),
        st.sampled_from(["0", "*/6", "3,22"]),
        st.sampled_from(["*", "1", "13,28", "?"]),
        st.sampled_from(["*", "2", "JAN-JUN/2"]),
        st.sampled_from(["*", "MON", "0,6", "FRI"]),
    ),
    minutes=st.integers(0, 60 * 24 * 365),
)
@settings(max_examples=60, deadline=None)
def test_cron_never_skips_a_time_and_never_makes_one_up(cron: tuple[str, ...], minutes: int) -> None:
    """What is found comes in order, and is found again from any moment before it."""
    expression, start = " ".join(cron), AFTER + timedelta(minutes=minutes)
    first, second = next_times(expression, 2, start)
    assert start < first < second
    assert next_times(expression, 1, first - timedelta(seconds=1)) == [first]
    assert next_times(expression, 1, first + (second - first) / 2) == [second]


def test_29_february_comes_and_30_february_never() -> None:
    assert next_times("0 0 0 29 2 *", 1, AFTER) == [datetime(2028, 2, 29, tzinfo=UTC)]
    with pytest.raises(ConfigError, match="never fires"):
        next_times("0 0 0 30 2 *", 1, AFTER)


@pytest.mark.parametrize("cron", ["0 2 * * *", "", "@daily", "0 0 2 * * * *"])
def test_cron_without_six_fields_is_refused_and_the_form_is_shown(cron: str) -> None:
    with pytest.raises(ConfigError, match=r"fields, and Kubeflow wants six, in UTC: second minute hour"):
        next_times(cron)


@pytest.mark.parametrize(
    ("cron", "name"),
    [
        ("60 0 2 * * *", "second"),
        ("0 0 24 * * *", "hour"),
        ("0 0 2 0 * *", "day of the month"),
        ("0 0 2 * JUNE *", "month"),
        ("0 0 2 * * 7", "day of the week"),
        ("0 */0 2 * * *", "minute"),
        ("0 5-1 2 * * *", "minute"),
        ("0 -5 2 * * *", "minute"),
        ("0 1,,2 2 * * *", "minute"),
    ],
)
def test_a_wrong_field_of_cron_is_named(cron: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"is no {name} "):
        next_times(cron)
