"""A lease on an endpoint's rollouts: one controller at a time, and none that lost it can still act.

A lease is an object ``endpoints/<endpoint>/leases/<fence>.json``, created only if absent, so that of two takers one
wins.  Its number is the fence: it only ever grows, and goes with whatever the controller writes (journal) or tells
(traffic), where a lower one than was seen is refused.  So a controller that slept through its lease - a paused pod, a
long garbage collection - is harmless even while it believes in it.  (Kleppmann, "How to do distributed locking", 2016,
names the trap and the remedy.)
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self

import psutil

from serin.core.errors import AlreadyExistsError, FencedError, SerinError, UnavailableError
from serin.core.storage import Storage

logger = logging.getLogger(__name__)

LEASE_S = 30.0
"""A lease that was not renewed for so long may be taken over."""
WAIT_S = 1.0
KEPT = 3
"""Leases that are kept; only the last one counts."""
RENEWALS = 3
"""Renewals within that time."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, and until when."""

    fence: int
    host: str
    process: int
    expires: float
    """Seconds since 1970."""

    def gone(self) -> bool:
        """Whether its process is known to have ended: it was one of this machine."""
        if self.host != socket.gethostname():
            return False
        return self.process == os.getpid() or not psutil.pid_exists(self.process)


class Lease:
    """The lease on one endpoint; use it in a ``with`` statement, which renews it in the background.

    Args:
        storage: the store.
        endpoint: whose rollouts.
        host: of the holder, for people; empty takes this machine's name.
        duration_s: see ``LEASE_S``.
        clock: seconds since 1970; clocks of controllers may differ by less than ``duration_s``.
        renew: whether a thread renews it.
    """

    def __init__(
        self,
        storage: Storage,
        endpoint: str,
        *,
        host: str = "",
        duration_s: float = LEASE_S,
        clock: Callable[[], float] = time.time,
        renew: bool = True,
    ) -> None:
        self._storage, self._endpoint = storage, endpoint
        self._host = host or socket.gethostname()
        self._duration_s, self._clock, self._renew = duration_s, clock, renew
        self._prefix = f"endpoints/{endpoint}/leases/"
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._expires = 0.0
        self.fence = 0
        """Number of the lease that is held; 0 before."""

    def __enter__(self) -> Self:
        self.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.give_back()

    def holder(self) -> Holder | None:
        """Who holds the lease now; None when nobody does."""
        last = self._last()
        return last if last is not None and self._in_force(last) else None

    def wait(self, *, most_s: float = 2 * LEASE_S) -> None:
        """Take the lease; one whose holder was killed elsewhere runs out first.

        Raises:
            UnavailableError: another controller still holds it.
        """
        until = time.monotonic() + most_s
        while True:
            try:
                return self.take()
            except UnavailableError:
                if time.monotonic() > until:
                    raise
            time.sleep(WAIT_S)

    def take(self) -> None:
        """Take the lease.

        Raises:
            UnavailableError: another controller holds it.
        """
        last = self._last()
        if last is not None and self._in_force(last):
            raise _held(self._endpoint, last)
        fence = last.fence + 1 if last else 1
        self._expires = self._clock() + self._duration_s
        try:
            self._storage.write(self._key(fence), self._content(fence), if_absent=True)
        except AlreadyExistsError as error:
            winner = self._last()
            assert winner is not None
            raise _held(self._endpoint, winner) from error
        self.fence = fence
        if fence > KEPT:
            self._storage.delete(self._key(fence - KEPT))
        if self._renew:
            self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
            self._thread.start()

    def check(self) -> None:
        """Make sure of the lease before acting; renews it where it has run out and nobody else took it.

        Raises:
            FencedError: another controller took it.
        """
        if self._clock() >= self._expires or not self._renew:
            self.renew()

    def renew(self) -> None:
        """Hold it for longer.

        Raises:
            FencedError: another controller took it.
        """
        last = self._last()
        if last is None or last.fence != self.fence:
            raise FencedError(
                f"The lease on {self._endpoint!r} went to {last.host if last else 'nobody'}: this controller stops."
            )
        self._expires = self._clock() + self._duration_s
        self._storage.write(self._key(self.fence), self._content(self.fence))

    def give_back(self) -> None:
        """Let others take it; never raises."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            last = self._last()
            if self.fence and last is not None and last.fence == self.fence:
                self._expires = 0.0
                self._storage.write(self._key(self.fence), self._content(self.fence))
        except SerinError as error:
            logger.warning("The lease could not be given back, and runs out by itself: %s", error)

    def _keep(self) -> None:
        while not self._stop.wait(self._duration_s / RENEWALS):
            try:
                self.renew()
            except FencedError as error:
                logger.error("%s", error)
                return
            except SerinError as error:
                logger.warning("The lease could not be renewed, and it is tried again: %s", error)

    def _in_force(self, holder: Holder) -> bool:
        return holder.expires > self._clock() and not (self._host == holder.host and holder.gone())

    def _last(self) -> Holder | None:
        keys = [key for key in self._storage.keys(self._prefix) if key.endswith(".json")]
        return Holder(**json.loads(self._storage.read(keys[-1]))) if keys else None

    def _key(self, fence: int) -> str:
        return f"{self._prefix}{fence:08d}.json"

    def _content(self, fence: int) -> bytes:
        return json.dumps(asdict(Holder(fence, self._host, os.getpid(), self._expires))).encode()


def _held(endpoint: str, holder: Holder) -> UnavailableError:
    return UnavailableError(
        f"Another controller ({holder.host}, process {holder.process}) drives the rollouts of {endpoint!r}: wait until "
        "it is done, or for half a minute if it was killed."
    )
