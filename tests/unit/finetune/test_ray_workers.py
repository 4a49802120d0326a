"""Jobs on a real Ray: repeatable, sharded, on two nodes, with a worker that dies and one that comes later."""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from jobs import LONG, JobMaker, digest, newest_step, weights
from lamps import SMALL, Inputs

from serin.core.digests import code_version
from serin.finetune.cluster.request import JobRequest, RequestBook, opened
from serin.finetune.config import FinetuneConfig
from serin.finetune.job import PROGRESS, Job
from serin.finetune.loop import train
from serin.finetune.ray_folder import RayFolder
from serin.finetune.ray_train import Fleet, LocalSession, RaySession, scaling_of, session_for, trainer_class

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(280),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own calls, in threads of its own
]

ONE = Fleet(num_workers=1, cpus_per_worker=1)


@pytest.fixture
def make_job(tmp_path: Path, tiny_folder: Path, tokenizer: Any) -> JobMaker:
    return JobMaker(tmp_path, tiny_folder, tokenizer)


# Two addresses of the loopback interface: Ray takes 127.0.0.1 for a mistake and looks at another interface.
SECOND = "127.0.0.3"
TWO_NODES = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
second = {**node, "node_ip_address": sys.argv[2]}
head = {**node, "node_ip_address": "127.0.0.2", "temp_dir": sys.argv[1]}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(**second)
cluster.wait_for_nodes(timeout=60)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
RUN_JOBS = """
import pathlib, sys
from serin.finetune.job import Job
from serin.finetune.ray_train import Fleet, RaySession
with RaySession(Fleet.model_validate_json(sys.argv[1]), "nodes") as session:
    for path in sys.argv[2:]:
        session.run(Job.model_validate_json(pathlib.Path(path).read_bytes()), lambda line: None)
"""


@dataclass(frozen=True)
class Nodes:
    """A Ray cluster of two raylets with a CPU each on loopback, in a process of its own."""

    address: str
    family: Sequence[psutil.Process]
    """All its processes."""

    def lose_the_second(self) -> None:
        """Kill -9 the second node's raylet and everything that it started."""
        [raylet] = [
            process for process in self.family if process.name() == "raylet" and SECOND in " ".join(process.cmdline())
        ]
        for process in (raylet, *raylet.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Nodes]:
    """The cluster, for the tests of this module in their order: the last one loses a node of it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield from _two_nodes(monkeypatch)


def _two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    folder = RayFolder()
    (folder.path / "ray").mkdir()
    variables = {
        "RAY_TMPDIR": str(folder.path),  # else the cluster's address is noted for the whole machine
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-W", "ignore", "-c", TWO_NODES, str(folder.path / "ray"), SECOND]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as cluster:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        family = psutil.Process(cluster.pid).children(recursive=True)
        try:
            yield Nodes(address, family)
        finally:
            cluster.communicate(timeout=60)
            late = psutil.wait_procs(family, timeout=20)[1]
            for process in late:
                process.kill()
            folder.close()
    assert not late


def workers() -> list[psutil.Process]:
    """The workers of all sessions that this process started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
    return found


def kill_one_at(job: Job, step: int) -> threading.Thread:
    """Kill -9 the youngest worker once the job has a checkpoint of a step."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while newest_step(job) < step and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(max(workers(), key=lambda process: process.create_time()).pid, signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def start_on(nodes: Nodes, *jobs: Job, **more: Any) -> subprocess.Popen[bytes]:
    """Run jobs on a cluster, from a driver of its own."""
    fleet = Fleet(num_workers=2, cpus_per_worker=1, ray_address=nodes.address, **more)
    paths = [Path(job.folder).with_suffix(".json") for job in jobs]
    for path, job in zip(paths, jobs, strict=True):
        path.write_text(job.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "-c", RUN_JOBS, fleet.model_dump_json(), *map(str, paths)]
    return subprocess.Popen(command)


def wait_for(condition: Callable[[], object], driver: subprocess.Popen[bytes], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert driver.poll() is None, "the driver ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines_of(job: Job) -> list[dict[str, Any]]:
    """The whole lines of a job's progress so far."""
    path = Path(job.folder) / PROGRESS
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def batches_seen(records: list[dict[str, Any]]) -> dict[int, set[str]]:
    """The batches that each step was made with: one each, if none was skipped or seen twice."""
    seen: dict[int, set[str]] = {}
    for record in records:
        if "batch" in record:
            seen.setdefault(record["step"], set()).add(record["batch"])
    return seen


def assert_alike(one: dict[str, Any], two: dict[str, Any]) -> None:
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=1e-2, atol=1e-3)


def test_no_workers_is_this_process_and_settings_reach_the_fleet() -> None:
    assert isinstance(session_for(FinetuneConfig(num_workers=0), "run"), LocalSession)
    session = session_for(FinetuneConfig(num_workers=3, cpus_per_worker=4, max_failures=1), "run")
    assert isinstance(session, RaySession)
    assert session.fleet == Fleet(num_workers=3, cpus_per_worker=4, max_failures=1)
    elastic = session_for(FinetuneConfig(num_workers=3, min_workers=2), "run")
    assert isinstance(elastic, RaySession)
    assert elastic.fleet.min_workers == 2


def test_fewer_workers_than_wanted_are_asked_of_ray_as_a_range() -> None:
    elastic = scaling_of(Fleet(num_workers=3, min_workers=2, cpus_per_worker=4, device="cpu"))
    assert (elastic.num_workers, elastic.elasticity_enabled) == ((2, 3), True)
    assert (elastic.min_workers, elastic.max_workers) == (2, 3)
    assert elastic.resources_per_worker == {"CPU": 4}
    fixed = [scaling_of(Fleet(num_workers=3, device="cpu")), scaling_of(Fleet(num_workers=3, min_workers=3))]
    assert [(each.num_workers, each.elasticity_enabled) for each in fixed] == [(3, False)] * 2


def test_a_local_ray_starts_no_actor_that_has_nothing_to_do() -> None:
    def names(is_local: bool) -> set[str]:
        trainer = trainer_class(is_local)(print, scaling_config=scaling_of(ONE))
        return {type(each).__name__ for each in trainer._create_default_callbacks()}

    assert "BackendSetupCallback" in names(is_local=True)
    assert not names(is_local=True) & {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert names(is_local=False) - names(is_local=True) == {"PlacementGroupCleanerCallback"}


def test_ray_gives_the_digest_that_the_plain_loop_gives(make_job: JobMaker) -> None:
    job, again = make_job("ray"), make_job("again")
    with RaySession(ONE, "repeatable") as session:
        session.run(job, lambda record: None)
        session.run(again, lambda record: None)
    assert digest(job.final) == digest(again.final) == digest(train(make_job("plain")))


def test_two_nodes_share_a_job_and_a_killed_worker_costs_nothing(make_job: JobMaker, two_nodes: Nodes) -> None:
    job = make_job("shared", optim=LONG, checkpoint_interval_s=0.0)
    sharded = make_job("sharded", strategy="fsdp2")
    killer = kill_one_at(job, step=5)
    assert start_on(two_nodes, job, sharded).wait(timeout=240) == 0
    killer.join()
    records = lines_of(job)
    resumed = [record["step"] for record in records if record.get("resumed")]
    assert len(resumed) == 1
    assert resumed[0] >= 5
    seen = batches_seen(records)
    assert sorted(seen) == list(range(1, 151))
    assert all(len(batches) == 1 for batches in seen.values())
    assert_alike(weights(train(make_job("few"))), weights(sharded.final))


def test_a_driver_beside_the_head_trains_on_the_clusters_workers(
    inputs: Inputs, tiny_folder: Path, two_nodes: Nodes
) -> None:
    request = JobRequest(
        config={**SMALL.dump(), "num_workers": 2, "max_steps": 12},
        base_model=str(tiny_folder),
        prompt=inputs.prompt.dump(),
        dataset_uri=inputs.dataset.uri,
        dataset_digest=inputs.dataset.digest,
        documents_uri=inputs.documents.uri,
        documents_digest=inputs.documents.digest,
        store_uri=inputs.store.uri,
        tracking_uri="",
        endpoint="assistant",
        lineage_id="lineage-1",
        code_version=code_version("finetune"),
    )
    book = RequestBook(request, lease_expiry_s=300, attach=True)
    book.write(attempt := book.attempt(1))
    command = [sys.executable, "-W", "ignore", "-m", "serin.finetune.cluster.driver", attempt.request_uri]
    with subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": two_nodes.address}) as driver:
        wait_for(lambda: len(workers()) == 2, driver)
        assert len({worker.ppid() for worker in workers()}) == 2, "both are on one node"
        assert not [each for each in psutil.Process(driver.pid).children(recursive=True) if each.name() == "raylet"]
        assert driver.wait(timeout=200) == 0
    outcome = attempt.outcome()
    assert outcome is not None
    model = opened(outcome, inputs.store).model
    assert (model.metadata["steps"], model.metadata["numerics"]["num_workers"]) == (12, 2)


def test_a_node_that_is_lost_leaves_the_other_one_at_work(make_job: JobMaker, two_nodes: Nodes) -> None:
    job = make_job("elastic", optim=LONG, checkpoint_interval_s=0.0)
    with start_on(two_nodes, job, min_workers=1) as driver:
        wait_for(lambda: newest_step(job) >= 5, driver)
        two_nodes.lose_the_second()
        assert driver.wait(timeout=200) == 0
    records = lines_of(job)
    sizes = [record["num_devices"] for record in records if "batch" in record]
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) == {1, 2}, "it began with two workers and ended with one"
    assert len([record for record in records if record.get("resumed")]) == 1
    seen = batches_seen(records)
    assert sorted(seen) == list(range(1, 151)), "a batch was left out"
    assert all(len(batches) == 1 for batches in seen.values()), "another batch was taken the second time"
    losses = {size: [each["loss"] for each in records if each.get("num_devices") == size] for size in (1, 2)}
    assert losses[1][0] < losses[2][0], "what had been learned was lost"
