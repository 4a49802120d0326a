"""The executor on a real gateway with real engines: promotion, rollback, refusal, interruption."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from worlds import World, artifact_of, context_of, passed_gate, release_of

from serin.core.artifacts import Artifact, ArtifactStore
from serin.core.errors import InputError, IntegrityError
from serin.core.gateway_client import TOKEN_VARIABLE, GatewayProcess
from serin.core.release import load_release, save_release
from serin.core.serving import ServingConfig
from serin.deploy.config import DeployConfig, JudgePolicy
from serin.deploy.rollout import deploy, rollback
from serin.deploy.traffic_providers.config import TrafficConfig

LENIENT = JudgePolicy(
    max_ttft_ratio=20, tolerated_ttft_ratio=10, max_error_increase=0.6, max_support_drop=1, min_sessions=8
)
QUICK = DeployConfig(
    steps_percent=(50.0,), sessions_per_look=12, min_sessions_per_step=1, max_sessions=120, judge=LENIENT
)


@pytest.fixture
def own_world(world: World, tmp_path: Path) -> World:
    """A copy of the store, so that each test has a journal of its own."""
    source = Path(world.uri.removeprefix("file://"))
    shutil.copytree(source, tmp_path / "store")
    uri = (tmp_path / "store").as_uri()
    moved = ArtifactStore(uri)
    parts = {
        name: moved.open(getattr(world, name).uri.replace(world.uri, uri)) for name in ("dataset", "index", "model")
    }
    return World(uri=uri, champion=world.champion, candidate=world.candidate, **parts)


def passed(world: World, release_id: str, decision: str = "pass") -> None:
    passed_gate(world.uri, release_id, decision)


def roll_out(world: World, config: DeployConfig = QUICK, **reporting: Any) -> Any:
    context = context_of(world.uri, "deploy", **reporting)
    storage = context.store.storage
    candidate, champion = load_release(storage, world.candidate), load_release(storage, world.champion)
    return deploy(config, candidate, champion, world.dataset, context)


def test_a_good_candidate_is_promoted_with_every_step_in_the_journal(own_world: World) -> None:
    passed(own_world, own_world.candidate)
    rollout = roll_out(own_world)
    assert rollout.decision.outcome == "promote"
    assert rollout.failed_requests == 0
    assert rollout.sample["trace_id"]
    journal = context_of(own_world.uri, "deploy").journal
    kinds = [(entry.kind, entry.decision) for entry in journal.entries()]
    assert kinds == [
        ("gate", "pass"), ("promotion", "promoted"), ("rollout", "started"), ("rollout", "warmup"),
        ("rollout", "shadow"), ("rollout", "advance"), ("rollout", "promote"), ("promotion", "promoted"),
        ("rollout", "promoted"),
    ]  # fmt: skip
    assert context_of(own_world.uri, "deploy").store.storage.exists(rollout.page)
    assert (journal.champion(), journal.previous()) == (own_world.candidate, own_world.champion)

    again = roll_out(own_world)
    assert again.decision.outcome == "unchanged"
    assert len(journal.entries()) == len(kinds)

    context = context_of(own_world.uri, "deploy")
    assert rollback(approved_by="ada", reason="drill", context=context) == own_world.champion
    assert journal.champion() == own_world.champion
    with pytest.raises(InputError, match="no release before its champion"):
        rollback(approved_by="ada", reason="drill", context=context)


def test_a_candidate_whose_engine_dies_is_rolled_back_and_no_user_notices(
    own_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed(own_world, own_world.candidate)
    with GatewayProcess(own_world.uri, "assistant", own_world.champion) as gateway:
        monkeypatch.setenv(TOKEN_VARIABLE, gateway.admin_token)

        def kill_candidate(event: str, **fields: Any) -> None:
            if "canary" in fields.get("message", ""):
                engine = gateway.state()["releases"].get(own_world.candidate)
                if engine and engine["engine_alive"]:
                    os.kill(engine["engine_pid"], signal.SIGKILL)

        traffic = TrafficConfig(gateways=(gateway.url,))
        strict = QUICK.model_copy(update={"traffic": traffic, "judge": LENIENT.model_copy(update={"min_sessions": 60})})
        rollout = roll_out(own_world, strict, report=kill_candidate)
        state = gateway.state()
    assert rollout.decision.outcome == "rollback"
    assert rollout.failed_requests == 0
    assert (state["champion"], state["candidate"]) == (own_world.champion, None)
    assert context_of(own_world.uri, "deploy").journal.champion() == own_world.champion
    assert "does not run" in rollout.decision.reasons[0]


def tuned(world: World, store: ArtifactStore) -> Artifact:
    """A tuned model with nothing that an engine could load."""
    sources = {"base": world.model, "dataset": world.dataset}
    return artifact_of(store, "model", lambda target: (target / "config.json").write_text("{}"), sources)


def test_a_candidate_that_does_not_start_is_turned_away_and_the_champion_stays(own_world: World) -> None:
    store = ArtifactStore(own_world.uri)
    empty = tuned(own_world, store)
    broken = release_of(empty, own_world.index, own_world.dataset, ServingConfig(max_new_tokens=8))
    save_release(store.storage, broken)
    passed(own_world, broken.id)
    context = context_of(own_world.uri, "deploy")
    champion = load_release(store.storage, own_world.champion)
    rollout = deploy(QUICK, broken, champion, own_world.dataset, context)
    assert rollout.decision.outcome == "rollback"
    assert "cannot be served" in rollout.decision.reasons[0]
    last = context.journal.find(kind="rollout")[-1]
    assert (last.release_id, last.decision) == (broken.id, "rolled back")
    assert context.journal.champion() == own_world.champion


def test_a_release_that_never_passed_the_gate_is_refused(own_world: World) -> None:
    with pytest.raises(IntegrityError, match="never evaluated"):
        roll_out(own_world)
    passed(own_world, own_world.candidate)
    passed(own_world, own_world.candidate, "fail")
    with pytest.raises(IntegrityError, match="Its last gate says 'fail'"):
        roll_out(own_world)
    assert context_of(own_world.uri, "deploy").journal.champion() is None


def test_a_release_that_was_changed_by_one_byte_is_refused_by_the_name_of_its_part(own_world: World) -> None:
    store = ArtifactStore(own_world.uri)
    model = tuned(own_world, store)
    release = release_of(model, own_world.index, own_world.dataset, ServingConfig(max_new_tokens=8))
    save_release(store.storage, release)
    passed(own_world, release.id)
    (model.path / "config.json").write_text("[}")
    context = context_of(own_world.uri, "deploy")
    champion = load_release(store.storage, own_world.champion)
    with pytest.raises(IntegrityError, match=r"model: .*config\.json"):
        deploy(QUICK, release, champion, own_world.dataset, context)
    assert context.journal.find(kind="rollout") == []


def test_an_environment_that_asks_for_a_signature_gets_no_unsigned_release(
    own_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed(own_world, own_world.candidate)
    monkeypatch.setenv("SERIN_RELEASE_REQUIREMENTS", json.dumps({"require_signature": True}))
    with pytest.raises(IntegrityError, match="signature: A signature is required"):
        roll_out(own_world)


def test_a_rollout_whose_process_was_killed_is_closed_before_the_next(own_world: World) -> None:
    passed(own_world, own_world.candidate)
    journal = context_of(own_world.uri, "deploy").journal
    journal.append("rollout", release_id="a" * 64, decision="advance", evidence={"rollout_id": "lost"})
    roll_out(own_world)
    decisions = [(entry.release_id[:4], entry.decision) for entry in journal.find(kind="rollout")]
    assert decisions[:3] == [("aaaa", "advance"), ("aaaa", "aborted"), (own_world.candidate[:4], "started")]


def test_an_undecided_rollout_ends_as_configured(own_world: World) -> None:
    passed(own_world, own_world.candidate)
    never = LENIENT.model_copy(update={"min_sessions": 5000})
    config = QUICK.model_copy(update={"max_sessions": 24, "judge": never, "on_inconclusive": "hold"})
    rollout = roll_out(own_world, config)
    assert rollout.decision.outcome == "hold"
    assert rollout.decision.reasons[0] == "Undecided in time."
    assert context_of(own_world.uri, "deploy").journal.champion() == own_world.champion
