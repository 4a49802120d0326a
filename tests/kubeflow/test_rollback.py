"""Rollback: the journal, then the traffic, then the aliases; again and again without harm."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from serin.core.errors import InputError, ServingError
from serin.core.journal import Journal
from serin.core.storage import storage_for
from serin.core.tracking import RELEASE_TAG, Tracker
from serin_pipelines.environments import Environment
from serin_pipelines.kubeflow.rollbacks import roll_back

FIRST, SECOND = "1" * 64, "2" * 64
TOKEN = "of-the-administrator"


class Gateway:
    """The administrator's side of a gateway: what it serves, and who may change it."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"champion": SECOND, "candidate": None, "candidate_weight_percent": 0.0}
        self.changes = 0
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, gateway.state)

            def do_PUT(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    self._send(401, {"error": {"message": "no"}})
                    return
                gateway.state, gateway.changes = body, gateway.changes + 1
                self._send(200, body)

            def _send(self, status: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """A running gateway whose token is set."""
    monkeypatch.setenv("SERIN_ADMIN_TOKEN", TOKEN)
    running = Gateway()
    yield running
    running.stop()


@pytest.fixture
def place(tmp_path: Path) -> Environment:
    """An environment without a gateway, in which the second release serves."""
    place = Environment(name="test", store_uri=(tmp_path / "store").as_uri())
    for release_id in (FIRST, SECOND):
        journal_of(place).append("promotion", release_id=release_id, decision="promoted")
    return place


def journal_of(place: Environment) -> Journal:
    """The environment's journal."""
    return Journal(storage_for(place.store_uri), place.endpoint)


def test_the_release_before_the_champion_serves_again(place: Environment) -> None:
    result = roll_back(place, reason="wrong refund answers", approved_by="ada")
    assert (result.verdict, result.champion, result.rolled_back) == ("rolled_back", FIRST, SECOND)
    assert (result.traffic, result.aliases) == ("no gateway", "off")
    entry = journal_of(place).entries()[-1]
    assert (entry.kind, entry.reasons, entry.approved_by) == ("rollback", ("wrong refund answers",), "ada")
    assert journal_of(place).champion() == FIRST


def test_with_from_a_second_call_adds_nothing(place: Environment) -> None:
    roll_back(place, reason="why", approved_by="ada", from_release=SECOND[:8])
    number = len(journal_of(place).entries())
    again = roll_back(place, reason="why", approved_by="ada", from_release=SECOND[:8])
    assert (again.verdict, again.champion, again.rolled_back) == ("already_rolled_back", FIRST, SECOND)
    assert len(journal_of(place).entries()) == number


def test_a_release_that_never_served_is_refused(place: Environment) -> None:
    with pytest.raises(InputError, match="is no release that has served endpoint 'assistant'"):
        roll_back(place, reason="why", approved_by="ada", from_release="3" * 64)


def test_without_a_release_before_it_the_champion_stays(tmp_path: Path) -> None:
    place = Environment(name="test", store_uri=(tmp_path / "store").as_uri())
    journal_of(place).append("promotion", release_id=FIRST, decision="promoted")
    with pytest.raises(InputError, match="has no release before its champion"):
        roll_back(place, reason="why", approved_by="ada")
    assert journal_of(place).champion() == FIRST


def test_the_gateways_traffic_follows_the_journal(place: Environment, gateway: Gateway) -> None:
    place = place.model_copy(update={"gateway_url": gateway.url})
    assert roll_back(place, reason="why", approved_by="ada", from_release=SECOND).traffic == "moved"
    assert gateway.state["champion"] == FIRST
    assert gateway.state["candidate"] is None
    assert roll_back(place, reason="why", approved_by="ada", from_release=SECOND).traffic == "there already"
    assert gateway.changes == 1


def test_a_gateway_that_is_down_leaves_the_journal_and_says_what_is_left_to_do(
    place: Environment, gateway: Gateway
) -> None:
    gateway.stop()
    place = place.model_copy(update={"gateway_url": gateway.url})
    with pytest.raises(ServingError, match="The journal says 111111111111 and stands, but traffic still") as caught:
        roll_back(place, reason="why", approved_by="ada", from_release=SECOND)
    assert caught.value.exit_code == 6
    assert journal_of(place).champion() == FIRST
    other = Gateway()
    place = place.model_copy(update={"gateway_url": other.url})
    again = roll_back(place, reason="why", approved_by="ada", from_release=SECOND)
    other.stop()
    assert (again.verdict, again.traffic, other.state["champion"]) == ("already_rolled_back", "moved", FIRST)


def test_a_missing_administrators_token_is_said_with_the_journal_standing(
    place: Environment, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SERIN_ADMIN_TOKEN")
    place = place.model_copy(update={"gateway_url": gateway.url})
    with pytest.raises(ServingError, match="set SERIN_ADMIN_TOKEN"):
        roll_back(place, reason="why", approved_by="ada")
    assert journal_of(place).champion() == FIRST
    assert gateway.changes == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own use of SQLAlchemy
def test_the_aliases_follow_the_journal(place: Environment, tmp_path: Path) -> None:
    place = place.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path / 'mlflow.db'}"})
    assert "is not registered in MLflow" in roll_back(place, reason="why", approved_by="ada").aliases
    tracker = Tracker(place.tracking_uri, place.endpoint, "lineage", "release")
    tracker.register(place.endpoint, FIRST, "file:///nowhere")
    assert roll_back(place, reason="why", approved_by="ada", from_release=SECOND).aliases == "moved"
    champion = tracker.client.get_model_version_by_alias(place.endpoint, "champion")
    assert champion.tags[RELEASE_TAG] == FIRST


def test_an_emergency_does_not_wait_for_mlflow(place: Environment, gateway: Gateway) -> None:
    nobody = Gateway()
    nobody.stop()
    place = place.model_copy(update={"tracking_uri": nobody.url, "gateway_url": gateway.url})
    result = roll_back(place, reason="why", approved_by="ada")
    assert (result.verdict, gateway.state["champion"]) == ("rolled_back", FIRST)
    assert result.aliases.startswith(f"not moved: MLflow at {nobody.url} ")
