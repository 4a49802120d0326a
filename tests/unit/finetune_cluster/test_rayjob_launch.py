"""A launch as a RayJob, against a fake KubeRay over real HTTP."""

import json
import threading
import time
from collections.abc import Callable

import pytest
from cluster_worlds import World, lease_of, leave, succeed, until
from fake_kuberay import FakeKubeRay, Job, Script

from serin.core.errors import ConfigError, InputError, IntegrityError, InterruptedRunError, SerinError, UnavailableError
from serin.core.kubernetes import Clock

KubeRay = Callable[[Script], FakeKubeRay]


def trains(job: Job) -> None:
    """A driver that succeeds."""
    job.runs()
    job.says("Ray says hello", '::serin:: {"event": "progress", "message": "fine-tuning 1/3", "fraction": 0.5}')
    succeed(job.request_uri)
    job.ends("Complete", "SUCCEEDED")


def waits(job: Job) -> None:
    """A driver that works until its job is deleted."""
    job.runs()


def test_a_job_that_succeeds_gives_its_artefacts_and_is_deleted(
    world: World, kuberay: KubeRay, capsys: pytest.CaptureFixture[str]
) -> None:
    api = kuberay(trains)
    made = world.launch()
    assert (made.base.path / "weights").read_text() == "base"
    assert (made.model.path / "weights").read_text() == "model"
    assert not api.jobs
    assert [options["propagationPolicy"] for _, options in api.deletions] == ["Foreground"]
    assert "Ray says hello\n" in capsys.readouterr().out
    assert "fine-tuning 1/3" in world.report.messages()


def test_a_finished_try_of_the_same_run_is_taken_over_and_another_run_asks_again(
    world: World, kuberay: KubeRay
) -> None:
    api = kuberay(trains)
    first = world.launch()
    assert world.launch().model.uri == first.model.uri
    assert len(api.created) == 1
    world.launch(lineage_id="run-2")
    assert len(api.created) == 2


@pytest.mark.parametrize(
    ("end", "error", "words"),
    [
        (("Complete", "STOPPED", {}), InterruptedRunError, "stopped from outside"),
        (("Complete", "SUCCEEDED", {}), IntegrityError, "left no outcome"),
        (("ValidationFailed", "", {"reason": "ValidationFailed", "message": "no head"}), ConfigError, "no head"),
        (("Failed", "", {"reason": "DeadlineExceeded"}), InterruptedRunError, "43200 s, its time limit"),
        (("Failed", "", {"reason": "PreRunningDeadlineExceeded"}), UnavailableError, "not started after 900 s"),
        (("Failed", "FAILED", {"reason": "AppFailed", "message": "oom"}), UnavailableError, "left no word .oom."),
        (("Failed", "", {"reason": "SubmissionFailed"}), UnavailableError, "could not be submitted"),
        (
            ("Failed", "RUNNING", {"reason": "JobDeploymentStatusTransitionGracePeriodExceeded"}),
            UnavailableError,
            "lost the Ray cluster",
        ),
        (("Failed", "", {"reason": "SomethingNew"}), UnavailableError, "KubeRay says SomethingNew"),
    ],
)
def test_every_end_has_its_sentence(
    world: World, kuberay: KubeRay, end: tuple[str, str, dict[str, str]], error: type[SerinError], words: str
) -> None:
    deployment, status, more = end
    api = kuberay(lambda job: job.runs().ends(deployment, status, **more))
    with pytest.raises(error, match=words):
        world.launch()
    assert not api.jobs


def test_the_drivers_own_sentence_is_what_is_told(world: World, kuberay: KubeRay) -> None:
    def fails(job: Job) -> None:
        leave(job.request_uri, error="InputError", text="The dataset has no trainable token: add some.")
        job.runs().ends("Failed", "FAILED", reason="AppFailed")

    kuberay(fails)
    with pytest.raises(InputError, match=r"^The dataset has no trainable token: add some\.$"):
        world.launch()


def test_a_driver_that_fails_after_it_claimed_success_is_no_success(world: World, kuberay: KubeRay) -> None:
    def fails(job: Job) -> None:
        succeed(job.request_uri)
        job.runs().ends("Failed", "FAILED", reason="AppFailed")

    kuberay(fails)
    with pytest.raises(UnavailableError, match="failed"):
        world.launch()


def test_a_quota_that_refuses_the_job_is_named(world: World, kuberay: KubeRay) -> None:
    api = kuberay(waits)
    api.refuse_create = (403, "rayjobs.ray.io is forbidden: exceeded quota: compute, requested: count=1, used: count=2")
    with pytest.raises(UnavailableError, match=r"quota of namespace serin-test.*exceeded quota: compute"):
        world.launch()


def test_missing_rights_name_the_role(world: World, kuberay: KubeRay) -> None:
    kuberay(waits).refuse_create = (403, "rayjobs.ray.io is forbidden: User cannot create resource")
    with pytest.raises(UnavailableError, match="bind it to role serin-training"):
        world.launch()


def test_a_cluster_without_kuberay_is_told_so(world: World, kuberay: KubeRay) -> None:
    kuberay(waits).refuse_create = (404, "the server could not find the requested resource")
    with pytest.raises(UnavailableError, match="install KubeRay"):
        world.launch()


def test_a_quota_that_refuses_the_pods_ends_the_job_after_a_while(world: World, kuberay: KubeRay) -> None:
    message = 'pods "head" is forbidden: exceeded quota: compute'
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateHeadPod", "message": message}

    def refused(job: Job) -> None:
        job.status("Initializing", rayClusterName="c", rayClusterStatus={"conditions": [condition]})

    api = kuberay(refused)
    with pytest.raises(UnavailableError, match="cannot start, the namespace's quota refuses its pods"):
        world.launch(world.cluster(hopeless_after_s=0.5))
    assert not api.jobs


def test_an_image_that_cannot_be_pulled_ends_the_job_after_a_while(world: World, kuberay: KubeRay) -> None:
    state = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}

    def pulls(job: Job) -> None:
        job.status("Initializing", rayClusterName="c")
        statuses = [{"image": "serin/ray:0.1.0", "state": state}]
        job.api.add_pod("head", {"ray.io/cluster": "c"}, "Pending", containerStatuses=statuses)

    api = kuberay(pulls)
    with pytest.raises(UnavailableError, match=r"image serin/ray:0\.1\.0 cannot be pulled \(ImagePullBackOff"):
        world.launch(world.cluster(hopeless_after_s=0.5))
    assert not api.jobs


def test_a_job_that_no_node_takes_says_why_until_kuberay_ends_it(world: World, kuberay: KubeRay) -> None:
    lacking = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no GPU"}

    def pends(job: Job) -> None:
        job.api.add_pod("worker", {"ray.io/cluster": "c"}, "Pending", conditions=[lacking])
        job.status("Initializing", rayClusterName="c")
        until(lambda: any("0/3 nodes: no GPU" in message for message in world.report.messages()))
        job.status("Failed", reason="PreRunningDeadlineExceeded")

    kuberay(pends)
    with pytest.raises(UnavailableError, match=r"had not started after 900 s, no node takes pod worker .0/3 nodes"):
        world.launch(world.cluster(hopeless_after_s=0.0))


def test_events_explain_where_they_may_be_read(world: World, kuberay: KubeRay) -> None:
    def pends(job: Job) -> None:
        message = "Failed to create head Pod: admission webhook denied"
        job.api.events.append({"involvedObject": {"name": "c"}, "message": message, "lastTimestamp": "2026-01-01"})
        job.status("Initializing", rayClusterName="c")
        until(lambda: any("admission webhook denied" in text for text in world.report.messages()))
        trains(job)

    kuberay(pends).extra_rights.add(("", "events", "list"))
    world.launch()


def test_waiting_in_kueues_queue_is_told_and_has_a_limit(world: World, kuberay: KubeRay) -> None:
    def queues(job: Job) -> None:
        job.api.suspend(job.name, True)
        job.status("Suspended")

    api = kuberay(queues)
    with pytest.raises(UnavailableError, match="waited 1 s in queue 'gpus'"):
        world.launch(world.cluster(queue="gpus", queue_deadline_s=1))
    assert api.created[0]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert "suspend" not in api.created[0]["spec"]
    assert any("waiting in Kueue's queue gpus" in message for message in world.report.messages())


def test_a_job_that_leaves_the_queue_runs(world: World, kuberay: KubeRay) -> None:
    def queues(job: Job) -> None:
        job.api.suspend(job.name, True)
        until(lambda: any("queue" in message for message in world.report.messages()))
        job.api.suspend(job.name, False)
        trains(job)

    kuberay(queues)
    world.launch(world.cluster(queue="gpus"))


def test_a_job_that_nobody_takes_up_asks_for_the_operator(world: World, kuberay: KubeRay) -> None:
    kuberay(lambda job: None)
    with pytest.raises(UnavailableError, match="is KubeRay's operator running"):
        world.launch(world.cluster(pre_running_deadline_s=1))


def test_a_job_that_outlives_its_limit_is_ended_here(world: World, kuberay: KubeRay) -> None:
    api = kuberay(waits)
    start = time.monotonic()
    hurried = Clock(now=lambda: start + (time.monotonic() - start) * 100_000)
    with pytest.raises(UnavailableError, match="outlived its time limit of 43200 s"):
        world.launch(clock=hurried)
    assert not api.jobs


def test_the_api_server_may_restart_in_the_middle_of_a_watch(world: World, kuberay: KubeRay) -> None:
    def restarts(job: Job) -> None:
        job.runs()
        until(lambda: job.api.num_requests("GET", "watch=true") > 0)
        job.api.restart(1.0)
        trains(job)

    api = kuberay(restarts)
    world.launch()
    assert api.num_requests("GET", "fieldSelector=metadata.name") >= 2
    assert len(api.created) == 1


def test_an_end_that_came_while_the_api_was_away_is_seen(world: World, kuberay: KubeRay) -> None:
    def ends_unseen(job: Job) -> None:
        job.runs()
        until(lambda: job.api.num_requests("GET", "watch=true") > 0)
        job.api.stop()
        succeed(job.request_uri)
        job.ends("Complete", "SUCCEEDED")
        job.api.restart(0.5)

    kuberay(ends_unseen)
    world.launch()


def test_an_api_that_stays_away_is_an_error_in_the_end(world: World, kuberay: KubeRay) -> None:
    def goes(job: Job) -> None:
        job.runs()
        job.api.stop()

    kuberay(goes)
    with pytest.raises(UnavailableError, match="did not answer for 1 s"):
        world.launch(world.cluster(patience_s=1.0))


def test_a_version_that_is_too_old_begins_with_the_list_again(world: World, kuberay: KubeRay) -> None:
    def forgets(job: Job) -> None:
        job.runs()
        for _ in range(2):
            before = job.api.num_requests("GET", "watch=true")
            until(lambda before=before: job.api.num_requests("GET", "watch=true") > before)
            job.api.forget_history()
        trains(job)

    api = kuberay(forgets)
    world.launch()
    assert len(api.created) == 1


def test_a_job_that_somebody_deletes_is_an_error(world: World, kuberay: KubeRay) -> None:
    def deleted(job: Job) -> None:
        job.runs()
        until(lambda: job.api.num_requests("GET", "watch=true") > 0)
        job.api.delete(job.name, {})

    kuberay(deleted)
    with pytest.raises(InterruptedRunError, match="was deleted before its end was seen"):
        world.launch()


def test_a_cut_log_is_taken_up_again_without_losing_or_repeating_a_line(
    world: World, kuberay: KubeRay, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"line {number}" for number in range(12)]

    def cut(job: Job) -> None:
        job.runs()
        job.api.pods[f"{job.name}-sub"].cut_after = 4
        job.says(*lines)
        until(lambda: job.api.num_requests("GET", "sinceTime") > 0)
        succeed(job.request_uri)
        job.ends("Complete", "SUCCEEDED")

    kuberay(cut)
    world.launch()
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("line")] == lines


def test_a_submitter_that_starts_again_repeats_nothing(
    world: World, kuberay: KubeRay, capsys: pytest.CaptureFixture[str]
) -> None:
    def starts_again(job: Job) -> None:
        job.runs()
        job.says("one", "two", "two")
        job.api.phase(f"{job.name}-sub", "Failed")
        until(lambda: job.api.num_requests("GET", "/log") > 0)
        time.sleep(0.5)
        job.api.add_pod("second", {"batch.kubernetes.io/job-name": job.name})
        for line in ("one", "two", "two", "two", "three"):
            job.api.log("second", line)
        job.api.phase("second", "Succeeded")
        succeed(job.request_uri)
        job.status("Complete", "SUCCEEDED")

    kuberay(starts_again)
    world.launch()
    assert capsys.readouterr().out.split() == ["one", "two", "two", "two", "three"]


def test_the_end_of_a_log_is_not_the_end_of_its_job(world: World, kuberay: KubeRay) -> None:
    def loses_its_submitter(job: Job) -> None:
        job.runs()
        job.says("the submitter's connection broke")
        job.api.phase(f"{job.name}-sub", "Failed")
        time.sleep(2.5)
        succeed(job.request_uri)
        job.status("Complete", "SUCCEEDED")

    kuberay(loses_its_submitter)
    assert world.launch().model.path.is_dir()


def test_a_log_that_may_not_be_read_does_not_stop_the_job(
    world: World, kuberay: KubeRay, caplog: pytest.LogCaptureFixture
) -> None:
    def no_container(job: Job) -> None:
        job.runs()
        job.api.pods.clear()
        succeed(job.request_uri)
        job.status("Complete", "SUCCEEDED")

    kuberay(no_container)
    world.launch()


def test_the_lease_is_renewed_while_the_job_runs(world: World, kuberay: KubeRay) -> None:
    seen: set[bytes] = set()

    def watches(job: Job) -> None:
        job.runs()

        def renewed() -> bool:
            seen.add(lease_of(job.request_uri))
            return len(seen) >= 3

        until(renewed)
        trains(job)

    kuberay(watches)
    world.launch()
    assert len(seen) >= 3


def test_our_own_error_deletes_the_job(world: World, kuberay: KubeRay) -> None:
    api = kuberay(lambda job: job.status("Initializing"))

    class BrokenError(Exception):
        pass

    def broken(event: str, **fields: object) -> None:
        raise BrokenError

    world.report = broken  # type: ignore[assignment]
    with pytest.raises(BrokenError):
        world.launch()
    assert len(api.created) == 1
    assert not api.jobs


def test_no_secret_is_in_the_job_or_the_store(world: World, kuberay: KubeRay) -> None:
    api = kuberay(trains)
    cluster = world.cluster(
        secrets=["serin-object-store"], secret_variables={"HF_TOKEN": {"name": "hub", "key": "token"}}
    )
    world.launch(cluster)
    head = api.created[0]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["envFrom"] == [{"secretRef": {"name": "serin-object-store"}}]
    assert head["env"] == [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}]
    assert "launcher-token" not in json.dumps(api.created)


def test_a_store_that_only_this_machine_has_is_refused_before_anything_is_created(
    world: World, kuberay: KubeRay
) -> None:
    api = kuberay(waits)
    with pytest.raises(ConfigError, match=r"The cluster cannot read .*object store"):
        world.launch(world.cluster(volume_claim=""))
    assert not api.requests


# PEFT 0.21 asks transformers 5.23 for an attribute that the latter renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_here_is_the_stage_itself(world: World) -> None:
    made = world.launch(world.cluster(kind="here"))
    assert made.model.metadata["val_loss"] > 0


def test_the_launch_works_outside_of_the_main_thread(world: World, kuberay: KubeRay) -> None:
    kuberay(trains)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(world.launch()))
    thread.start()
    thread.join(30)
    assert found
