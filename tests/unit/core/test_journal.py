import json
import threading
from pathlib import Path

import pytest

from serin.core.errors import InputError, IntegrityError
from serin.core.journal import Journal
from serin.core.storage import Storage, storage_for


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return storage_for(str(tmp_path / "store"))
    return storage_for(f"s3://{request.getfixturevalue('s3_bucket')}/store")


def promote(journal: Journal, *releases: str) -> None:
    for release in releases:
        journal.append("promotion", release_id=release, decision="promoted")


def test_entries_read_back_in_order_with_an_unbroken_chain(storage: Storage) -> None:
    journal = Journal(storage, "assistant")
    promote(journal, "r1", "r2")
    entries = journal.entries()
    assert [entry.release_id for entry in entries] == ["r1", "r2"]
    assert entries[1].previous_hash == entries[0].hash


def test_the_champion_is_the_last_promotion_and_rollback_goes_one_back(storage: Storage) -> None:
    journal = Journal(storage, "assistant")
    assert journal.champion() is None
    promote(journal, "r1", "r2", "r3")
    assert (journal.champion(), journal.previous()) == ("r3", "r2")
    journal.append("rollback", release_id="r2", decision="rolled back")
    assert (journal.champion(), journal.previous()) == ("r2", "r1")


def test_endpoints_do_not_share_a_journal(storage: Storage) -> None:
    promote(Journal(storage, "one"), "r1")
    assert Journal(storage, "two").entries() == []


@pytest.mark.parametrize("damage", ["edit", "remove", "reorder"])
def test_tampering_is_noticed(tmp_path: Path, damage: str) -> None:
    journal = Journal(storage_for(str(tmp_path)), "assistant")
    promote(journal, "r1", "r2", "r3")
    first, second, *_ = sorted((tmp_path / "endpoints" / "assistant" / "journal").iterdir())
    if damage == "edit":
        entry = json.loads(second.read_text())
        second.write_text(json.dumps({**entry, "release_id": "evil"}))
    elif damage == "remove":
        first.unlink()
    else:
        one, two = first.read_text(), second.read_text()
        first.write_text(two)
        second.write_text(one)
    with pytest.raises(IntegrityError, match="does not hold at entry"):
        journal.entries()


def test_writers_at_once_lose_nothing(storage: Storage) -> None:
    def write(name: str) -> None:
        promote(Journal(storage, "assistant"), *(f"{name}-{number}" for number in range(5)))

    writers = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(Journal(storage, "assistant").entries()) == 15


def test_an_entry_about_a_champion_is_refused_once_another_serves(storage: Storage) -> None:
    journal = Journal(storage, "assistant")
    promote(journal, "r1", "r2")
    journal.append("rollback", release_id="r1", decision="rolled back", champion="r2")
    with pytest.raises(InputError, match="no longer serves"):
        journal.append("rollback", release_id="r1", decision="rolled back", champion="r2")
    assert journal.champion() == "r1"
    assert journal.length() == len(journal.entries()) == 3


def test_what_was_read_before_is_not_read_again_and_what_follows_must_fit(tmp_path: Path) -> None:
    journal = Journal(storage_for(str(tmp_path)), "assistant")
    for release in ("a", "b", "c"):
        journal.append("promotion", release_id=release * 64, decision="promoted")
    known = journal.entries()[:2]
    first = tmp_path / "endpoints/assistant/journal/00000001.json"
    first.write_text("{}")
    assert [entry.number for entry in journal.entries(known)] == [1, 2, 3]
    with pytest.raises(IntegrityError, match="entry"):
        journal.entries()
    (tmp_path / "endpoints/assistant/journal/00000003.json").unlink()
    with pytest.raises(IntegrityError, match="does not hold at entry 3"):
        journal.entries([*known, known[-1]])
