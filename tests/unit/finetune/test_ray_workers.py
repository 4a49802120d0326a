"""Jobs on a real Ray: repeatable, sharded, on two nodes, with a worker that dies and one that comes later."""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from jobs import LONG, JobMaker, digest, newest_step, weights

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
TWO_NODES = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
second = {**node, "node_ip_address": "127.0.0.3"}
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
from serin.finetune.job import PROGRESS, Job
from serin.finetune.ray_train import Fleet, RaySession
fleet = Fleet(num_workers=2, cpus_per_worker=1, ray_address=sys.argv[1])
with RaySession(fleet, "nodes") as session:
    for path in sys.argv[2:]:
        session.run(Job.model_validate_json(pathlib.Path(path).read_bytes()), lambda line: None)
"""


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray cluster of two raylets with a CPU each on loopback, in a process of its own; yields its address."""
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
    command = [sys.executable, "-W", "ignore", "-c", TWO_NODES, str(folder.path / "ray")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as cluster:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        folder.note_processes()
        family = psutil.Process(cluster.pid).children(recursive=True)
        try:
            yield address
        finally:
            cluster.communicate(timeout=60)
            late = psutil.wait_procs(family, timeout=20)[1]
            for process in late:
                process.kill()
            folder.close()
    assert not late


def workers() -> list[psutil.Process]:
    """The workers of all sessions that this process started."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]


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


def start_on(address: str, *jobs: Job) -> subprocess.Popen[bytes]:
    """Run jobs on a cluster, from a driver of its own."""
    paths = [Path(job.folder).with_suffix(".json") for job in jobs]
    for path, job in zip(paths, jobs, strict=True):
        path.write_text(job.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "-c", RUN_JOBS, address, *map(str, paths)]
    return subprocess.Popen(command)


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


def test_two_nodes_share_a_job_and_a_killed_worker_costs_nothing(make_job: JobMaker, two_nodes: str) -> None:
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
