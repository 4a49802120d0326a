"""The exit handler: what it reports, closes and restores."""

from pathlib import Path

import pytest
from worlds import World, context_of

from serin.conclude.run import conclude, markdown
from serin.core.context import stage_context
from serin.core.gateway_client import GATEWAY_VARIABLE, TOKEN_VARIABLE, GatewayProcess
from serin.core.journal import Journal
from serin.core.storage import LocalStorage
from serin.core.tracking import LINEAGE_TAG, STAGE_TAG, Tracker, prepare_database

CHAMPION, CANDIDATE = "a" * 64, "b" * 64


def a_journal(folder: Path, *decisions: str, lineage_id: str = "test") -> Journal:
    journal = Journal(LocalStorage(folder), "assistant")
    journal.append("promotion", release_id=CHAMPION, decision="promoted")
    for decision in decisions:
        evidence = {"rollout_id": "r1"}
        journal.append("rollout", release_id=CANDIDATE, decision=decision, lineage_id=lineage_id, evidence=evidence)
    return journal


def test_a_run_that_went_well_is_told_with_its_decisions(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, "started", "promote", "promoted")
    context = context_of(str(tmp_path), "conclude")
    found = conclude("SUCCEEDED", "", context)
    assert (found.state, found.champion, found.restored) == ("SUCCEEDED", CHAMPION, "")
    assert [entry.decision for entry in found.decisions] == ["started", "promote", "promoted"]
    assert len(journal.entries()) == 4, "it closed a rollout that was over"
    text = markdown(found, context)
    assert CHAMPION[:12] in text
    assert "| rollout |" in text


def test_an_open_rollout_of_this_run_is_closed_as_aborted(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, "started", "advance")
    found = conclude("FAILED", "Task deploy failed.", context_of(str(tmp_path), "conclude"))
    assert "closed as aborted" in found.restored
    last = journal.entries()[-1]
    assert (last.kind, last.decision, last.release_id) == ("rollout", "aborted", CANDIDATE)
    assert "Task deploy failed." in markdown(found, context_of(str(tmp_path), "conclude"))


def test_a_rollout_that_a_controller_carries_out_goes_on(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    plan = {"rollout_id": "r1", "driver": "controller"}
    journal.append("rollout", release_id=CANDIDATE, decision="started", lineage_id="test", evidence=plan)
    assert "is carried out by a controller" in conclude("SUCCEEDED", "", context_of(str(tmp_path), "conclude")).restored
    assert journal.entries()[-1].decision == "started"


def test_traffic_of_the_cluster_is_taken_back_by_the_standing_controller(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    plan = {"rollout_id": "r1", "config": {"traffic": {"kind": "httproute"}}}
    journal.append("rollout", release_id=CANDIDATE, decision="started", lineage_id="test", evidence=plan)
    assert "take its httproute back" in conclude("FAILED", "", context_of(str(tmp_path), "conclude")).restored
    asked = journal.entries()[-1]
    assert (asked.kind, asked.decision, asked.approved_by) == ("command", "abort", "exit handler")


def test_a_rollout_of_another_run_is_left_alone(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, "started", lineage_id="another")
    assert conclude("SUCCEEDED", "", context_of(str(tmp_path), "conclude")).restored == ""
    assert journal.entries()[-1].decision == "started"


def test_a_gateway_that_is_gone_is_reported_and_the_rollout_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = a_journal(tmp_path, "started")
    monkeypatch.setenv(GATEWAY_VARIABLE, "http://127.0.0.1:9")
    monkeypatch.setenv(TOKEN_VARIABLE, "token")
    found = conclude("FAILED", "", context_of(str(tmp_path), "conclude"))
    assert "could not be taken back" in found.restored
    assert journal.entries()[-1].decision == "started"


def test_traffic_goes_back_to_the_champion_alone(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(str(tmp_path / "journal"), "conclude")  # the world's own store is shared with other tests
    journal = context.journal
    journal.append("promotion", release_id=world.champion, decision="promoted")
    journal.append("rollout", release_id=world.candidate, decision="started", lineage_id="test")
    with GatewayProcess(world.uri, "assistant", world.champion) as gateway:
        gateway.set_rollout(champion=world.champion, candidate=world.candidate, candidate_weight_percent=50.0)
        monkeypatch.setenv(GATEWAY_VARIABLE, gateway.url)
        monkeypatch.setenv(TOKEN_VARIABLE, gateway.admin_token)
        found = conclude("FAILED", "", context)
        state = gateway.state()
    assert "alone again" in found.restored
    assert (state["champion"], state["candidate"]) == (world.champion, None)


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own use of SQLAlchemy
def test_runs_of_killed_stages_are_closed_in_mlflow(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    prepare_database(uri)
    killed = Tracker(uri, "assistant", "run-1", "finetune")
    other = Tracker(uri, "assistant", "run-2", "finetune")
    assert killed.run_id != other.run_id
    with stage_context("conclude", store_uri=str(tmp_path / "store"), tracking_uri=uri, lineage_id="run-1") as context:
        found = conclude("FAILED", "", context)
    assert found.killed_stages == 1
    assert killed.client.get_run(killed.run_id).info.status == "KILLED"
    assert killed.client.get_run(other.run_id).info.status == "RUNNING"
    experiment = killed.client.get_experiment_by_name("assistant").experiment_id
    query = f"tags.`{STAGE_TAG}` = 'pipeline' and tags.`{LINEAGE_TAG}` = 'run-1'"
    (parent,) = killed.client.search_runs([experiment], query)
    assert parent.info.status == "FAILED"
