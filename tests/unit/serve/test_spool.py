import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serin.core.errors import StorageError
from serin.serve.spool import RefusedError, Segment, Shipper, Spool


class Receiver:
    """Takes segments by name, unless it is down."""

    def __init__(self) -> None:
        self.up = True
        self.taken: dict[str, list[bytes]] = {}

    def __call__(self, segment: Segment, records: list[bytes]) -> None:
        if not self.up:
            raise StorageError("down")
        self.taken[segment.name] = records

    @property
    def records(self) -> list[bytes]:
        return [record for name in sorted(self.taken) for record in self.taken[name]]


def shipped(spool: Spool) -> list[bytes]:
    receiver = Receiver()
    spool.roll()
    Shipper(spool, receiver, name="records").ship()
    return receiver.records


WRITER = """
import sys, time
from pathlib import Path
from serin.serve.spool import Spool
spool = Spool(Path(sys.argv[1]))
for number in range(10_000):
    spool.append("events", [f"record {number}".encode()])
    print(number, flush=True)
    if number % 7 == 0:
        spool.roll()
"""


def test_what_was_spooled_outlasts_a_kill(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    last = -1
    for line in process.stdout:
        last = int(line)
        if last >= 60:
            os.kill(process.pid, signal.SIGKILL)
            break
    last = max([last, *(int(line) for line in process.stdout)])
    process.wait()
    process.stdout.close()
    spool = Spool(tmp_path)
    found = shipped(spool)
    spool.close()
    assert found[: last + 1] == [f"record {number}".encode() for number in range(last + 1)]
    assert len(found) <= last + 2  # one may have been spooled and not said


def test_a_torn_end_costs_only_itself(tmp_path: Path):
    spool = Spool(tmp_path)
    spool.append("events", [b"one", b"two"])
    spool.roll()
    (segment,) = spool.pending()
    assert segment.path is not None
    whole = segment.path.read_bytes()
    for cut in range(len(whole)):
        segment.path.write_bytes(whole[:cut])
        assert spool.read(segment) == [b"one", b"two"][: (cut >= 11)]
    segment.path.write_bytes(whole[:-1] + b"x")
    assert spool.read(segment) == [b"one"]
    spool.close()


def test_a_living_process_keeps_its_segments_and_a_dead_ones_are_taken_over(tmp_path: Path):
    first = Spool(tmp_path)
    first.append("events", [b"a"])
    second = Spool(tmp_path)
    assert second.pending() == []
    first.close()
    third = Spool(tmp_path)
    assert [third.read(segment) for segment in third.pending()] == [[b"a"]]
    assert [path.name for path in tmp_path.rglob("*.events")] != []
    for spool in (second, third):
        shipped(spool)
        spool.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_full_spool_gives_up_the_oldest_and_counts_them(tmp_path: Path, on_disk: bool):
    lost: list[tuple[str, int]] = []
    spool = Spool(tmp_path if on_disk else None, max_bytes=5000, lost=lambda kind, count: lost.append((kind, count)))
    for number in range(10):
        spool.append("events", [f"{number}".encode() * 500, f"{number}".encode() * 500])
        spool.roll()
    kept = shipped(spool)
    assert kept[-1] == b"9" * 500
    assert len(kept) == 8
    assert sum(count for _, count in lost) == 12
    assert spool.size == 0
    spool.close()


def test_a_disk_that_fails_leaves_the_records_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    spool = Spool(tmp_path)
    spool.append("events", [b"one"])
    (open_file,) = tmp_path.rglob("*.open")
    segment = spool._open["events"]
    assert segment.stream is not None
    segment.stream.close()
    segment.stream = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 - a disk without space
    spool.append("events", [b"two"])
    spool.append("events", [b"three"])
    assert "kept in memory" in caplog.text
    assert open_file.exists()
    assert shipped(spool) == [b"one", b"two", b"three"]
    spool.close()


def test_a_receiver_that_comes_back_gets_everything_in_order(tmp_path: Path):
    spool, receiver = Spool(tmp_path), Receiver()
    receiver.up = False
    shipper = Shipper(spool, receiver, name="records", retry_s=0.02)
    shipper.start()
    for number in range(5):
        spool.append("events", [str(number).encode()])
        spool.roll()
        shipper.wake()
    time.sleep(0.1)
    assert receiver.taken == {}
    receiver.up = True
    deadline = time.monotonic() + 5
    while len(receiver.records) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert receiver.records == [b"0", b"1", b"2", b"3", b"4"]
    shipper.close()
    spool.close()


def test_what_is_refused_for_good_does_not_hold_up_the_rest(tmp_path: Path):
    lost: list[int] = []
    taken: list[bytes] = []

    def send(_: Segment, records: list[bytes]) -> None:
        if b"bad" in records:
            raise RefusedError("no")
        taken.extend(records)

    spool = Spool(tmp_path)
    for record in (b"a", b"bad", b"b"):
        spool.append("events", [record])
        spool.roll()
    assert Shipper(spool, send, name="records", lost=lambda kind, count: lost.append(count)).ship() == 2
    assert (taken, lost) == ([b"a", b"b"], [1])
    spool.close()
