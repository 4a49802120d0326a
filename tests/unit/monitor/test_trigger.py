from pathlib import Path

from worlds import context_of

from serin.monitor.trigger import record_trigger


def test_a_trigger_is_journalled_once(tmp_path: Path) -> None:
    context = context_of(str(tmp_path), "trigger")
    assert record_trigger("alarm-7", "90d", "", context)
    assert not record_trigger("alarm-7", "90d", "", context)
    (entry,) = context.journal.find(kind="trigger")
    assert entry.evidence == {"trigger_id": "alarm-7", "window_start": "90d", "window_end": ""}
    assert entry.lineage_id == "test"


def test_runs_by_hand_have_no_id_and_are_all_journalled(tmp_path: Path) -> None:
    context = context_of(str(tmp_path), "trigger")
    assert record_trigger("", "", "", context)
    assert record_trigger("", "", "", context)
    assert len(context.journal.find(kind="trigger")) == 2
