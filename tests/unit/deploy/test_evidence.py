"""What the judge is shown: each event once, in time order, however it was written; the shadow by pairs."""

import random
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from serin.core.events import EndpointEvent, EventLog, write_events, write_shadows
from serin.core.journal import Entry
from serin.core.rollouts import RolloutRecord, rollouts
from serin.core.storage import LocalStorage
from serin.deploy.config import DeployConfig
from serin.deploy.evidence import Evidence, evidence_of, shadow_policy

CHAMPION, CANDIDATE = "a" * 64, "b" * 64
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = DeployConfig(steps_percent=(50.0,))
LATER = BEGAN + timedelta(hours=2)


def record(decision: str = "advance") -> RolloutRecord:
    steps = [("started", 0), (decision, 1)]
    entries = [
        Entry(
            number=n, time=at(seconds), kind="rollout", release_id=CANDIDATE, decision=what,
            evidence={"rollout_id": "r", "champion": CHAMPION, "step": 0}, previous_hash="", hash="",
        )
        for n, (what, seconds) in enumerate(steps, 1)
    ]  # fmt: skip
    return rollouts(entries)[0]


def at(seconds: float) -> str:
    return (BEGAN + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def event(number: int, track: str, **fields: object) -> EndpointEvent:
    release = CHAMPION if track == "champion" else CANDIDATE
    values: dict[str, object] = {
        "trace_id": f"{number:032x}", "time": at(2 + number), "session_id": f"s{number // 2}", "endpoint": "assistant",
        "release_id": release, "track": track, "status": 200, "ttft_ms": 50.0 + number % 7, "latency_ms": 90.0,
        "completion_tokens": 9, "support_score": 0.8, "answer_id": f"chatcmpl-{number}",
    }  # fmt: skip
    return EndpointEvent.model_validate(values | fields)


def traffic(number: int = 200) -> list[EndpointEvent]:
    return [event(n, "candidate" if n // 2 % 2 else "champion") for n in range(number)]


def judged(events: list[EndpointEvent], state: str = "advance") -> Evidence:
    return evidence_of(record(state), events, CONFIG, restarts=0, now=LATER)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), repeated=st.integers(0, 60))
def test_repeated_and_reordered_batches_change_nothing(seed: int, repeated: int) -> None:
    rng, plain = random.Random(seed), traffic()
    with tempfile.TemporaryDirectory() as folder:
        storage = LocalStorage(Path(folder))
        log = EventLog(storage, "assistant", at(0))
        sent = [*plain, *rng.sample(plain, repeated)]
        rng.shuffle(sent)
        while sent:
            batch, sent = sent[:50], sent[50:]
            write_events(storage, "assistant", batch)
            log.events()
        assert log.events() == plain
    assert judged(log.events()) == judged(plain)


def test_lost_events_of_both_sides_leave_the_decision_to_the_rest() -> None:
    plain = traffic(400)
    assert judged(plain).decision.outcome == "promote"
    assert judged([one for n, one in enumerate(plain) if n % 5]).decision.outcome == "promote"
    assert judged(plain[:20]).decision.outcome == "hold"
    assert judged([]).decision.outcome == "hold"


def test_other_releases_and_times_before_the_first_share_do_not_count() -> None:
    plain = traffic(40)
    strange = [
        event(90, "champion", release_id="c" * 64, session_id="x"),
        event(91, "candidate", time=at(0.5), session_id="y"),
    ]
    assert judged([*plain, *strange]) == judged(plain)


def test_the_newest_requests_of_users_wait_for_the_next_look_but_trips_do_not() -> None:
    config = CONFIG.model_copy(update={"requests": "users", "settle_s": 60.0})
    burst = [event(200 + n, "candidate", status=500, session_id=f"b{n}") for n in range(10)]
    now = BEGAN + timedelta(seconds=215)
    settled = evidence_of(record(), traffic(), config, restarts=0, now=now)
    tripped = evidence_of(record(), [*traffic(), *burst], config, restarts=0, now=now)
    assert settled.decision.evidence["candidate_sessions"] < judged(traffic()).decision.evidence["candidate_sessions"]
    assert tripped.decision.outcome == "rollback"


def test_the_shadow_is_judged_by_pairs_without_timings(tmp_path: Path) -> None:
    champion = [event(n, "champion") for n in range(300)]
    beside = [{"shadow_of": f"chatcmpl-{n}", "session_id": f"s{n // 2}", "time": at(2.2 + n)} for n in range(300)]
    good = [event(300 + n, "shadow", **fields) for n, fields in enumerate(beside)]
    slow = [one.model_copy(update={"ttft_ms": 900.0}) for one in good]
    bad = [one.model_copy(update={"support_score": 0.0}) for one in good]
    storage = LocalStorage(tmp_path)
    write_events(storage, "assistant", champion)
    write_shadows(storage, "assistant", good)
    both = EventLog(storage, "assistant", at(0)).events()
    assert judged(both, "shadow").pairs == 300
    assert judged(both, "shadow").decision.outcome == "advance"
    assert judged([*champion, *slow], "shadow").decision.outcome == "advance"
    assert judged([*champion, *bad], "shadow").decision.outcome == "rollback"
    assert judged(champion, "shadow").pairs == 0
    assert shadow_policy(CONFIG).alpha + CONFIG.step_policy.alpha == CONFIG.judge.alpha
