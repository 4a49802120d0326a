"""Traffic through two real gateways that stand for one endpoint."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from traffic_worlds import RELEASES
from worlds import World as Store

from serin.core.errors import ConfigError, FencedError, ServingError
from serin.core.gateway_client import GATEWAY_VARIABLE, TOKEN_VARIABLE, GatewayClient, GatewayProcess, NotReadyError
from serin.deploy.traffic_providers.base import DriftError, Split
from serin.deploy.traffic_providers.config import TrafficConfig
from serin.deploy.traffic_providers.from_config import provider_for
from serin.deploy.traffic_providers.gateway import GatewayTraffic, addresses


class ModelServer:
    """A model server that says whether it is healthy, and nothing else; use it in a ``with`` statement."""

    def __init__(self) -> None:
        self.healthy = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if outer.healthy else 503)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "ModelServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Endpoint:
    """Two gateways, and the server of the candidate's model."""

    gateways: list[GatewayProcess]
    store: Store
    candidate_server: ModelServer

    def provider(self) -> GatewayTraffic:
        return GatewayTraffic(lambda: self.gateways)

    def split(self, percent: float = 0.0, *, salt: str = "r1", mirror: float = 0.0) -> Split:
        return Split(self.store.champion, self.store.candidate, percent, salt, mirror)

    def served(self) -> list[tuple[str, str | None, float]]:
        states = [gateway.state() for gateway in self.gateways]
        return [(one["champion"], one["candidate"], one["candidate_weight_percent"]) for one in states]


@pytest.fixture(scope="module")
def running(world: Store) -> Iterator[Endpoint]:
    with ModelServer() as one, ModelServer() as other, pytest.MonkeyPatch.context() as patch:
        short = {"health_s": 0.2, "ready_s": 2.0}
        servers = {
            world.champion: {"urls": [one.url], "model": "one"},
            world.candidate: {"urls": [other.url], "model": "two", **short},
        }
        patch.setenv("SERIN_BACKENDS", json.dumps(servers))
        with (
            GatewayProcess(world.uri, "split", world.champion) as first,
            GatewayProcess(world.uri, "split", world.champion) as second,
        ):
            yield Endpoint([first, second], world, other)


@pytest.fixture
def endpoint(running: Endpoint) -> Endpoint:
    """Both gateways with the champion alone, told under the highest lease so far."""
    running.candidate_server.healthy = True
    for gateway in running.gateways:
        fence = gateway.state()["fence"]
        gateway.set_rollout(champion=running.store.champion, salt="before", fence=fence)
    return running


def _fence(endpoint: Endpoint) -> int:
    return max(int(gateway.state()["fence"]) for gateway in endpoint.gateways)


def test_a_gateway_that_has_just_started_is_told_too(running: Endpoint) -> None:
    first, fresh = running.gateways
    alone, fence = GatewayTraffic(lambda: [first]), 1
    alone.apply(running.split(30.0), fence=fence)
    assert fresh.state()["fence"] == 0
    controller = running.provider()
    assert controller.live().split == Split(running.store.champion)  # what it serves by itself: not what was told
    assert controller.live().fence == 0
    controller.apply(running.split(30.0), fence=fence)
    assert (controller.live().split, controller.live().fence) == (running.split(30.0), fence)


def test_every_gateway_is_told_and_a_release_moves_as_one(endpoint: Endpoint) -> None:
    provider, fence = endpoint.provider(), _fence(endpoint) + 1
    champion, candidate = endpoint.store.champion, endpoint.store.candidate
    provider.check((0.3, 50.0), mirror=True)
    for split in (endpoint.split(mirror=20.0), endpoint.split(0.3), endpoint.split(50.0)):
        provider.apply(split, fence=fence)
        live = provider.live()
        assert (live.split, live.fence, live.candidate_ready, live.failed) == (split, fence, True, False)
        assert endpoint.served() == [(champion, candidate, split.percent)] * 2
    provider.apply(Split(champion, salt="r1"), fence=fence)
    assert endpoint.served() == [(champion, None, 0.0)] * 2
    assert provider.sticky


def test_an_earlier_lease_is_refused_by_all(endpoint: Endpoint) -> None:
    fence = _fence(endpoint) + 5
    endpoint.provider().apply(endpoint.split(10.0), fence=fence)
    with pytest.raises(FencedError):
        endpoint.provider().apply(endpoint.split(20.0), fence=fence - 1)
    assert [percent for *_, percent in endpoint.served()] == [10.0, 10.0]


def test_what_a_person_changes_during_a_rollout_stops_it(endpoint: Endpoint) -> None:
    provider, fence = endpoint.provider(), _fence(endpoint) + 1
    provider.apply(endpoint.split(10.0), fence=fence)
    edited = endpoint.gateways[1]
    edited.set_rollout(
        champion=endpoint.store.champion, candidate=endpoint.store.candidate, candidate_weight_percent=60.0
    )
    with pytest.raises(DriftError, match=r"percent by hand: expected 10\.0, found 60\.0"):
        provider.live()
    for controller in (provider, endpoint.provider()):  # one that starts anew knows it by the rollout's salt
        with pytest.raises(DriftError, match="by hand"):
            controller.apply(endpoint.split(20.0), fence=fence + 1)
    assert edited.state()["candidate_weight_percent"] == 60.0


def test_what_a_person_changed_before_a_rollout_is_where_it_starts(endpoint: Endpoint) -> None:
    for gateway in endpoint.gateways:
        gateway.set_rollout(champion=endpoint.store.champion)
    provider, fence = endpoint.provider(), _fence(endpoint) + 1
    assert provider.live().split == Split(endpoint.store.champion, salt="before")
    provider.apply(endpoint.split(), fence=fence)
    assert provider.live().split == endpoint.split()


def test_a_gateway_that_is_gone_keeps_no_other_from_being_told(endpoint: Endpoint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        gone = GatewayClient(f"http://127.0.0.1:{free.getsockname()[1]}", "token")
    provider, fence = GatewayTraffic(lambda: [gone, *endpoint.gateways]), _fence(endpoint) + 1
    with pytest.raises(NotReadyError):
        provider.live()
    with pytest.raises(NotReadyError):
        provider.apply(endpoint.split(40.0), fence=fence)
    assert [percent for *_, percent in endpoint.served()] == [40.0, 40.0]


def test_a_candidate_whose_server_is_not_well_is_not_ready(endpoint: Endpoint) -> None:
    provider, fence = endpoint.provider(), _fence(endpoint) + 1
    provider.apply(endpoint.split(), fence=fence)
    endpoint.candidate_server.healthy = False
    until = time.monotonic() + 20
    while (live := provider.live()).candidate_ready and time.monotonic() < until:
        time.sleep(0.05)
    assert not live.candidate_ready
    assert live.reason in ("Its engine does not answer yet.", "Its engine has ended.")
    endpoint.candidate_server.healthy = True


def test_a_release_that_is_nowhere_is_refused_and_nothing_changes(endpoint: Endpoint) -> None:
    fence = _fence(endpoint) + 1
    with pytest.raises(ServingError, match="The gateway refuses"):
        endpoint.provider().apply(Split(endpoint.store.champion, "0" * 64, 0.0, "r1"), fence=fence)
    assert endpoint.served() == [(endpoint.store.champion, None, 0.0)] * 2


def test_gateways_are_found_by_settings_and_environment(monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint) -> None:
    gateway = endpoint.gateways[0]
    config = TrafficConfig()
    monkeypatch.delenv(GATEWAY_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="No gateway is named"):
        provider_for(config, RELEASES.__getitem__)
    monkeypatch.setenv(TOKEN_VARIABLE, gateway.admin_token)
    monkeypatch.setenv(GATEWAY_VARIABLE, gateway.url)
    champion = endpoint.store.champion
    named = TrafficConfig(gateways=(gateway.url,))
    for provider in (
        provider_for(config, RELEASES.__getitem__),
        provider_for(named, RELEASES.__getitem__),
        provider_for(config, RELEASES.__getitem__, gateway=GatewayClient(gateway.url, gateway.admin_token)),
    ):
        assert provider.live().split == Split(champion, salt="before")


def test_a_name_that_stands_for_several_gateways_is_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, port: int, **options: object) -> list[tuple[object, ...]]:
        found = [("10.0.0.2", port), ("10.0.0.1", port), ("10.0.0.1", port)]
        four = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in found]
        return [*four, (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))]

    assert addresses("http://127.0.0.1:8080") == ["http://127.0.0.1:8080"]
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert addresses("http://gateway-each:8080") == ["http://10.0.0.1:8080", "http://10.0.0.2:8080"]
    with pytest.raises(ConfigError, match="https needs a name for each"):
        addresses("https://gateway-each:8443")


def test_a_gateway_that_nobody_knows_is_said() -> None:
    with pytest.raises(NotReadyError, match="cannot be found"):
        addresses("http://gateway.invalid:8080")
