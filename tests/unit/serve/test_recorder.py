import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from serin.core.events import EndpointEvent, Feedback, read_events, read_shadows
from serin.core.policy import GuardrailPolicy
from serin.core.storage import LocalStorage
from serin.serve.budgets import Prices
from serin.serve.guardrails import Guardrails
from serin.serve.recorder import Observation, Recorder
from serin.serve.spool import Spool


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


def test_events_of_a_killed_gateway_reach_the_store_with_the_next_one_and_once(tmp_path: Path):
    script = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_recorder import observation
from serin.core.storage import LocalStorage
from serin.serve.recorder import Recorder
from serin.serve.spool import Spool
root = Path(sys.argv[1])
(root / "store").write_text("a file where a folder must be")
recorder = Recorder(LocalStorage(root / "store"), "a", interval_s=0.1, spool=Spool(root / "spool"))
recorder.start()
for _ in range(30):
    recorder.add(observation())
time.sleep(0.6)
print("added", flush=True)
time.sleep(60)
"""
    arguments = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"added\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (tmp_path / "store").unlink()
    storage = LocalStorage(tmp_path / "store")
    recorder = Recorder(storage, "a", interval_s=0.1, spool=Spool(tmp_path / "spool"))
    recorder.start()
    assert wait_for(storage, 30) == 30
    recorder.add(observation())
    recorder.close()
    assert len({event.trace_id for event in read_events(storage, "a")}) == 31
    assert not list((tmp_path / "spool").iterdir())


class HalfDeafStorage(LocalStorage):
    """Writes, and then says that it could not: the answer of a store is lost on its way."""

    answers_lost = 2

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        super().write(key, data, if_absent=if_absent)
        self.answers_lost -= 1
        if self.answers_lost >= 0:
            raise OSError("connection reset")


def test_a_batch_that_is_written_again_is_there_once(tmp_path: Path):
    storage = HalfDeafStorage(tmp_path)
    recorder = Recorder(storage, "a", spool=Spool(tmp_path / "spool"))
    recorder.add(observation())
    for _ in range(2):
        with pytest.raises(OSError, match="reset"):
            recorder.flush()
    assert recorder.flush() == 1
    assert len(read_events(storage, "a")) == 1
    recorder.close()


def test_feedback_is_redacted_and_joined_to_its_answer_whenever_it_comes(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    recorder = Recorder(storage, "a")
    first, second, failed = (observation() for _ in range(3))
    answer_id = f"chatcmpl-{first.event.trace_id}{'0' * 16}"
    named = first.event.model_copy(update={"answer_id": answer_id})
    gone = failed.event.model_copy(update={"status": 500})
    recorder.add(Observation(named, (), first.guardrails))
    recorder.add(second)
    recorder.add(Observation(gone, (), failed.guardrails))
    recorder.flush()
    assert {event.feedback for event in read_events(storage, "a")} == {None}
    recorder.add_feedback(Feedback(answer_id=answer_id, rating=1, time="2026-01-01T00:00:05+00:00"))
    recorder.add_feedback(
        Feedback(answer_id=answer_id, rating=-1, comment="Write me: jo@mail.example", time="2026-01-01T00:00:09+00:00")
    )
    recorder.add_feedback(Feedback(answer_id=f"chatcmpl-{second.event.trace_id}", rating=1))
    recorder.add_feedback(Feedback(trace_id=failed.event.trace_id, rating=1))
    recorder.add_feedback(Feedback(rating=-1))
    recorder.flush()
    found = {event.trace_id: event for event in read_events(storage, "a", since="2026-01-01T00:00:00+00:00")}
    assert found[first.event.trace_id].feedback == -1
    assert found[first.event.trace_id].feedback_comment == "Write me: <EMAIL>"
    assert found[second.event.trace_id].feedback == 1
    assert found[failed.event.trace_id].feedback is None
    recorder.close()


def test_a_price_list_prices_events_and_observers_see_them_as_they_are_stored(tmp_path: Path):
    seen: list[EndpointEvent] = []

    def fails(*_: object) -> None:
        raise RuntimeError("an observer's own trouble")

    recorder = Recorder(
        LocalStorage(tmp_path),
        "a",
        prices=Prices(per_second=2.0),
        observers=[fails, lambda observed, event: seen.append(event)],
    )
    given = observation()
    recorder.add(Observation(given.event.model_copy(update={"latency_ms": 500.0}), (), given.guardrails))
    recorder.flush()
    (stored,) = read_events(LocalStorage(tmp_path), "a")
    assert stored.cost == pytest.approx(1.0)
    assert seen == [stored]
    recorder.close()


@pytest.mark.parametrize(("champions", "kept"), [("full", "Mail me at jane@mail.example"), ("none", "")])
def test_a_shadow_keeps_what_both_policies_keep_and_lies_apart(tmp_path: Path, champions: str, kept: str):
    storage, given = LocalStorage(tmp_path), observation(keep_text="full")
    shadow = given.event.model_copy(update={"track": "shadow", "shadow_of": "chatcmpl-1"})
    recorder = Recorder(storage, "a", prices=Prices(completion_per_1k_tokens=1))
    recorder.add(given)
    recorder.add(replace(given, event=shadow, also_kept_by=observation(keep_text=champions).guardrails))
    assert recorder.flush() == 2
    [user], [stored] = read_events(storage, "a"), read_shadows(storage, "a")
    assert (user.track, user.question) == ("champion", "Mail me at jane@mail.example")
    assert (stored.track, stored.question, stored.shadow_of) == ("shadow", kept, "chatcmpl-1")
    assert stored.support_score == user.support_score
