"""Checkpoints: written beside the training, copied to storage, refused when the job changed."""

import http.client
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from jobs import LONG, PEFT_WARNING, JobMaker, digest, newest_step, recorded, start_and_kill

from serin.core.errors import IntegrityError, StorageError
from serin.core.storage import storage_for
from serin.finetune.checkpoint_writer import ATTEMPTS, CheckpointCopies, CheckpointWriter, newest_checkpoint
from serin.finetune.checkpoints import Checkpoint, Checkpoints, differences
from serin.finetune.job import Job
from serin.finetune.loop import train

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)


@pytest.fixture
def make_job(tmp_path: Path, tiny_folder: Path, tokenizer: Any) -> JobMaker:
    return JobMaker(tmp_path, tiny_folder, tokenizer)


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"weight.a": torch.full((4,), float(step))}, {"best_step": step})


class RefusingS3(ThreadingHTTPServer):
    """Stands before an S3 API server and refuses the writes that it is told to refuse."""

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forwarding)
        self.behind = urlsplit(behind).netloc
        self.refused = 0
        """Writes that were refused."""
        self.allowed = self.to_refuse = float("inf")
        """Writes that are still allowed, and after them how many are refused before all are allowed again."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator["RefusingS3"]:
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class _Forwarding(BaseHTTPRequestHandler):
    server: RefusingS3
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._forward()

    do_HEAD = do_DELETE = do_POST = do_GET

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.allowed <= 0 < self.server.to_refuse:
            self.server.refused += 1
            self.server.to_refuse -= 1
            self._answer(403, {}, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
            return
        self.server.allowed -= 1
        self._forward(body)

    def _forward(self, body: bytes | None = None) -> None:
        if body is None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection(self.server.behind, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        self._answer(answer.status, dict(answer.getheaders()), answer.read())
        connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        hop = {"connection", "transfer-encoding", "content-length", "server", "date"}
        for name, value in headers.items():
            if name.lower() not in hop:
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def refusing_s3(s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RefusingS3]:
    with RefusingS3(s3_server).running() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


def test_a_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {"seed": 0})
    for step in (3, 9, 20):
        checkpoints.save(checkpoint(step))
    found = checkpoints.load()
    assert found is not None
    assert (found.step, found.course) == (20, {"best_step": 20})
    torch.testing.assert_close(found.tensors, checkpoint(20).tensors)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000009", "step-00000020"]


def test_a_checkpoint_of_another_job_is_refused_by_what_differs(make_job: JobMaker) -> None:
    job = make_job(optim=LONG)
    start_and_kill(job, at_step=3)
    other = job.model_copy(
        update={"seed": 7, "optim": LONG.model_copy(update={"learning_rate": 0.5}), "inputs": {"train": "ab" * 32}}
    )
    with pytest.raises(
        IntegrityError,
        match=r"was made with other code, settings, data or base \(inputs.train was [0-9a-f]{12}\.\.\., is "
        r"abababababab\.\.\.; optim.learning_rate was 0.01, is 0.5; seed was 0, is 7\): remove it to train anew",
    ):
        train(other)
    assert train(job).is_dir()


def test_other_code_is_named() -> None:
    assert differences({"code.torch": "2.1", "code.serin": "a"}, {"code.torch": "2.2", "code.serin": "b"}) == (
        "code.serin was a, is b; code.torch was 2.1, is 2.2"
    )
    assert differences("0f0f", {}) == "its format is older"
    assert differences({"a": 1}, {"a": 1}) == ""
    assert differences({str(n): 0 for n in range(6)}, {}).endswith("3 was 0, is unset; and 2 more")


def test_what_goes_wrong_in_the_background_is_raised_at_the_next_checkpoint_and_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    writer = CheckpointWriter(Checkpoints(tmp_path / "file" / "below", {}))
    writer.submit(checkpoint(1))
    with pytest.raises(OSError, match="file"):
        writer.wait()
    with pytest.raises(OSError, match="file"):
        writer.submit(checkpoint(2))
    assert writer.failure() is not None
    writer.close()


def test_copies_go_to_s3_and_the_newest_whole_one_comes_back(s3_bucket: str, tmp_path: Path) -> None:
    uri = f"s3://{s3_bucket}/run/checkpoints"
    copies = CheckpointCopies(uri)
    here = Checkpoints(tmp_path / "here", {"seed": 0})
    for step in (3, 9, 20):
        copies.upload(here.save(checkpoint(step)))
    storage = storage_for(uri)
    assert storage.keys() == [
        f"step-000000{step}/{name}" for step in ("09", "20") for name in ("state.json", "tensors.safetensors")
    ]
    storage.write("step-00000030/tensors.safetensors", b"a killed pod left no state")
    storage.write("step-00000020/tensors.safetensors", b"damaged")
    there = Checkpoints(tmp_path / "there", {"seed": 0})
    found = newest_checkpoint(there, copies)
    assert found is not None
    assert found.step == 9
    assert newest_checkpoint(here, copies).step == 20, "what is here is newer than what is whole there"
    with pytest.raises(IntegrityError, match="seed was 0, is 1"):
        newest_checkpoint(Checkpoints(tmp_path / "other", {"seed": 1}), copies)


def test_a_fresh_pod_goes_on_from_the_copy_in_s3(make_job: JobMaker, s3_bucket: str) -> None:
    unbroken = train(make_job("unbroken", optim=LONG))
    job = make_job("killed", optim=LONG, checkpoint_uri=f"s3://{s3_bucket}/run")
    start_and_kill(job, at_step=8)
    shutil.rmtree(job.folder)
    result, records = recorded(job)
    assert records[0]["resumed"]
    assert records[0]["step"] >= 5
    assert digest(result) == digest(unbroken)


def test_s3_that_refuses_once_is_tried_again(refusing_s3: RefusingS3, s3_bucket: str, tmp_path: Path) -> None:
    copies = CheckpointCopies(f"s3://{s3_bucket}/run", pause_s=0.01)
    folder = Checkpoints(tmp_path, {}).save(checkpoint(1))
    refusing_s3.allowed, refusing_s3.to_refuse = 1, 3
    copies.upload(folder)
    assert refusing_s3.refused == 3
    assert storage_for(f"s3://{s3_bucket}/run").exists("step-00000001/state.json")


def test_s3_that_refuses_for_good_ends_training_and_the_last_checkpoint_stays(
    refusing_s3: RefusingS3, s3_bucket: str, make_job: JobMaker
) -> None:
    job = make_job(optim=LONG, checkpoint_uri=f"s3://{s3_bucket}/run", checkpoint_interval_s=0)
    refusing_s3.allowed = 5  # two checkpoints, and the tensors of a third
    with pytest.raises(StorageError, match=rf"not be copied to s3://.*/run in {ATTEMPTS} attempts \(S3 .*AccessDenied"):
        train(job)
    assert refusing_s3.refused == ATTEMPTS
    assert not job.final.exists()
    refusing_s3.allowed = float("inf")
    assert_goes_on(job, at_least=2)


def assert_goes_on(job: Job, at_least: int) -> None:
    """From the checkpoint here, and from the copy when nothing is here any more."""
    here = newest_step(job)
    fresh = job.model_copy(update={"folder": job.folder + "-fresh", "checkpoint_interval_s": 60})
    assert recorded(fresh)[1][0]["step"] == at_least
    records = recorded(job.model_copy(update={"checkpoint_interval_s": 60}))[1]
    assert records[0]["step"] == here > at_least
    assert digest(job.final) == digest(fresh.final)


def test_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(checkpoint(1))
    newest = checkpoints.save(checkpoint(2))
    os.truncate(newest / "tensors.safetensors", 10)
    assert checkpoints.load().step == 1
