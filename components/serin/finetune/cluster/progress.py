"""How the driver's progress reaches the launcher: marked lines among those of the log."""

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

MARK = "::serin:: "
INTERVAL_S = 2.0
PASSED_ON = ("progress", "reused")


class LineReporter:
    """A reporter that writes each event as a marked line; progress at most every two seconds.

    Args:
        stream: the driver's output, that Ray collects.
        clock: seconds.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock, self._last = stream or sys.stdout, clock, float("-inf")
        self._lock = threading.Lock()

    def __call__(self, event: str, **fields: Any) -> None:
        with self._lock:
            if event == "progress":
                now = self._clock()
                if now - self._last < INTERVAL_S:
                    return
                self._last = now
            self._stream.write(f"{MARK}{json.dumps({'event': event, **fields}, default=str)}\n")
            self._stream.flush()


class LineReader:
    """Takes the driver's lines apart: events to a reporter, all others to a stream.

    Args:
        report: takes the events that the launcher passes on.
        stream: the launcher's own output.
    """

    def __init__(self, report: Callable[..., None], stream: TextIO | None = None) -> None:
        self._report, self._stream = report, stream or sys.stdout
        self._lock = threading.Lock()

    def __call__(self, line: str) -> None:
        """Take one line without its end."""
        _, mark, text = line.partition(MARK)
        if mark and (event := _event(text)):
            name = event.pop("event")
            if name in PASSED_ON:
                self._report(name, **event)
            return
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()


def _event(text: str) -> dict[str, Any] | None:
    try:
        event = json.loads(text)
    except ValueError:  # a line that was cut
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
