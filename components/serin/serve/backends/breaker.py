"""When a server is not asked any more: a circuit breaker.

Closed, requests pass.  Once enough of the last ones failed, it opens: nobody waits for a server that is down.  After a
while one request may try (half-open); if that works it closes, otherwise it stays open for twice as long.
(Nygard, Release It!, 2007.)
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]
WINDOW = 20
"""Outcomes that are looked at."""


class Breaker:
    """For one server.

    Args:
        failures: failed requests that open it, where they are also half of the window.
        open_s: how long it stays open at first.
        max_open_s: how long it stays open at most.
        window_s: outcomes older than this are forgotten.
        clock: seconds.
    """

    def __init__(
        self,
        failures: int = 5,
        open_s: float = 2.0,
        max_open_s: float = 30.0,
        window_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures, self._open_s, self._max_open_s, self._window_s = failures, open_s, max_open_s, window_s
        self._clock = clock
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=max(WINDOW, 2 * failures))
        self._until: float | None = None
        self._wait_s = open_s
        self._probing = False

    @property
    def state(self) -> State:
        """``half-open`` from the moment on at which one request may try."""
        if self._until is None:
            return "closed"
        return "open" if self._clock() < self._until else "half-open"

    @property
    def opens_in_s(self) -> float:
        """Seconds until a request may try; 0: now."""
        return 0.0 if self._until is None else max(0.0, self._until - self._clock())

    def admits(self) -> bool:
        """Whether a request may pass now."""
        return self.state == "closed" or (self.state == "half-open" and not self._probing)

    def enter(self) -> None:
        """A request passes; one of the methods below must follow."""
        self._probing = self._probing or self.state == "half-open"

    def works(self) -> None:
        """The server has begun to answer: what was tried worked, and others may pass."""
        if self._until is not None:
            self._until, self._wait_s, self._probing = None, self._open_s, False
            self._outcomes.clear()

    def succeeded(self) -> None:
        """The request went well."""
        self.works()
        self._outcomes.append((self._clock(), True))

    def failed(self) -> None:
        """The request failed, and it was the server's fault."""
        now = self._clock()
        if self._until is not None:
            if self.state == "half-open":
                self._wait_s = min(self._max_open_s, 2 * self._wait_s)
                self._until, self._probing = now + self._wait_s, False
            return
        self._outcomes.append((now, False))
        recent = [good for at, good in self._outcomes if now - at <= self._window_s]
        bad = recent.count(False)
        if bad >= self._failures and 2 * bad >= len(recent):
            self._until, self._probing = now + self._wait_s, False

    def left(self) -> None:
        """The request ended and said nothing about the server: its client went away."""
        self._probing = False

    def try_now(self) -> None:
        """There is reason to think that the server is back: the next request may try."""
        if self._until is not None:
            self._until = min(self._until, self._clock())
