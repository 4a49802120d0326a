"""The local runner: a pipeline through kfp.local in a child process, with logs per task, a display and a record."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from serin.core.artifacts import home
from serin.core.errors import ConfigError, InterruptedRunError, SerinError
from serin.core.storage import disk_errors, is_remote, local_path
from serin.core.telemetry import EVENTS_VARIABLE
from serin.core.tracking import prepare_database
from serin_pipelines.display import Display
from serin_pipelines.records import PIPELINE_STAGES, RunRecord, StageRecord, new_run_id

POLL_S = 0.2
ENDING_S = 5.0
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
TASK = re.compile(r"Executing task .*?'([\w-]+)'")
UNRESOLVED = "Could not resolve"
"""kfp.local takes a condition that it cannot evaluate for False without failing: to us it is a failure."""


class StageFailedError(SerinError):
    """A stage of a run failed; the text names the stage, the reason and the log."""


def run_pipeline(
    name: str,
    arguments: Mapping[str, Any],
    *,
    store_uri: str = "",
    tracking_uri: str = "",
    timeout_s: float,
    display: Display,
) -> RunRecord:
    """Run a pipeline on this machine and wait for it.

    Args:
        name: which pipeline.
        arguments: its parameters, without store_uri, tracking_uri and lineage_id.
        store_uri: the artefact store; empty for the one below SERIN_HOME.
        tracking_uri: MLflow; empty for a sqlite file below SERIN_HOME.
        timeout_s: the run is ended after this long.
        display: shows the progress.

    Returns:
        The finished record (succeeded or rejected).

    Raises:
        StageFailedError: a stage failed.
        InterruptedRunError: the time limit was reached, or another run holds this home.
    """
    with _lock():
        store_uri, tracking_uri = _defaults(store_uri, tracking_uri)
        source_uri = str(arguments.get("source_uri", ""))
        if source_uri and not is_remote(source_uri):
            source_uri = str(local_path(source_uri))
        record = RunRecord(
            run_id=new_run_id(),
            pipeline=name,
            pid=os.getpid(),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            source_uri=source_uri,
            store_uri=store_uri,
            tracking_uri=tracking_uri,
            endpoint=str(arguments.get("endpoint", "")),
            stages=[StageRecord(name=stage) for stage in PIPELINE_STAGES[name]],
        )
        with disk_errors(record.folder):
            record.save()
        prepare_database(tracking_uri)
        given = {
            **arguments,
            **({"source_uri": source_uri} if source_uri else {}),
            "store_uri": store_uri,
            "tracking_uri": tracking_uri,
            "lineage_id": record.run_id,
        }
        (record.folder / "arguments.json").write_text(json.dumps(given, indent=1), encoding="utf-8")
        with display.following(record):
            _supervise(record, timeout_s, display)
        return record


def _supervise(record: RunRecord, timeout_s: float, display: Display) -> None:
    started = time.monotonic()
    child = _start(record)
    logs = TaskLogs(record.folder / "logs")
    reader = threading.Thread(target=logs.read, args=(child.stdout,), daemon=True)
    reader.start()
    events = EventTail(record.folder / "events.jsonl")
    timed_out = False
    try:
        while child.poll() is None:
            if time.monotonic() - started > timeout_s:
                timed_out = True
                break
            _apply(record, events.new(), logs)
            record.wall_s = round(time.monotonic() - started, 1)
            record.save()
            display.update(record)
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        record.status, record.error = "interrupted", "Interrupted; 'serin run' continues from what is finished."
        raise InterruptedRunError(record.error) from None
    finally:
        _end(child)
        reader.join(timeout=ENDING_S)
        _apply(record, events.new(), logs)
        record.wall_s = round(time.monotonic() - started, 1)
        _conclude(record, child.returncode, timed_out, logs)
        record.save()
        display.update(record)
    if record.status == "interrupted":
        raise InterruptedRunError(f"The run was ended after its limit of {timeout_s:.0f} s: raise --timeout-s.")
    if record.status == "failed":
        raise StageFailedError(record.error)


def _start(record: RunRecord) -> "subprocess.Popen[str]":
    environment = {
        **os.environ,
        EVENTS_VARIABLE: str(record.folder / "events.jsonl"),
        "SERIN_HOME": str(home()),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
    }
    return subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "serin_pipelines.local_run", record.pipeline, str(record.folder), str(os.getpid())],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )


def _end(child: "subprocess.Popen[str]") -> None:
    """End the child's whole process group: gently, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is None:
            try:
                os.killpg(child.pid, number)
                child.wait(timeout=ENDING_S)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def _conclude(record: RunRecord, returncode: int | None, timed_out: bool, logs: "TaskLogs") -> None:
    if timed_out or record.status == "interrupted":
        record.status = "interrupted"
        return
    failed = next((stage for stage in record.stages if stage.status == "failed"), None)
    if failed is None and (returncode != 0 or logs.unresolved):
        failed = next((stage for stage in record.stages if stage.status == "running"), None)
        reason = "kfp.local could not resolve a condition" if logs.unresolved else f"it ended with status {returncode}"
        if failed is None:
            record.status, record.error = "failed", f"The pipeline failed: {reason}. Log: {logs.path('pipeline')}"
            return
        failed.status, failed.message = "failed", f"{failed.name} ended without a word ({reason})."
    if failed is not None:
        record.status, record.error = "failed", f"{failed.name}: {failed.message} Log: {failed.log}"
        return
    for stage in record.stages:
        if stage.status == "waiting":
            stage.status = "skipped"
    summaries = {stage.name: stage.summary for stage in record.stages}
    record.release = summaries.get("release", {}).get("release", "")
    record.champion = summaries["conclude"].get("champion", "")
    record.status = "succeeded"
    if rollout := summaries.get("deploy"):
        record.decision = rollout["decision"]["outcome"]
        record.release = record.release or rollout["candidate"]
    elif "deploy" in summaries:
        record.decision, record.status = "gate failed", "rejected"
    else:
        record.decision = summaries["monitor"].get("outcome", "")


def _apply(record: RunRecord, events: list[dict[str, Any]], logs: "TaskLogs") -> None:
    for event in events:
        stage = record.stage(event["stage"])
        stage.log = str(logs.path(event["stage"]))
        kind = event["event"]
        if kind == "started":
            stage.status, stage.summary["started"] = "running", event["time"]
        elif kind == "progress":
            stage.message = event["message"]
            stage.summary["fraction"] = event.get("fraction")
        elif kind == "reused":
            stage.reused.append(event["kind"])
        elif kind == "failed":
            stage.status, stage.message = "failed", event["message"]
        elif kind == "finished":
            started = stage.summary.get("started", event["time"])
            stage.status, stage.summary = "succeeded", {**event["summary"], "started": started}
            stage.wall_s = round(event["time"] - started, 1)
        elif kind == "closed":
            stage.wall_s = round(event["time"] - stage.summary.get("started", event["time"]), 1)


class TaskLogs:
    """Splits the child's output into one file a task, by the lines with which kfp.local announces them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.unresolved = False

    def path(self, task: str) -> Path:
        """The log of a task."""
        return self._folder / f"{task.replace('-', '_')}.log"

    def read(self, stream: IO[str]) -> None:
        """Copy lines until the stream ends."""
        self._folder.mkdir(parents=True, exist_ok=True)
        current = "pipeline"
        for raw in stream:
            line = COLOUR.sub("", raw)
            self.unresolved = self.unresolved or UNRESOLVED in line
            if match := TASK.search(line):
                current = match.group(1)
            with self.path(current).open("a", encoding="utf-8") as log:
                log.write(line)


class EventTail:
    """Reads whole new lines of an events file."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def new(self) -> list[dict[str, Any]]:
        """Events since the last call."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def _defaults(store_uri: str, tracking_uri: str) -> tuple[str, str]:
    base = home()
    if any(character.isspace() for character in str(base)):
        raise ConfigError(f"SERIN_HOME {str(base)!r} contains a space, which MLflow's sqlite URI cannot hold: move it.")
    return store_uri or (base / "store").as_uri(), tracking_uri or f"sqlite:///{base / 'mlflow.db'}"


@contextmanager
def _lock() -> Iterator[None]:
    base = home()
    with disk_errors(base):
        base.mkdir(parents=True, exist_ok=True)
        lock = (base / "run.lock").open("w")
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InterruptedRunError(
                f"Another run is under way in {base}: wait for it, or set SERIN_HOME to another folder."
            ) from None
        yield
    finally:
        lock.close()
