"""The fault drill: real processes, real HTTP, users who never stop asking; whatever breaks, the rollout itself costs
nobody an answer."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from drill import FIRST_TOKEN_S, Model, Upstream, Users, backends
from worlds import World, context_of, passed_gate

from serin.core.artifacts import ArtifactStore
from serin.core.gateway_client import TOKEN_VARIABLE, GatewayProcess
from serin.core.journal import Journal
from serin.core.release import load_release
from serin.core.rollouts import last_rollout
from serin.deploy.config import DeployConfig, ShadowConfig
from serin.deploy.rollout import Rollout, deploy
from serin.deploy.traffic_providers.config import TrafficConfig

pytestmark = pytest.mark.slow
LEAK = "You can return the kettle. Her card is 4111 1111 1111 1111."
CONFIG = DeployConfig(
    requests="users", steps_percent=(20.0, 50.0), look_interval_s=0.5, settle_s=0.5, max_sessions=1500,
    min_sessions_per_step=8, shadow=ShadowConfig(min_answers=8, questions=0, deadline_s=60),
)  # fmt: skip


@dataclass
class Stage:
    """One scenario's processes."""

    world: World
    upstream: Upstream
    gateway: GatewayProcess
    users: Users

    @property
    def journal(self) -> Journal:
        return context_of(self.world.uri, "deploy").journal

    @property
    def config(self) -> DeployConfig:
        return CONFIG.model_copy(update={"traffic": TrafficConfig(gateways=(self.gateway.url,))})

    def roll_out(self, report: Callable[..., None] | None = None) -> Rollout:
        context = context_of(self.world.uri, "deploy", report)
        storage = context.store.storage
        releases = (load_release(storage, self.world.candidate), load_release(storage, self.world.champion))
        return deploy(self.config, *releases, self.world.dataset, context)


@pytest.fixture
def stage(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    source = Path(world.uri.removeprefix("file://"))
    shutil.copytree(source, tmp_path / "store")
    uri = (tmp_path / "store").as_uri()
    moved = ArtifactStore(uri)
    parts = {n: moved.open(getattr(world, n).uri.replace(world.uri, uri)) for n in ("dataset", "index", "model")}
    own = World(uri=uri, champion=world.champion, candidate=world.candidate, **parts)
    passed_gate(uri, own.candidate)
    context_of(uri, "deploy").journal.append("promotion", release_id=own.champion, decision="promoted")
    with Upstream(champion=Model(), candidate=Model()) as upstream:
        monkeypatch.setenv("SERIN_BACKENDS", backends(upstream.url, own.candidate))
        with GatewayProcess(uri, "assistant", own.champion) as gateway:
            monkeypatch.setenv(TOKEN_VARIABLE, gateway.admin_token)
            with Users(gateway.url, gateway.admin_token).asking() as users:
                yield Stage(own, upstream, gateway, users)


def ends(stage: Stage, champion: str) -> dict[str, Any]:
    """What must hold after any rollout: journal, gateway and users agree."""
    state = stage.gateway.state()
    assert stage.journal.champion() == champion
    assert (state["champion"], state["candidate"], state["candidate_weight_percent"]) == (champion, None, 0.0)
    record = last_rollout(stage.journal)
    assert record is not None
    assert record.over
    return state


def test_an_identical_candidate_is_promoted_and_nobody_notices(stage: Stage) -> None:
    rollout = stage.roll_out()
    assert rollout.decision.outcome == "promote", rollout.decision.reasons
    ends(stage, stage.world.candidate)
    assert stage.users.failed == 0
    there_and_back = [tracks for tracks in stage.users.tracks.values() if len(set(tracks)) > 1]
    assert len(there_and_back) < len(stage.users.tracks) / 4, "sessions did not stay where they were"


@pytest.mark.parametrize(
    ("harm", "model"),
    [
        ("ttft", Model(first_token_s=FIRST_TOKEN_S * 1.4)),
        ("errors", Model(failing=0.08)),
        (
            "guardrail|support",
            Model(other="You can return the kettle. Her card is 4111 1111 1111 1111.", other_fraction=0.6),
        ),
        ("support", Model(answer="Bananas grow in Greenland and the moon sells 17 bicycles.")),
    ],
)
def test_a_worse_candidate_is_rolled_back_and_nobody_notices(stage: Stage, harm: str, model: Model) -> None:
    stage.upstream.models["candidate"] = model
    rollout = stage.roll_out()
    assert rollout.decision.outcome == "rollback", rollout.decision.reasons
    assert re.search(harm, " ".join(rollout.decision.reasons))
    ends(stage, stage.world.champion)
    assert stage.users.failed == 0


def test_a_candidate_that_cannot_start_never_gets_a_user(stage: Stage) -> None:
    del stage.upstream.models["candidate"]
    assert stage.roll_out().decision.outcome == "rollback"
    ends(stage, stage.world.champion)
    assert stage.users.failed == 0
    assert all("candidate" not in tracks for tracks in stage.users.tracks.values())


def test_a_gateway_that_is_killed_comes_back_into_the_same_rollout(stage: Stage) -> None:
    killed: list[float] = []
    over = threading.Event()

    def kill_once(event: str, **fields: Any) -> None:
        if "step, 20%" in fields.get("message", "") and not killed:
            killed.append(time.monotonic())
            os.kill(stage.gateway.pid, signal.SIGKILL)
            stage.gateway._process.wait()  # type: ignore[union-attr]
            threading.Thread(target=restart, daemon=True).start()

    def restart() -> None:
        time.sleep(0.5)
        stage.gateway._command[stage.gateway._command.index("--port") + 1] = stage.gateway.url.rpartition(":")[2]
        stage.gateway.start()
        killed.append(time.monotonic())
        over.wait(250)  # the gateway ends with the thread that started it

    try:
        rollout = stage.roll_out(kill_once)
        ends(stage, stage.world.candidate)
    finally:
        over.set()
    assert rollout.decision.outcome == "promote", rollout.decision.reasons
    began, back = killed
    outside = [at for at in stage.users.failed_at if not began - 1 < at < back + 1]
    assert outside == [], "users failed while the gateway was there"


def test_a_controller_that_is_killed_is_followed_by_the_next(stage: Stage, tmp_path: Path) -> None:
    settings = tmp_path / "run.yaml"
    settings.write_text(yaml.safe_dump({"deploy": stage.config.parameters()}))
    command = [
        sys.executable, "-m", "serin_pipelines.cli", "deploy", "--release", stage.world.candidate,
        "--baseline", stage.world.champion, "--dataset", stage.world.dataset.uri, "--store", stage.world.uri,
        "--tracking", f"sqlite:///{tmp_path / 'mlflow.db'}", "--config", str(settings),
    ]  # fmt: skip
    log = tmp_path / "controller.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        deadline = time.monotonic() + 120
        while (record := last_rollout(stage.journal)) is None or record.state != "step":
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    assert stage.gateway.state()["candidate"] == stage.world.candidate
    rollout = stage.roll_out()
    assert rollout.rollout_id == record.rollout_id
    assert rollout.decision.outcome == "promote", rollout.decision.reasons
    decisions = [entry.decision for entry in stage.journal.find(kind="rollout")]
    assert "resumed" in decisions
    assert decisions.count("started") == 1
    ends(stage, stage.world.candidate)
    assert stage.users.failed == 0
