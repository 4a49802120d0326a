"""Pushing a model: to a real S3 API, and to a small server that speaks the part of the hub's API that this needs."""

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serin.core.errors import AlreadyExistsError, ConfigError
from serin.core.storage import storage_for
from serin.finetune.publish import PublishConfig, publish

PUSH = """
import sys
from pathlib import Path
from serin.core.errors import SerinError
from serin.finetune.publish import PublishConfig, publish
try:
    print(publish(PublishConfig(target="hub", repository="acme/assistant"), Path(sys.argv[1]), "d" * 64))
except SerinError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


class FakeHub:
    """Takes repositories and commits as the Hugging Face Hub's HTTP API does; small files only, sent in the commit."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.messages: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Authorization") != "Bearer hf_good":
                    self.answer(403, {"error": "no"})
                elif self.path == "/api/repos/create":
                    hub.repositories[json.loads(body)["name"]] = json.loads(body)
                    self.answer(200, {"url": f"{hub.url}/acme/assistant"})
                elif "/preupload/" in self.path:
                    files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
                    self.answer(200, {"files": [{**file, "shouldIgnore": False} for file in files]})
                elif "/commit/" in self.path:
                    hub.take(body)
                    self.answer(200, {"commitUrl": f"{hub.url}/acme/assistant/commit/1", "commitOid": "1" * 40})
                else:
                    self.answer(200, {})

            def do_GET(self) -> None:
                self.answer(200, {"id": "acme/assistant", "sha": "1" * 40, "siblings": []})

            def answer(self, status: int, values: Any) -> None:
                body = json.dumps(values).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, commit: bytes) -> None:
        for line in map(json.loads, commit.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            else:
                self.messages.append(line["value"]["summary"])

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    yield hub
    hub.stop()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for name in ("merged/model.safetensors", "adapter/adapter_model.safetensors", "card.md", "training.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    return folder


def push(model: Path, hub: FakeHub, token: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: whether the hub's library may go out is decided when it is imported."""
    environment = {"HF_TOKEN": token, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PATH": "/usr/bin"}
    environment |= {"HOME": str(model.parent), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PUSH, str(model)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_model_goes_to_an_object_store_whole_and_once(s3_bucket: str, model: Path) -> None:
    config = PublishConfig(target="s3", uri=f"s3://{s3_bucket}/models")
    place = publish(config, model, "d" * 64)
    assert place == f"s3://{s3_bucket}/models/{'d' * 16}"
    storage = storage_for(place)
    listing = json.loads(storage.read("published.json"))
    assert set(listing["files"]) == {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert storage.read("merged/model.safetensors") == b"content of merged/model.safetensors"
    storage.write("merged/model.safetensors", b"kept")
    assert publish(config, model, "d" * 64) == place
    assert storage.read("merged/model.safetensors") == b"kept", "it was uploaded again"
    (model / "card.md").write_text("another")
    with pytest.raises(AlreadyExistsError, match="holds other files of this model"):
        publish(config, model, "d" * 64)


def test_an_upload_that_was_cut_short_is_made_whole(s3_bucket: str, model: Path) -> None:
    config = PublishConfig(target="s3", uri=f"s3://{s3_bucket}/models")
    storage_for(f"s3://{s3_bucket}/models/{'d' * 16}").write("merged/model.safetensors", b"half")
    storage = storage_for(publish(config, model, "d" * 64))
    assert storage.read("merged/model.safetensors") == b"content of merged/model.safetensors"


def test_only_the_parts_that_are_asked_for_are_pushed(model: Path, tmp_path: Path) -> None:
    config = PublishConfig(target="s3", uri=(tmp_path / "out").as_uri(), parts=("adapter",))
    keys = storage_for(publish(config, model, "d" * 64)).keys()
    assert keys == ["adapter/adapter_model.safetensors", "card.md", "published.json", "training.json"]


def test_a_model_goes_to_a_private_repository_of_a_hub(hub: FakeHub, model: Path) -> None:
    done = push(model, hub, "hf_good")
    assert done.stdout == f"{hub.url}/acme/assistant/tree/main\n", done.stderr
    assert hub.repositories["assistant"]["visibility"] == "private"
    assert hub.files["merged/model.safetensors"] == b"content of merged/model.safetensors"
    assert hub.files["README.md"] == b"content of card.md"
    assert hub.messages[0] == f"Model {'d' * 64}"


def test_a_hub_that_refuses_is_one_sentence_without_the_token(hub: FakeHub, model: Path) -> None:
    done = push(model, hub, "hf_bad")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "UnavailableError: The hub refuses to take acme/assistant (status 403): see that the token may write to it."
    )
    assert "hf_bad" not in done.stderr


def test_a_missing_token_is_said_before_anything_is_sent(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="needs a token: set HF_TOKEN"):
        publish(PublishConfig(target="hub", repository="acme/assistant"), model, "d" * 64)


def test_nothing_is_pushed_by_default(model: Path) -> None:
    assert publish(PublishConfig(), model, "d" * 64) == ""


@pytest.mark.parametrize(
    "values",
    [{"target": "hub"}, {"target": "s3"}, {"target": "hub", "repository": "a b"}, {"target": "ftp"}, {"parts": []}],
)
def test_a_place_that_is_missing_or_unknown_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PublishConfig.load(values)
