"""Learning from a window of the conversations."""

from datetime import date
from pathlib import Path

import pytest
from builders import chat, write_lines
from worlds import context_of

from serin.core.errors import ConfigError
from serin.core.records import SPLITS, Conversation, read_jsonl
from serin.data_prep.config import DataPrepConfig, day_of
from serin.data_prep.prepare import prepare

TODAY = date(2026, 7, 1)


def test_a_day_is_a_date_or_so_many_days_ago() -> None:
    assert day_of("2026-03-01", TODAY) == date(2026, 3, 1)
    assert day_of("30d", TODAY) == date(2026, 6, 1)
    assert day_of("", TODAY) is None


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "-3d", "3 d"])
def test_other_forms_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"neither a date such as 2026-03-01 nor a number of days"):
        DataPrepConfig.load({"window_start": text})


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="is empty"):
        DataPrepConfig(window_start="10d", window_end="20d").on(TODAY)


def test_only_conversations_of_the_window_are_learned_from_and_the_others_are_listed(tmp_path: Path) -> None:
    rows = [
        {**chat(number, f"What does lamp {number} cost?", f"It costs {number}5 EUR.", f"g{number}"), **day}
        for number, day in enumerate(
            [{"date": "2026-01-31"}] * 10
            + [{"date": "2026-02-01"}] * 10
            + [{"created_at": "2026-02-28T23:59:00"}] * 10
            + [{"date": "2026-03-01"}] * 10
            + [{}] * 5
        )
    ]
    write_lines(tmp_path / "source" / "chats.jsonl", rows)
    config = DataPrepConfig(window_start="2026-02-01", window_end="2026-03-01")
    dataset = prepare(config, str(tmp_path / "source"), context_of(str(tmp_path / "store"), "data_prep")).dataset
    kept = [one for name in SPLITS for one in read_jsonl(dataset.path / f"{name}.jsonl", Conversation)]
    assert {one.id for one in kept} == {f"chat-{number}" for number in range(10, 30)}
    text = (dataset.path / "rejected.jsonl").read_text()
    assert text.count("outside the data window") == 20
    assert text.count("no date") == 5
