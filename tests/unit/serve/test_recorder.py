import time
import uuid
from pathlib import Path

import pytest

from serin.core.events import EndpointEvent, read_events
from serin.core.policy import GuardrailPolicy
from serin.core.storage import LocalStorage
from serin.serve.guardrails import Guardrails
from serin.serve.recorder import Observation, Recorder


def observation(answer: str = "You can return it within 30 days.", keep_text: str = "redacted") -> Observation:
    event = EndpointEvent(
        trace_id=uuid.uuid4().hex, time="2026-01-01T00:00:00+00:00", session_id="s", endpoint="a", release_id="r",
        track="champion", status=200, question="Mail me at jane@mail.example", answer=answer,
    )  # fmt: skip
    rails = Guardrails(GuardrailPolicy.load({"keep_text": keep_text}))
    return Observation(event, ("You can return the kettle within 30 days for a full refund.",), rails)


def wait_for(storage: LocalStorage, count: int) -> int:
    deadline = time.monotonic() + 10
    while len(read_events(storage, "a")) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    return len(read_events(storage, "a"))


def test_events_are_scored_and_redacted(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    recorder = Recorder(storage, "a")
    recorder.add(observation())
    recorder.add(observation("I do not know that.", keep_text="none"))
    assert recorder.flush() == 2
    answered, refused = read_events(storage, "a")
    assert answered.question == "Mail me at <EMAIL>"
    assert answered.support_score is not None
    assert answered.support_score > 0.5
    assert not answered.refused
    assert refused.refused
    assert refused.question == refused.answer == ""


def test_a_full_batch_is_written_without_being_asked(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    recorder = Recorder(storage, "a", batch_events=3, interval_s=60)
    recorder.start()
    for _ in range(3):
        recorder.add(observation())
    assert wait_for(storage, 3) == 3
    recorder.close()


def test_a_batch_is_written_after_a_while_and_the_rest_at_the_end(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    recorder = Recorder(storage, "a", interval_s=0.05)
    recorder.start()
    recorder.add(observation())
    assert wait_for(storage, 1) == 1
    recorder.add(observation())
    recorder.close()
    assert len(read_events(storage, "a")) == 2


def test_events_outlast_a_store_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    storage = LocalStorage(tmp_path)
    blocker = tmp_path / "endpoints"
    blocker.write_text("a file where a folder must be")
    recorder = Recorder(storage, "a", interval_s=0.05)
    recorder.start()
    recorder.add(observation())
    time.sleep(0.3)
    assert "are kept" in caplog.text
    blocker.unlink()
    assert wait_for(storage, 1) == 1
    recorder.close()
    assert len(read_events(storage, "a")) == 1
