"""One background thread that sends a tracker's records to MLflow, and what others left behind before that."""

import logging
import random
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

from serin.core.tracking.runs import MlflowFailure, Runs
from serin.core.tracking.spool import Record, RunKey, SpoolFile, leftovers, new_file, shown

logger = logging.getLogger(__name__)

GATHER_S = 0.2
"""Records are gathered this long, so that many go in one batch."""
MOST_RECORDS = 500
MIN_DELAY_S, MAX_DELAY_S = 0.5, 30.0
"""Between tries while MLflow is away."""
IDLE_S = 5.0
"""The thread ends after so long without work; the next record starts another."""


class Delivery:
    """The way of one run's records to MLflow.

    Nothing here waits for MLflow except ``wait`` and ``wait_for_run``, both of which have a limit.

    Args:
        runs: where records go.
        key: the run.
    """

    def __init__(self, runs: Runs, key: RunKey) -> None:
        self.runs, self.key = runs, key
        self.run_id = ""
        self.failure: MlflowFailure | None = None
        """Why the last try failed; None when it went well."""
        self._state = threading.Condition()
        self._file: SpoolFile | None = None
        self._thread: threading.Thread | None = None
        self._left: SpoolFile | None = None
        self._wanted = self._hurry = self._reported = self._swept = False
        self._num_begun = self._num_ended = 0

    def post(self, record: Record) -> None:
        """Put a record on its way: it is on disk when this returns, unless the disk is full or read-only."""
        with self._state:
            file = self._open()
            if file and file.append(record):
                self._start()

    def post_file(self, record: Record, path: Path, field: str) -> None:
        """Put a record on its way together with a copy of a file or folder, whose name goes into a field."""
        with self._state:
            file = self._open()
            name = file.keep_file(path) if file else None
            if file and name and file.append(_with_file(record, field, name)):
                self._start()

    def wait_for_run(self, timeout_s: float) -> str:
        """The run's id, found or created; empty when MLflow is away or the time is over.

        Raises:
            MlflowFailure: MLflow refuses what no later try can change.
        """
        with self._state:
            self._wanted = True
            if not self.run_id and self.failure is None:
                self._start()
                self._state.wait_for(lambda: bool(self.run_id) or self.failure is not None, timeout_s)
            if not self.run_id and self.failure and self.failure.kind == "unusable":
                raise self.failure
            return self.run_id

    def wait(self, timeout_s: float) -> bool:
        """Wait until everything has arrived; False when MLflow is away or the time is over."""
        with self._state:
            if self._is_done():
                return True
            self._hurry, next_try = True, self._num_begun + 1
            self._start()
            self._state.wait_for(
                lambda: self._is_done() or (self._is_away() and self._num_ended >= next_try), timeout_s
            )
            return self._is_done()

    def close(self) -> None:
        """End the thread after what it is at, and let go of the file; the next tracker sends what is left in it."""
        with self._state:
            thread, file, self._file = self._thread, self._file, None
            if file is None:
                return
            self._left = file
            self._state.notify_all()
            if not file.is_sent:
                logger.warning(
                    "%d records of %s wait for MLflow at %s; the next stage with this tracking URI sends them.",
                    file.num_waiting(),
                    self.key.stage,
                    shown(self.runs.uri),
                )
        if thread:
            thread.join(timeout=1.0)
        self._let_go(thread)

    def _let_go(self, thread: threading.Thread | None) -> None:
        """Close the file that is left, unless a thread still sends from it, which then closes it."""
        with self._state:
            if self._left and not (thread and thread.is_alive() and thread is not threading.current_thread()):
                self._left.close()
                self._left = None

    def _open(self) -> SpoolFile | None:
        if self._file is None:
            try:
                self._file = new_file(self.runs.uri, self.key)
            except OSError as error:
                if not self._reported:
                    logger.warning("Nothing is recorded in MLflow: its spool cannot be written (%s).", error)
                self._reported = True
        return self._file

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()
        else:
            self._state.notify_all()

    def _is_away(self) -> bool:
        return self.failure is not None and self.failure.kind != "blocked"

    def _is_done(self) -> bool:
        return self._file is None or self._file.is_sent

    def _work(self) -> None:
        """Send until there has been nothing to send for a while."""
        delay = 0.0
        thread = threading.current_thread()
        while self._await_work(delay):
            try:
                self._resolve()
                self._sweep()
                self._send()
            except MlflowFailure as error:
                delay = min(MAX_DELAY_S, max(MIN_DELAY_S, random.uniform(1.6, 2.0) * delay))  # noqa: S311
                self._note(error)
            except Exception as error:
                logger.exception("The records of %s cannot be sent.", self.key.stage)
                delay = MAX_DELAY_S
                self._note(MlflowFailure("away", f"MLflow at {shown(self.runs.uri)} cannot be used ({error})."))
            else:
                delay = 0.0
                self._note(None)
        self._let_go(thread)

    def _await_work(self, delay: float) -> bool:
        """Wait for records, or out a delay; False ends the thread."""
        with self._state:
            if delay:
                self._state.wait_for(lambda: self._hurry or self._file is None, delay)
            else:
                self._state.wait_for(lambda: self._has_work() or self._left is not None, IDLE_S)
            hurried, self._hurry = self._hurry, False
            if not self._has_work():
                self._thread = None
                return False
        if self.run_id and not (hurried or delay):
            time.sleep(GATHER_S)
        self._num_begun += 1
        return True

    def _has_work(self) -> bool:
        return (self._wanted and not self.run_id and self.failure is None) or not self._is_done()

    def _resolve(self) -> None:
        if self.run_id:
            return
        run_id, _ = self.runs.find_or_create(self.key)
        with self._state:
            self.run_id = run_id
            self._state.notify_all()

    def _sweep(self) -> None:
        """Send what killed processes, and stages without MLflow, left behind."""
        if self._swept:
            return
        with closing(leftovers(self.runs.uri)) as files:
            for file in files:
                try:
                    _deliver(self.runs, file, self.key)
                except MlflowFailure as error:
                    if error.kind in ("away", "blocked", "unusable"):
                        raise
                    logger.warning("What waits in %s cannot be sent: %s", file.path, error)
        self._swept = True

    def _send(self) -> None:
        while file := self._file:
            records, offset = file.waiting(MOST_RECORDS)
            if offset == file.sent:
                return
            try:
                self.runs.send(self.run_id, file, records)
            except MlflowFailure as error:
                if error.kind == "missing" and not self.key.given:
                    self.run_id = ""  # the database was made anew: so is the run
                raise
            file.acknowledge(offset)

    def _note(self, failure: MlflowFailure | None) -> None:
        with self._state:
            if failure and not self.failure:
                logger.warning("%s Meanwhile its records wait on this machine.", failure)
            elif self.failure and not failure:
                logger.warning("MLflow at %s answers again; what waited was sent.", shown(self.runs.uri))
            self.failure = failure
            self._num_ended = self._num_begun
            self._state.notify_all()


def send_leftovers(uri: str) -> int:
    """Send what others left behind for a tracking URI, now.

    Returns:
        How many files were sent.

    Raises:
        MlflowFailure: MLflow cannot be reached or used; the rest stays where it is.
    """
    runs, sent = Runs(uri), 0
    with closing(leftovers(uri)) as files:
        for file in files:
            _deliver(runs, file, None)
            sent += 1
    return sent


def _deliver(runs: Runs, file: SpoolFile, live: RunKey | None) -> None:
    """Send another's file; a run that its process did not live to close is left as killed if nobody else knows it."""
    if file.is_sent:
        return
    is_live = file.key == live
    run_id, made = runs.find_or_create(file.key, live=is_live)
    ended = False
    while True:
        records, offset = file.waiting(MOST_RECORDS)
        if offset == file.sent:
            break
        runs.send(run_id, file, records, end=not is_live)
        ended = any("end" in record for record in records)
        file.acknowledge(offset)
    file.acknowledge(file.size)  # half a line, at most, of a writer that was killed
    if made and not ended and not is_live:
        with suppress(MlflowFailure):
            runs.close_killed(run_id)


def _with_file(record: Record, field: str, name: str) -> Record:
    if field == "model":
        return {"model": {**record["model"], "files": name}}
    return {**record, field: name}
