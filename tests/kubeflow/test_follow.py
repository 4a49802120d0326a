"""Our wait loop: every end of a run, and every way to lose sight of it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serin.core.errors import InterruptedRunError
from serin_pipelines.environments import Environment
from serin_pipelines.kubeflow import runs
from serin_pipelines.kubeflow.client import Kubeflow, KubeflowError
from serin_pipelines.kubeflow.follow import RunView, Watch, follow
from serin_pipelines.kubeflow.packages import Package

from .conftest import QUICK, WATCH
from .fake_kfp import FakeKubeflow
from .fake_scripts import Script, canceled, failing, succeeding

TASKS = ("echo", "echo-2", "echo-3")


class Seen:
    """What a follower was shown and told."""

    def __init__(self) -> None:
        self.views: list[RunView] = []
        self.said: list[str] = []

    @property
    def changes(self) -> list[str]:
        """Each change of a task's state once, in order."""
        lines = [f"{task.name} {task.state}" for view in self.views for task in view.tasks]
        return list(dict.fromkeys(lines))


@pytest.fixture
def seen() -> Seen:
    """Nothing yet."""
    return Seen()


@pytest.fixture
def started(fake: FakeKubeflow, kubeflow: Kubeflow, package: Package) -> Callable[[Script], str]:
    """Starts a run that follows a script; gives its id."""

    def start(script: Script) -> str:
        fake.scripts.append(script)
        version, experiment_id = runs.publish(kubeflow, package), runs.experiment(kubeflow, "serin-test")
        order = runs.Order(version, experiment_id, "a run", {"source_uri": "s3://bucket/source"})
        return str(runs.start(kubeflow, order, lambda _: None).run_id)

    return start


def watch_it(kubeflow: Kubeflow, run_id: str, seen: Seen, watch: Watch = WATCH) -> RunView:
    """Follow a run to its end."""
    return follow(kubeflow, run_id, watch, show=seen.views.append, say=seen.said.append, tasks=TASKS)


def test_a_run_that_succeeds_shows_each_task_in_the_pipelines_order(
    kubeflow: Kubeflow, started: Callable[[Script], str], seen: Seen
) -> None:
    view = watch_it(kubeflow, started(succeeding(*TASKS)), seen)
    assert view.state == "SUCCEEDED"
    assert seen.changes == [f"{task} {state}" for task in TASKS for state in ("RUNNING", "SUCCEEDED")]
    assert view.sentence() == f"Run {view.run_id} succeeded."
    assert view.url == f"{kubeflow.host}/#/runs/details/{view.run_id}"
    assert seen.said == []


def test_a_run_that_fails_in_its_third_task_names_it_and_what_it_said(
    kubeflow: Kubeflow, started: Callable[[Script], str], seen: Seen
) -> None:
    script = failing(*TASKS, message="The dataset has no held-out conversation.")
    # the condition around the task fails with it, and later
    script.steps[-1:] = [{"condition-1": "FAILED"}, {"RUN": "FAILED"}]
    view = watch_it(kubeflow, started(script), seen)
    assert view.state == "FAILED"
    assert view.failed_task is not None
    assert view.failed_task.name == "echo-3"
    assert view.sentence() == (f"Run {view.run_id} failed in task 'echo-3': The dataset has no held-out conversation.")


def test_a_condition_that_fails_by_itself_is_named(
    kubeflow: Kubeflow, started: Callable[[Script], str], seen: Seen
) -> None:
    script = succeeding("echo", "echo-2")
    script.steps[-1:] = [{"condition-1": "FAILED"}, {"RUN": "FAILED"}]
    script.errors["condition-1"] = "The condition cannot be evaluated."
    view = watch_it(kubeflow, started(script), seen)
    assert view.sentence() == f"Run {view.run_id} failed in task 'condition-1': The condition cannot be evaluated."


def test_a_run_that_is_attached_to_without_its_pipeline_shows_the_servers_tasks(
    kubeflow: Kubeflow, started: Callable[[Script], str], seen: Seen
) -> None:
    run_id = started(failing(*TASKS, message="no space left"))
    view = follow(kubeflow, run_id, WATCH, show=seen.views.append, say=seen.said.append)
    assert {task.name: task.state for task in view.tasks} == dict(
        zip(TASKS, ("SUCCEEDED", "SUCCEEDED", "FAILED"), strict=True)
    )
    assert view.failed_task is not None
    assert view.failed_task.error == "no space left"


def test_a_run_that_is_canceled_ends_the_following(
    kubeflow: Kubeflow, started: Callable[[Script], str], seen: Seen
) -> None:
    view = watch_it(kubeflow, started(canceled(*TASKS)), seen)
    assert view.state == "CANCELED"
    assert [one.state for one in seen.views][-2:] == ["CANCELING", "CANCELED"]
    assert view.sentence().endswith("was canceled.")


def test_a_run_that_is_paused_goes_on_and_one_that_is_skipped_has_ended(
    kubeflow: Kubeflow, started: Callable[[Script], str], seen: Seen
) -> None:
    script = Script([{"RUN": "PAUSED"}, {"RUN": "PAUSED"}, {"RUN": "RUNNING"}, {"RUN": "SKIPPED"}])
    view = watch_it(kubeflow, started(script), seen)
    assert [one.state for one in seen.views] == ["PAUSED", "PAUSED", "RUNNING", "SKIPPED"]
    assert "nothing was done" in view.sentence()


def test_a_server_that_restarts_is_waited_for(
    fake: FakeKubeflow, kubeflow: Kubeflow, started: Callable[[Script], str], seen: Seen
) -> None:
    stopped = threading.Event()

    def restart(_: str) -> None:
        threading.Thread(target=lambda: (fake.stop(), stopped.set(), time.sleep(0.5), fake.start())).start()
        stopped.wait(1)

    view = watch_it(kubeflow, started(succeeding(*TASKS, at={3: restart})), seen)
    assert view.state == "SUCCEEDED"
    assert seen.said[0] == "Kubeflow Pipelines is away; trying again for up to 5 s."
    assert seen.said[-1] == "Kubeflow Pipelines answers again."


def test_a_server_that_stays_away_ends_the_following_and_says_how_to_go_on(
    fake: FakeKubeflow, kubeflow: Kubeflow, started: Callable[[Script], str], seen: Seen
) -> None:
    run_id = started(succeeding(*TASKS))
    fake.stop()
    with pytest.raises(KubeflowError, match=f"may go on, and 'serin submit --attach {run_id}' follows it again"):
        watch_it(kubeflow, run_id, seen, Watch(poll_s=0.01, timeout_s=20.0, lost_s=0.3))
    fake.start()


def test_a_burst_of_errors_while_waiting_is_survived(
    fake: FakeKubeflow, kubeflow: Kubeflow, started: Callable[[Script], str], seen: Seen
) -> None:
    run_id = started(succeeding(*TASKS))
    fake.fail("GET", f"/runs/{run_id}", status=502, times=9, skip=2)
    assert watch_it(kubeflow, run_id, seen).state == "SUCCEEDED"
    assert seen.said[-1] == "Kubeflow Pipelines answers again."


def test_the_time_limit_ends_the_following_and_not_the_run(
    fake: FakeKubeflow, kubeflow: Kubeflow, started: Callable[[Script], str], seen: Seen
) -> None:
    run_id = started(Script([{"RUN": "RUNNING"}]))
    with pytest.raises(InterruptedRunError, match=f"goes on: 'serin submit --attach {run_id}'") as caught:
        watch_it(kubeflow, run_id, seen, Watch(poll_s=0.01, timeout_s=0.2))
    assert caught.value.exit_code == 8
    assert fake.runs[run_id]["state"] == "RUNNING"


def test_a_run_that_is_deleted_while_it_is_followed_is_one_sentence(
    fake: FakeKubeflow, kubeflow: Kubeflow, started: Callable[[Script], str], seen: Seen
) -> None:
    def delete(run_id: str) -> None:
        del fake.runs[run_id]

    run_id = started(succeeding(*TASKS, at={2: delete}))
    with pytest.raises(KubeflowError, match=f"Run {run_id} was deleted while it was followed: start another"):
        watch_it(kubeflow, run_id, seen)


def test_a_token_that_expires_while_waiting_is_renewed_once(
    fake: FakeKubeflow,
    environment: Environment,
    package: Package,
    seen: Seen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    fake.tokens = {"first"}
    monkeypatch.setenv("KFP_TOKEN_FILE", str(file))

    def rotate(_: str) -> None:
        fake.tokens = {"second"}
        file.write_text("second")

    def expire(_: str) -> None:
        fake.tokens = {"third"}

    with Kubeflow.connect(environment, patience=QUICK) as kubeflow:
        fake.scripts.append(succeeding(*TASKS, at={2: rotate, 4: expire}))
        version, experiment_id = runs.publish(kubeflow, package), runs.experiment(kubeflow, "serin-test")
        order = runs.Order(version, experiment_id, "a run", {"source_uri": "s3://bucket/source"})
        run_id = runs.start(kubeflow, order, lambda _: None).run_id
        with pytest.raises(KubeflowError, match=r"\(401\).*the run goes on, and 'serin submit --attach"):
            watch_it(kubeflow, run_id, seen)
    assert len(seen.views) == 5
