"""The lease: an object that the launcher renews, so that a driver without a launcher ends by itself.

Cancelling a Kubeflow run kills the task at once, and whoever cancels a pod by force runs none of our code.  The driver
compares what it reads with what it read before, by its own clock: the clocks of two machines need not agree.
"""

import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serin.core.errors import StorageError
from serin.core.kubernetes import Clock
from serin.core.storage import Storage
from serin.finetune.cluster.request import LEASE

logger = logging.getLogger(__name__)


@contextmanager
def lease_renewed(storage: Storage, interval_s: float) -> Iterator[None]:
    """Renew a try's lease from now on, in a thread, until the block ends.

    A store that is away for a moment costs a renewal, not the training.
    """
    holder, ended = uuid.uuid4().hex, threading.Event()

    def renew() -> None:
        number = 0
        while True:
            number += 1
            try:
                storage.write(LEASE, json.dumps({"holder": holder, "renewal": number}).encode())
            except StorageError as error:
                logger.warning("The lease was not renewed: %s", error)
            if ended.wait(interval_s):
                return

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class LeaseWatch:
    """Whether the launcher is still there.

    Args:
        storage: the try's folder.
        expiry_s: a lease that stayed the same for this long has expired.
        clock: of this machine.
    """

    def __init__(self, storage: Storage, expiry_s: float, clock: Clock = Clock()) -> None:  # noqa: B008 - frozen
        self._storage, self._expiry_s, self._clock = storage, expiry_s, clock
        self._seen, self._since = b"", clock.now()

    def expired(self) -> bool:
        """Look; a lease that cannot be read counts as one that stayed the same."""
        try:
            found = self._storage.read(LEASE)
        except StorageError as error:
            logger.info("The lease cannot be read: %s", error)
            found = self._seen
        if found != self._seen:
            self._seen, self._since = found, self._clock.now()
        return self._clock.now() - self._since >= self._expiry_s


@contextmanager
def lease_watched(watch: LeaseWatch, interval_s: float, end: Callable[[], None]) -> Iterator[None]:
    """Call ``end`` once, from a thread, when the lease has expired before the block ends."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(interval_s):
            if watch.expired():
                end()
                return

    threading.Thread(target=look, name="lease-watch", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
