"""A whole gateway with an operations file: keys, limits, prices, traces, TLS, logs."""

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scripted_backend import ScriptedBackend
from test_listening import certificate
from test_tracing import OtlpCollector, value_of, wait_until
from worlds import World

from serin.core.errors import ConfigError
from serin.core.events import read_events
from serin.core.storage import storage_for
from serin.serve.budgets import KeyLimits
from serin.serve.keys import create_key
from serin.serve.operations import load_operations


@dataclass
class Operated:
    """A gateway process with everything on, and what it talks to."""

    url: str
    log: Path
    key: str
    key_id: str
    collector: OtlpCollector
    context: ssl.SSLContext
    process: subprocess.Popen[bytes]

    def ask(
        self, path: str = "/v1/chat/completions", body: Any = None, key: str = "", **headers: str
    ) -> tuple[int, Any]:
        """One request over TLS; status and body."""
        given = {"authorization": f"Bearer {key or self.key}", "content-type": "application/json", **headers}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, given)
        try:
            with urllib.request.urlopen(request, context=self.context, timeout=30) as answer:
                text = answer.read().decode()
                return answer.status, json.loads(text) if text.startswith("{") else text
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def operated(world: World, scripted: ScriptedBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    folder, collector = tmp_path_factory.mktemp("operated"), OtlpCollector()
    collector.start()
    tls = certificate(folder, "gateway")
    limits = KeyLimits(requests_per_minute=60, burst_requests=4)
    key, entry = create_key(folder / "keys.json", labels=("staff",), limits=limits)
    settings = {
        "access": {"keys_file": str(folder / "keys.json")},
        "tls": tls.dump(),
        "admission": {"p95_ms": 5000},
        "prices": {"per_second": 1.0},
        "tracing": {"endpoint": collector.url, "sample_fraction": 1.0, "interval_s": 0.1},
        "log_format": "json",
    }
    (folder / "operations.yaml").write_text(json.dumps(settings))
    environment = {
        **os.environ,
        "SERIN_HOME": str(folder / "home"),
        "SERIN_ADMIN_TOKEN": "admin-token",
        "SERIN_BACKENDS": json.dumps({"*": {"urls": [scripted.url], "model": "m"}}),
    }
    ready, log = folder / "ready.json", folder / "gateway.log"
    command = [
        sys.executable, "-m", "serin.serve.server", "--store-uri", world.uri, "--endpoint", "operated", "--champion",
        world.champion, "--port", "0", "--ready-file", str(ready), "--operations", str(folder / "operations.yaml"),
    ]  # fmt: skip
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    try:
        assert wait_until(lambda: ready.exists() or process.poll() is not None, 120), log.read_text()
        assert ready.exists(), log.read_text()
        port = json.loads(ready.read_text())["port"]
        context = ssl.create_default_context(cafile=tls.cert_file)
        yield Operated(f"https://localhost:{port}", log, key, entry.id, collector, context, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        collector.stop()


def question(text: str = "Where is my order? Call me: +33 6 12 34 56 78") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def test_an_answer_leaves_its_event_trace_log_line_and_price(operated: Operated, world: World):
    status, body = operated.ask(body=question())
    assert status == 200, body
    assert wait_until(lambda: bool(operated.collector.spans), 20)
    root = next(span for span in operated.collector.spans if span.name == "chat operated")
    trace_id = root.trace_id.hex()
    names = {span.name for span in operated.collector.spans if span.trace_id == root.trace_id}
    assert {"rails.input", "retrieval", f"chat {world.champion[:12]}"} <= names
    assert value_of(root, "serin.release.id") == world.champion
    assert value_of(root, "serin.index.version")
    assert value_of(root, "serin.key.id") == operated.key_id
    storage = storage_for(world.uri)
    assert wait_until(lambda: bool(read_events(storage, "operated", trace_id=trace_id)), 30)
    (event,) = read_events(storage, "operated", trace_id=trace_id)
    assert event.key_id == operated.key_id
    assert event.cost == pytest.approx(event.latency_ms / 1000)
    lines = [json.loads(line) for line in operated.log.read_text().splitlines()]
    (line,) = (line for line in lines if line.get("trace_id") == trace_id)
    assert (line["status"], line["key_id"]) == (200, operated.key_id)


def test_neither_logs_nor_traces_hold_a_secret_or_personal_data(operated: Operated):
    operated.ask(body=question("My key is sk-abcdefghijklmnopqrstuvwx and my mail jo@mail.example"))
    time.sleep(1.0)
    log, traces = operated.log.read_text(), b"".join(operated.collector.bodies)
    for secret in (operated.key, "admin-token", "sk-abcdefghijklmnopqrstuvwx", "jo@mail.example", "6 12 34 56 78"):
        assert secret not in log
        assert secret.encode() not in traces


def test_a_key_that_asks_too_often_is_told_to_wait_and_wrong_keys_are_refused(operated: Operated):
    found = [operated.ask(body=question())[0] for _ in range(12)]
    assert 429 in found
    assert operated.ask(body=question(), key="serin_000000000000_" + "x" * 43)[0] == 401
    assert operated.ask("/admin/rollouts", key=operated.key)[0] == 401
    assert operated.ask("/admin/rollouts", key="admin-token")[0] == 200
    status, text = operated.ask("/metrics", key="admin-token")
    assert status == 200
    assert 'serin_requests_refused_total{reason="rate_limit_exceeded"}' in text
    assert "serin_in_flight_limit" in text


def test_an_operations_file_that_sets_what_does_not_exist_is_refused_by_name(tmp_path: Path):
    file = tmp_path / "operations.yaml"
    for text, named in (("admision: {}", "admision"), ("tls: {cert_file: a}", "key_file"), ("- a", "settings by name")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=named):
            load_operations(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_operations(tmp_path / "absent.yaml")
    assert load_operations(None).log_format == "text"
