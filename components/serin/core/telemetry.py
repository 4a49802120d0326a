"""Progress and logs of a stage, and the off switches for the telemetry of what we depend on.

A stage reports through a ``Reporter``.  Inside a run of the local runner it appends JSON lines to the file that
``SERIN_EVENTS`` names, which the runner turns into the display; elsewhere it logs.
"""

import json
import logging
import os
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)

EVENTS_VARIABLE = "SERIN_EVENTS"
PARENT_VARIABLE = "SERIN_PARENT_PID"
"""Set by the local runner: a stage ends when that process does."""
LOG_INTERVAL_S = 5.0

NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_TRACKING_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
QUIET = {"MLFLOW_LOGGING_LEVEL": "WARNING", "GIT_PYTHON_REFRESH": "quiet", "TOKENIZERS_PARALLELISM": "false"}
"""Chatter that would stand between a user and the progress of a run."""


def silence_dependencies(environment: MutableMapping[str, str] | None = None) -> None:
    """Switch off usage reports and chatter of our dependencies, where the user has not decided otherwise."""
    target = os.environ if environment is None else environment
    for name, value in (NO_TELEMETRY | QUIET).items():
        target.setdefault(name, value)


class Reporter(Protocol):
    """Takes a stage's progress."""

    def __call__(self, event: str, **fields: Any) -> None:
        """``event`` is started, progress, reused, finished or failed; fields are JSON values."""


class FileReporter:
    """Appends each event as a JSON line; a line is one write, so readers never see half of one."""

    def __init__(self, path: Path, stage: str) -> None:
        self._path, self._stage = path, stage

    def __call__(self, event: str, **fields: Any) -> None:
        line = json.dumps({"time": time.time(), "stage": self._stage, "event": event, **fields}) + "\n"
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(line)


class LogReporter:
    """Writes events to the log; progress at most every five seconds."""

    def __init__(self, stage: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._stage, self._clock, self._last = stage, clock, float("-inf")

    def __call__(self, event: str, **fields: Any) -> None:
        if event == "progress":
            if self._clock() - self._last < LOG_INTERVAL_S:
                return
            self._last = self._clock()
        text = " ".join(f"{name}={value}" for name, value in fields.items())
        logger.info("%s %s %s", self._stage, event, text)


def reporter_for(stage: str) -> Reporter:
    """The reporter that this process should use."""
    path = os.environ.get(EVENTS_VARIABLE)
    return FileReporter(Path(path), stage) if path else LogReporter(stage)
