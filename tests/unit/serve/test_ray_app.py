"""The gateway on a local Ray: two replicas, one endpoint."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from asking import ask, call
from worlds import World

from serin.core.errors import ConfigError
from serin.core.events import read_events
from serin.core.storage import storage_for

ADMIN = {"authorization": "Bearer of-the-test"}
# Ray's own pydantic models use what pydantic will remove
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")


def test_a_wrong_setting_is_refused_before_anything_starts() -> None:
    from serin.serve.ray_app import app

    with pytest.raises(ConfigError, match="'replicas' is not a setting"):
        app({"store_uri": "file:///tmp/store", "replicas": 3})
    with pytest.raises(ConfigError, match="'num_replicas' is 0"):
        app({"num_replicas": 0})


def test_replicas_by_load_are_handed_to_serve() -> None:
    from serin.serve.ray_app import app

    args = {"store_uri": "file:///tmp/store", "autoscaling": {"min_replicas": 2, "max_replicas": 7}}
    deployment = app(args)._bound_deployment
    config = deployment._deployment_config
    assert (config.autoscaling_config.min_replicas, config.autoscaling_config.max_replicas) == (2, 7)
    assert config.max_ongoing_requests == 64
    assert config.user_config is None


@dataclass
class OnRay:
    """A gateway on Ray."""

    url: str
    args: dict[str, Any]
    process: "subprocess.Popen[str]"

    def change(self, **rollout: Any) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"args": self.args, "user_config": rollout}) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "changed\n"


@pytest.fixture(scope="module")
def on_ray(world: World, serin_home: Path) -> Iterator[OnRay]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    args = {
        "store_uri": world.uri, "endpoint": "assistant", "host": "127.0.0.1", "cpus_per_replica": 0.5,
        "follow_journal": False,
    }  # fmt: skip
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # Ray's sockets need a short path
    environment = {
        **os.environ, "SERIN_HOME": str(serin_home), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        "RAY_enable_metrics_collection": "0", "SERIN_ADMIN_TOKEN": "of-the-test",
    }  # fmt: skip
    settings = {"args": args, "user_config": {"champion": world.champion}}
    with (serin_home / "ray-driver.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("ray_driver.py"), folder, str(port), json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=True,
        )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n", (serin_home / "ray-driver.log").read_text()
        yield OnRay(f"http://127.0.0.1:{port}", args, process)
        process.stdin.close()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_replicas_answer_whole_and_streamed_and_follow_a_rollout(world: World, on_ray: OnRay) -> None:
    def asked(number: int) -> Any:
        return ask(on_ray.url, "Can I return the kettle?", session=f"s{number}", stream=number % 2 == 1)

    whole = asked(0)
    assert whole.status == 200
    assert whole.headers["x-serin-release"] == world.champion
    assert whole.body["choices"][0]["message"]["context"]["citations"][0]["document_id"] == "returns"
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(asked, range(24)))
    assert {answer.status for answer in answers} == {200}
    assert {answer.text for answer in answers} == {whole.text}
    assert all(answer.body[-1] == "[DONE]" for answer in answers[1::2])

    states = [call(f"{on_ray.url}/admin/rollouts", headers=ADMIN).body for _ in range(30)]
    engines = {state["releases"][world.champion]["engine_pid"] for state in states}
    assert len(engines) == 2, "each replica has an engine of its own"
    refused = call(f"{on_ray.url}/admin/rollouts", {"champion": world.candidate}, method="PUT")
    assert (refused.status, refused.body["error"]["code"]) == (409, "replicated")
    assert ask(on_ray.url, nonsense=1).status == 400
    assert call(f"{on_ray.url}/ready").status == 200

    on_ray.change(champion=world.champion, candidate=world.candidate, candidate_weight_percent=100, salt="s")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(asked, range(12)))
    assert {answer.headers["x-serin-release"] for answer in answers} == {world.candidate}
    states = [call(f"{on_ray.url}/admin/rollouts", headers=ADMIN).body for _ in range(30)]
    assert {state["releases"][world.champion]["engine_pid"] for state in states} == engines, "no replica was restarted"

    for _ in range(30):
        call(f"{on_ray.url}/admin/flush", {}, ADMIN, method="POST")
    sessions = {event.session_id for event in read_events(storage_for(world.uri), "assistant")}
    assert {f"s{number}" for number in range(24)} <= sessions
