"""Checkpoints are written beside the training: in a background thread, one at a time, and copied to storage.

At a URI, ``step-00000120/tensors.safetensors`` is uploaded before ``step-00000120/state.json``, which holds its digest:
a checkpoint without its state is no checkpoint, whatever a killed pod or a refusing store left there.
"""

import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from serin.core.errors import StorageError
from serin.core.storage import Storage, join, storage_for
from serin.finetune.checkpoints import KEEP, STATE, TENSORS, Checkpoint, Checkpoints, whole_state

logger = logging.getLogger(__name__)

ATTEMPTS, FIRST_PAUSE_S = 4, 0.5


class CheckpointWriter:
    """Writes one checkpoint at a time in the background.

    Args:
        checkpoints: where they are kept on this machine.
        copies: where they are copied to.
    """

    def __init__(self, checkpoints: Checkpoints, copies: "CheckpointCopies | None" = None) -> None:
        self._checkpoints, self._copies = checkpoints, copies
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._flight: Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._flight is not None and not self._flight.done()

    def submit(self, checkpoint: Checkpoint) -> None:
        """Begin to write a checkpoint once the one before is written; raises what that one raised."""
        self.wait()
        self._flight = self._executor.submit(self._write, checkpoint)

    def failure(self) -> BaseException | None:
        """What the writing of the last checkpoint raised, if it has ended."""
        flight = self._flight
        return flight.exception() if flight is not None and flight.done() else None

    def wait(self) -> None:
        """Wait for the checkpoint that is being written; raises what its writing raised."""
        if self._flight is not None:
            self._flight.result()

    def close(self) -> None:
        """Let the checkpoint that is being written end, however it ends."""
        self._executor.shutdown(wait=True)

    def _write(self, checkpoint: Checkpoint) -> None:
        folder = self._checkpoints.save(checkpoint)
        if self._copies is not None:
            self._copies.upload(folder)


class CheckpointCopies:
    """The copies of a job's checkpoints in storage.

    Args:
        uri: ``s3://``, ``file://`` or a folder, for this job alone.
        pause_s: before the second attempt; each further one waits twice as long.
    """

    def __init__(self, uri: str, pause_s: float = FIRST_PAUSE_S) -> None:
        self._uri, self._pause_s = uri, pause_s

    def upload(self, folder: Path) -> None:
        """Copy a checkpoint, its state last, and drop all copies but the newest two.

        Raises:
            StorageError: the storage refused every attempt; earlier copies are as they were.
        """
        storage = storage_for(self._uri)  # a client of this thread's own
        self._insist(lambda: storage.upload(folder / TENSORS, f"{folder.name}/{TENSORS}"), folder.name)
        self._insist(lambda: storage.upload(folder / STATE, f"{folder.name}/{STATE}"), folder.name)
        for old in _complete(storage)[KEEP:]:
            storage.delete(f"{old}/{STATE}")  # first, so that a kill leaves no state without tensors
            storage.delete(f"{old}/{TENSORS}")

    def fetch_newest(self, folder: Path, above: int) -> None:
        """Fetch the newest whole copy into a job's folder of checkpoints when it is of a later step than ``above``."""
        storage = storage_for(self._uri)
        for name in _complete(storage):
            if int(name.removeprefix("step-")) <= above:
                return
            aside = folder / f".{name}.partial"
            shutil.rmtree(aside, ignore_errors=True)
            for file in (TENSORS, STATE):
                storage.fetch(f"{name}/{file}", aside / file)
            if whole_state(aside) is None:
                logger.warning("The copy %s is damaged: an earlier checkpoint is used.", join(self._uri, name))
                shutil.rmtree(aside, ignore_errors=True)
                continue
            shutil.rmtree(folder / name, ignore_errors=True)
            aside.rename(folder / name)
            logger.info("Checkpoint %s was fetched from %s.", name, self._uri)
            return

    def _insist(self, action: Callable[[], None], name: str) -> None:
        pause_s = self._pause_s
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return action()
            except StorageError as error:
                if attempt == ATTEMPTS:
                    raise StorageError(
                        f"Checkpoint {name} could not be copied to {self._uri} in {ATTEMPTS} attempts ({error}): "
                        "mend the storage and run again, training goes on from the last whole checkpoint."
                    ) from error
                logger.warning("Attempt %d to copy checkpoint %s failed: %s", attempt, name, error)
                time.sleep(pause_s)
                pause_s *= 2


def newest_checkpoint(checkpoints: Checkpoints, copies: CheckpointCopies | None) -> Checkpoint | None:
    """The newest whole checkpoint of the folder and of the copies, or None."""
    if copies is not None:
        newest = checkpoints.newest_whole_step()
        checkpoints.folder.mkdir(parents=True, exist_ok=True)
        copies.fetch_newest(checkpoints.folder, above=-1 if newest is None else newest)
    return checkpoints.load()


def _complete(storage: Storage) -> list[str]:
    """Names of the checkpoints that have a state, the newest first."""
    keys = (key.split("/") for key in storage.keys("step-"))
    return sorted({parts[0] for parts in keys if parts[1:] == [STATE]}, reverse=True)
