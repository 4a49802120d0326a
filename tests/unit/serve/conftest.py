"""One home for all tests of the endpoint: gateways of the session keep their logs there."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_backend import ScriptedBackend
from worlds import World

from serin.core.gateway_client import GatewayProcess


@pytest.fixture(scope="session", autouse=True)
def serin_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERIN_HOME", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


@pytest.fixture(scope="session")
def scripted() -> Iterator[ScriptedBackend]:
    """A backend without a model; ``backend`` is the same one, with nothing in it."""
    with ScriptedBackend() as made:
        yield made


@pytest.fixture
def backend(scripted: ScriptedBackend) -> ScriptedBackend:
    scripted.reset()
    return scripted


@pytest.fixture(scope="session")
def api(world: World, scripted: ScriptedBackend, serin_home: Path) -> Iterator[GatewayProcess]:
    """A gateway in front of the scripted backend."""
    servers = {"*": {"urls": [scripted.url], "model": "m", "retries": 0}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERIN_BACKENDS", json.dumps(servers))
        process = GatewayProcess(world.uri, "assistant", world.champion)
        process.start()
    yield process
    process.close()
