"""A job never outlives its launcher for long: signals, owners, the lease, time limits."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_worlds import LAUNCH, World, lease_of, until
from fake_kuberay import FakeKubeRay, Job, Script

from serin.core.errors import InterruptedRunError

KubeRay = Callable[[Script], FakeKubeRay]


def works(job: Job) -> None:
    """A driver that never ends by itself."""
    job.runs()


def launcher(world: World, **changes: object) -> subprocess.Popen[bytes]:
    """The launcher in a process of its own, as in a task."""
    command = [sys.executable, "-W", "ignore", "-c", LAUNCH, world.given(world.cluster(**changes))]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_sigterm_deletes_the_job_at_once(world: World, kuberay: KubeRay) -> None:
    api = kuberay(works)
    process = launcher(world, poll_s=30)
    try:
        until(lambda: api.num_requests("GET", "watch=true") > 0, 60)
        start = time.monotonic()
        process.terminate()
        until(lambda: api.deletions, 5)
        assert time.monotonic() - start < 1.0  # ten milliseconds on a machine that is not shared
        assert process.wait(20) != 0
    finally:
        process.kill()
        process.wait()
    assert api.deletions[0][1]["propagationPolicy"] == "Background"
    assert len(api.deletions) == 1
    assert not api.jobs


@pytest.mark.slow
def test_a_driver_ends_when_its_launcher_was_killed(world: World, kuberay: KubeRay) -> None:
    api = kuberay(Job.drive)
    changes = {"lease_interval_s": 0.5, "lease_expiry_s": 4.0}
    # long enough that only the lease can end it
    process = launcher_of_long_training(world, changes)
    try:
        until(lambda: any(job.process for job in api.handles.values()), 60)
        job = next(iter(api.handles.values()))
        until(lambda: lease_of(job.request_uri), 20)
        until(lambda: any("fine-tuning" in text for _, text in api.pods[f"{job.name}-sub"].lines), 60)
    finally:
        process.kill()
        process.wait()
    assert job.process
    assert job.process.wait(40) == InterruptedRunError.exit_code
    until(lambda: api.jobs[job.name]["status"]["jobDeploymentStatus"] == "Failed")
    outcome = Path(job.request_uri.removeprefix("file://")).with_name("outcome.json").read_text()
    assert "did not renew its lease" in outcome


def launcher_of_long_training(world: World, changes: dict[str, float]) -> subprocess.Popen[bytes]:
    given = world.given(world.cluster(**changes)).replace('"max_steps": 3', '"max_steps": 100000', 1)
    command = [sys.executable, "-W", "ignore", "-c", LAUNCH, given]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_the_workflow_of_our_pod_owns_the_job(world: World, kuberay: KubeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "training-x", "uid": "1-2-3"}
    api = kuberay(lambda job: job.runs().ends("Complete", "STOPPED"))
    full = {**owner, "controller": True, "blockOwnerDeletion": True}
    api.add_pod("task-pod", {}, metadata={"ownerReferences": [full]})
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KFP_POD_NAME", "task-pod")
    with pytest.raises(InterruptedRunError):
        world.launch()
    assert api.created[0]["metadata"]["ownerReferences"] == [owner]


def test_outside_of_a_pod_nothing_owns_the_job(world: World, kuberay: KubeRay) -> None:
    api = kuberay(lambda job: job.runs().ends("Complete", "STOPPED"))
    with pytest.raises(InterruptedRunError):
        world.launch()
    assert "ownerReferences" not in api.created[0]["metadata"]


def test_the_handler_of_sigterm_is_ours_only_for_the_launch(world: World, kuberay: KubeRay) -> None:
    before = signal.getsignal(signal.SIGTERM)
    kuberay(lambda job: job.runs().ends("Complete", "STOPPED"))
    with pytest.raises(InterruptedRunError):
        world.launch()
    assert signal.getsignal(signal.SIGTERM) == before
    assert os.getpid()


def test_a_job_has_limits_of_its_own(world: World, kuberay: KubeRay) -> None:
    api = kuberay(lambda job: job.runs().ends("Complete", "STOPPED"))
    with pytest.raises(InterruptedRunError):
        world.launch(world.cluster(active_deadline_s=7200, pre_running_deadline_s=600, ttl_s=60))
    spec = api.created[0]["spec"]
    assert (spec["activeDeadlineSeconds"], spec["preRunningDeadlineSeconds"]) == (7200, 600)
    assert (spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"]) == (True, 60)


def test_deleting_never_hits_another_job_of_the_same_name(world: World, kuberay: KubeRay) -> None:
    def replaced(job: Job) -> None:
        job.runs()
        until(lambda: job.api.num_requests("GET", "watch=true") > 0)
        job.api.delete(job.name, {})
        job.api.put_job({"metadata": {"name": job.name}, "spec": {}})

    api = kuberay(replaced)
    with pytest.raises(InterruptedRunError):
        world.launch()
    assert len(api.jobs) == 1
