"""Which job a launch takes for its own when there is one already."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from cluster_worlds import World, succeed, until
from fake_kuberay import NAMESPACE, FakeKubeRay, Job, Script

from serin.core.errors import UnavailableError

KubeRay = Callable[[Script], FakeKubeRay]


def trains(job: Job) -> None:
    job.runs()
    succeed(job.request_uri)
    job.ends("Complete", "SUCCEEDED")


def left_behind(world: World, kuberay: KubeRay, status: dict[str, Any]) -> tuple[FakeKubeRay, Job]:
    """A fake that holds the job of a launcher which was killed; later jobs succeed."""
    api = kuberay(lambda job: None)
    with pytest.raises(UnavailableError):
        world.launch(world.cluster(pre_running_deadline_s=1))
    job = api.created[0]
    api.put_job({**job, "status": status})
    api.script = trains
    return api, api.handles[job["metadata"]["name"]]


def test_a_job_that_still_runs_is_adopted(world: World, kuberay: KubeRay) -> None:
    running = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
    api, job = left_behind(world, kuberay, running)
    threading.Thread(target=trains, args=(job,)).start()
    world.launch()
    assert len(api.created) == 1
    assert api.deletions[-1][0] == job.name
    assert not api.jobs


@pytest.mark.parametrize(
    "status",
    [
        {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"},
        {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"},
        {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"},
        {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed"},
    ],
)
def test_a_job_that_has_ended_is_never_adopted(world: World, kuberay: KubeRay, status: dict[str, Any]) -> None:
    api, job = left_behind(world, kuberay, status)
    world.launch()
    assert [each["metadata"]["labels"]["serin.dev/attempt"] for each in api.created] == ["1", "2"]
    assert list(api.jobs) == [job.name], "what another launch left is its own to clean up"


def test_a_job_that_is_being_deleted_is_not_adopted(world: World, kuberay: KubeRay) -> None:
    api, job = left_behind(world, kuberay, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"})
    body = api.jobs[job.name]
    body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    world.launch()
    assert len(api.created) == 2


def test_a_job_of_another_request_is_not_adopted(world: World, kuberay: KubeRay) -> None:
    api, job = left_behind(world, kuberay, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"})
    world.launch(learning_rate=1e-3)
    assert len(api.created) == 2
    assert job.name in api.jobs


def test_a_strangers_job_that_has_the_name_is_left_alone(world: World, kuberay: KubeRay) -> None:
    probe = kuberay(lambda job: None)
    with pytest.raises(UnavailableError):
        world.launch(world.cluster(pre_running_deadline_s=1))
    number_two = probe.created[0]["metadata"]["name"][:-1] + "2"
    probe.put_job({"metadata": {"name": number_two, "namespace": NAMESPACE}, "spec": {}})
    probe.script = trains
    world.launch()
    assert probe.created[-1]["metadata"]["name"] == number_two[:-1] + "3"
    assert list(probe.jobs) == [number_two]


def test_a_creation_whose_answer_was_lost_is_found_by_its_conflict(world: World, kuberay: KubeRay) -> None:
    api = kuberay(trains)
    api.lose_answer_of_create = True
    started = threading.Event()

    def trains_later(job: Job) -> None:
        started.wait(10)
        trains(job)

    api.script = trains_later
    threading.Thread(target=lambda: (until(lambda: api.num_requests("POST", "rayjobs") == 2), started.set())).start()
    world.launch()
    assert len(api.created) == 1
    assert api.num_requests("POST", "rayjobs") == 2
    assert not api.jobs
