"""Progress of the stage: passes on what the training reports, and repeats itself while there is nothing new."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from serin.core.tracking import Tracker

REPEAT_S = 1.5
METRICS_INTERVAL_S = 2.0


class Heartbeat:
    """Says something at least every two seconds, so that a stage that works is told from one that hangs.

    Args:
        progress: called with a message and the fraction of the stage that is done.
    """

    def __init__(self, progress: Callable[[str, float | None], None]) -> None:
        self._progress = progress
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._message, self._fraction, self._since, self._last = "starting", 0.0, time.monotonic(), 0.0
        self._thread = threading.Thread(target=self._repeat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def say(self, message: str, fraction: float) -> None:
        """What goes on from now, and how much of the stage is done (0 to 1)."""
        with self._lock:
            self._message, self._fraction, self._since = message, round(fraction, 4), time.monotonic()
            self._say(message)

    def _repeat(self) -> None:
        while not self._ended.wait(REPEAT_S / 3):
            with self._lock:
                if time.monotonic() - self._last >= REPEAT_S:
                    self._say(f"{self._message} ({time.monotonic() - self._since:.0f} s)")

    def _say(self, message: str) -> None:
        self._last = time.monotonic()
        self._progress(message, self._fraction)


class PhaseReport:
    """Turns the loop's records into progress and metrics.

    Args:
        heartbeat: where progress goes.
        tracker: where metrics go, at most every two seconds.
        name: prefix of the metrics' names.
        share: the part of the stage that this phase is, as (start, end) fractions.
    """

    def __init__(self, heartbeat: Heartbeat, tracker: Tracker, name: str, share: tuple[float, float]) -> None:
        self._heartbeat, self._tracker, self._name, self._share = heartbeat, tracker, name, share
        self._tracked = self._said = float("-inf")
        self._tokens, self._seconds = 0, 0.0

    def __call__(self, record: dict[str, Any]) -> None:
        """Take one line of the loop's progress."""
        self._tokens += record.get("tokens", 0)
        self._seconds += record.get("seconds", 0.0)
        now, last = time.monotonic(), record["step"] == record["steps"]
        if now - self._said >= REPEAT_S / 3 or last:
            self._said = now
            start, end = self._share
            done = record["step"] / record["steps"]
            self._heartbeat.say(_sentence(record), start + (end - start) * done)
        if now - self._tracked >= METRICS_INTERVAL_S or last or record.get("val_loss") is not None:
            self._tracked = now
            self._tracker.metrics(self._metrics(record), step=record["step"])

    def _metrics(self, record: dict[str, Any]) -> dict[str, float]:
        known = {name: record[name] for name in ("loss", "val_loss", "lr") if record.get(name) is not None}
        if self._seconds:
            known["tokens_per_s"] = self._tokens / self._seconds
        return {f"{self._name}.{name}": value for name, value in known.items()}


def _sentence(record: dict[str, Any]) -> str:
    loss = f", loss {record['loss']:.3f}" if record.get("loss") is not None else ""
    return f"{record['phase']} {record['step']}/{record['steps']}{loss}"
