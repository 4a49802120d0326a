"""A launch on a standing Ray cluster, against the HTTP API of Ray Job Submission."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from cluster_worlds import World, leave, succeed
from fake_ray_jobs import TOKEN, FakeRayJobs, RayJob

from serin.core.errors import InputError, InterruptedRunError, UnavailableError
from serin.finetune.cluster.config import ClusterConfig

Start = Callable[[Callable[[RayJob], None]], FakeRayJobs]


@pytest.fixture
def ray_jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a fake dashboard with what shall happen to each job."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with ExitStack() as stack:
        yield lambda script: stack.enter_context(FakeRayJobs(script))


def settings(world: World, ray: FakeRayJobs, **changes: object) -> ClusterConfig:
    return world.cluster(kind="ray_cluster", address=ray.url, poll_s=0.1, **changes)


def trains(job: RayJob) -> None:
    job.status = "RUNNING"
    job.logs += 'one\ntwo\n::serin:: {"event": "progress", "message": "fine-tuning 1/3", "fraction": 0.5}\nthr'
    job.logs += "ee\nno end"
    succeed(job.request_uri)
    job.status = "SUCCEEDED"


def test_a_job_that_succeeds_gives_its_artefacts(
    world: World, ray_jobs: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = ray_jobs(trains)
    made = world.launch(settings(world, ray))
    assert (made.model.path / "weights").read_text() == "model"
    assert capsys.readouterr().out == "one\ntwo\nthree\nno end\n"
    assert "fine-tuning 1/3" in world.report.messages()
    assert ray.stops == ray.submitted


def test_a_token_that_is_missing_is_asked_for(world: World, ray_jobs: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = ray_jobs(trains)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    with pytest.raises(UnavailableError, match="set RAY_AUTH_TOKEN"):
        world.launch(settings(world, ray))


def test_a_dashboard_that_stumbles_is_asked_again(world: World, ray_jobs: Start) -> None:
    ray = ray_jobs(trains)
    ray.broken_answers = 2
    world.launch(settings(world, ray))
    assert len(ray.submitted) == 1


def test_the_drivers_own_sentence_is_what_is_told(world: World, ray_jobs: Start) -> None:
    def fails(job: RayJob) -> None:
        leave(job.request_uri, error="InputError", text="The loss is no longer a number: lower learning_rate.")
        job.status = "FAILED"

    with pytest.raises(InputError, match=r"^The loss is no longer a number: lower learning_rate\.$"):
        world.launch(settings(world, ray_jobs(fails)))


def test_a_driver_without_a_word_and_one_that_was_stopped_are_errors(world: World, ray_jobs: Start) -> None:
    def dies(job: RayJob) -> None:
        job.message, job.status = "exit code -9", "FAILED"

    with pytest.raises(UnavailableError, match=r"left no word .exit code -9."):
        world.launch(settings(world, ray_jobs(dies)))

    def stopped(job: RayJob) -> None:
        job.status = "STOPPED"

    with pytest.raises(InterruptedRunError, match="stopped from outside"):
        world.launch(settings(world, ray_jobs(stopped)), lineage_id="run-2")


def test_a_job_that_does_not_start_is_stopped_with_rays_reason(world: World, ray_jobs: Start) -> None:
    def pends(job: RayJob) -> None:
        job.message = "waiting for resources: GPU"

    ray = ray_jobs(pends)
    with pytest.raises(UnavailableError, match=r"had not started after 1 s .waiting for resources: GPU"):
        world.launch(settings(world, ray, pre_running_deadline_s=1))
    assert ray.stops == ray.submitted


def test_a_job_beyond_its_time_limit_is_stopped(world: World, ray_jobs: Start) -> None:
    def works(job: RayJob) -> None:
        job.status = "RUNNING"

    ray = ray_jobs(works)
    with pytest.raises(InterruptedRunError, match="ended after 2 s, its time limit"):
        world.launch(settings(world, ray, active_deadline_s=2, pre_running_deadline_s=1))
    assert ray.stops == ray.submitted


def left_behind(world: World, ray: FakeRayJobs) -> RayJob:
    """The job of a launcher that was killed; its state is the test's to set."""
    with pytest.raises(UnavailableError):
        world.launch(settings(world, ray, pre_running_deadline_s=1))
    return ray.jobs[ray.submitted[0]]


def test_a_job_that_still_runs_is_adopted(world: World, ray_jobs: Start) -> None:
    ray = ray_jobs(lambda job: None)
    left = left_behind(world, ray)
    left.status = "RUNNING"
    threading.Timer(0.5, trains, [left]).start()
    world.launch(settings(world, ray))
    assert len(ray.submitted) == 1


@pytest.mark.parametrize("status", ["FAILED", "STOPPED", "SUCCEEDED"])
def test_a_job_that_has_ended_is_never_adopted(world: World, ray_jobs: Start, status: str) -> None:
    ray = ray_jobs(lambda job: None)
    left_behind(world, ray).status = status
    ray.script = trains
    world.launch(settings(world, ray))
    assert [name[-1] for name in ray.submitted] == ["1", "2"]


def test_a_strangers_job_that_has_the_name_is_left_alone(world: World, ray_jobs: Start) -> None:
    ray = ray_jobs(lambda job: None)
    first = left_behind(world, ray)
    first.status = "FAILED"
    name = ray.submitted[0][:-1]
    ray.jobs[f"{name}2"] = stranger = RayJob({"metadata": {}, "entrypoint": "x"})
    stranger.status, ray.script = "RUNNING", trains
    world.launch(settings(world, ray))
    assert ray.submitted[-1] == f"{name}3"
    assert not stranger.stopped.is_set()
