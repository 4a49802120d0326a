"""Which release is served where, and releases that are served by others, end to end."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from openai_fake import WORDS, FakeOpenAI
from worlds import World

from serin.core.errors import ConfigError
from serin.core.gateway_client import GatewayProcess
from serin.core.release import load_release
from serin.core.storage import storage_for
from serin.serve.backends.config import BackendConfig, Backends

GOOD = {"urls": ["http://vllm:8000"], "model": "m"}


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://vllm:8000/", "http://vllm:8000"),
        ("http://vllm:8000/v1", "http://vllm:8000"),
        ("https://host/openai/v1/", "https://host/openai"),
        ("https://host/v1beta", "https://host/v1beta"),
    ],
)
def test_urls_are_taken_with_and_without_v1(url: str, base: str) -> None:
    assert BackendConfig.load({**GOOD, "urls": [url]}).urls == (base,)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"urls": []}, "urls"),
        ({"urls": ["vllm:8000"]}, "give urls such as"),
        ({"urls": ["http://user:secret@vllm"]}, "password"),
        ({"urls": ["http://vllm", "http://vllm"]}, "twice"),
        ({"model": ""}, "model"),
        ({"apikey": "x"}, "'apikey' is not a setting"),
        ({"silence_s": 0}, "silence_s"),
        ({"retries": 99}, "retries"),
        ({"health_path": "health"}, "health_path"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(change: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        BackendConfig.load({**GOOD, **change})


def test_the_longest_beginning_of_a_releases_id_decides(world: World) -> None:
    storage = storage_for(world.uri)
    champion, candidate = load_release(storage, world.champion), load_release(storage, world.candidate)
    backends = Backends.load(
        {
            "*": {**GOOD, "model": "any"},
            champion.id[:8]: {**GOOD, "model": "short"},
            champion.id[:20]: {**GOOD, "model": "{short}-{model}-{release}"},
        }
    )
    assert backends.of(candidate).model == "any"
    chosen = backends.of(champion)
    assert chosen.model_of(champion) == f"{champion.short_id}-{champion.model.digest[:12]}-{champion.id}"
    assert Backends.load({champion.id[:8]: GOOD}).of(candidate) is None
    assert Backends.load({}).of(champion) is None


def test_the_environment_names_them_or_a_file_with_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "backends.json"
    file.write_text(json.dumps({"*": GOOD}))
    for value in (json.dumps({"*": GOOD}), f"@{file}", "", "{}"):
        monkeypatch.setenv("SERIN_BACKENDS", value)
        Backends.from_environment()
    for value, problem in (("{", "not JSON"), ("[]", "must be an object"), ('{"main": {}}', "names 'main'"),
                           ("@/nowhere.json", "cannot be read"), ('{"*": {}}', "urls")):  # fmt: skip
        monkeypatch.setenv("SERIN_BACKENDS", value)
        with pytest.raises(ConfigError, match=problem):
            Backends.from_environment()


@contextmanager
def running(**settings: Any) -> Iterator[FakeOpenAI]:
    """A fake server in a thread of its own."""
    loop, fake = asyncio.new_event_loop(), FakeOpenAI(**settings)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(fake.start(), loop).result(10)
        yield fake
        asyncio.run_coroutine_threadsafe(fake.stop(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_a_release_is_served_by_a_server_elsewhere(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(models=("assistant-1",)) as fake:
        served = {"urls": [f"{fake.url}/v1"], "model": "assistant-1", "silence_s": 20}
        monkeypatch.setenv("SERIN_BACKENDS", json.dumps({world.champion[:12]: served}))
        with GatewayProcess(world.uri, "assistant", world.champion) as gateway:
            whole = ask(gateway.url, "Can I return the kettle?")
            assert whole.text == "".join(WORDS)
            assert whole.body["usage"]["completion_tokens"] == 6
            assert ask(gateway.url, "Can I return the kettle?", stream=True).text == whole.text
            asked = fake.bodies[0]
            assert asked["model"] == "assistant-1"
            assert "kettle within 30 days" in asked["messages"][0]["content"]
            state = gateway.state()["releases"][world.champion]
            assert state["engine_pid"] is None
            assert state["backend"]["servers"][0]["url"] == fake.url
            gateway.set_rollout(champion=world.champion, candidate=world.candidate, candidate_weight_percent=100)
            assert ask(gateway.url, session="x").headers["x-serin-track"] == "candidate"
            assert gateway.state()["releases"][world.candidate]["backend"] == {"kind": "embedded"}
