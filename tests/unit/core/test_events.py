from pathlib import Path

import pytest

from serin.core.errors import InputError
from serin.core.events import EndpointEvent, read_events, read_shadows, shadow_pairs, write_events, write_shadows
from serin.core.storage import storage_for


def event(number: int, **fields: object) -> EndpointEvent:
    defaults = {
        "trace_id": f"{number:032x}",
        "time": f"2026-01-01T00:00:{number:02d}+00:00",
        "session_id": "s",
        "endpoint": "assistant",
        "release_id": "r1",
        "track": "champion",
        "status": 200,
    }
    return EndpointEvent(**{**defaults, **fields})


def test_events_of_several_batches_come_back_whole_and_in_time_order(tmp_path: Path) -> None:
    storage = storage_for(str(tmp_path))
    later = event(2, retrieval_ids=("c1",), retrieval_scores=(0.5,), guardrail_actions=("input:pii:mask",))
    write_events(storage, "assistant", [later])
    write_events(storage, "assistant", [event(1, ttft_ms=12.5, feedback=-1)])
    assert read_events(storage, "assistant") == [event(1, ttft_ms=12.5, feedback=-1), later]


def test_events_are_filtered(tmp_path: Path) -> None:
    storage = storage_for(str(tmp_path))
    write_events(storage, "assistant", [event(1), event(2, release_id="r2"), event(3)])
    assert [e.trace_id[-1] for e in read_events(storage, "assistant", release_id="r1")] == ["1", "3"]
    assert [e.trace_id[-1] for e in read_events(storage, "assistant", trace_id=f"{2:032x}")] == ["2"]
    assert [e.trace_id[-1] for e in read_events(storage, "assistant", since="2026-01-01T00:00:02")] == ["2", "3"]


def test_an_empty_batch_writes_nothing(tmp_path: Path) -> None:
    assert write_events(storage_for(str(tmp_path)), "assistant", []) is None
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_batch_is_named(tmp_path: Path) -> None:
    storage = storage_for(str(tmp_path))
    storage.write("endpoints/assistant/events/2026-01-01/x.parquet", b"not parquet")
    with pytest.raises(InputError, match=r"x\.parquet is not readable"):
        read_events(storage, "assistant")


def test_shadows_are_kept_apart_from_traffic_and_pair_with_it(tmp_path: Path) -> None:
    storage = storage_for(str(tmp_path))
    champion, unwritten = event(1, answer_id="a1"), event(2, answer_id="a2")
    shadows = [event(3, track="shadow", shadow_of="a1"), event(4, track="shadow", shadow_of="a2", release_id="r2")]
    write_events(storage, "assistant", [champion])
    write_shadows(storage, "assistant", shadows)
    assert read_events(storage, "assistant") == [champion]
    assert read_shadows(storage, "assistant") == shadows
    assert read_shadows(storage, "assistant", release_id="r2") == shadows[1:]
    assert shadow_pairs([champion], shadows) == [(champion, shadows[0])]
    for write, wrong in ((write_events, shadows), (write_shadows, [unwritten])):
        with pytest.raises(AssertionError):
            write(storage, "assistant", wrong)
