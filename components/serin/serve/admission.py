"""Who is let in: budgets of keys, and a limit on requests under way that follows the latency.

A request that could not be answered in time is refused at once with 429 and Retry-After, so that those let in keep
their latency instead of all of them losing it.  There is no queue here: what waits, waits in the engine, and by
Little's law the number under way decides how long.  So the limit is what is steered, by additive increase and
multiplicative decrease on the measured 95th percentile against the bound (after TCP's congestion control; the
quantile instead of a minimum latency, because answers differ in length by themselves).
"""

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

from pydantic import Field

from serin.core.config import Section
from serin.serve.budgets import Budgets
from serin.serve.errors import RequestError

WINDOW_SAMPLES = 40
"""Answers that a look at the quantile rests on, at most."""
LATE_SAMPLES = 2
"""One more above the quantile's bound, and the window's quantile is beyond it whatever else comes: a slow engine's
overload is answered after three answers, not after forty."""
HIGH, LOW = 0.9, 0.8
"""Shares of the bound above which the limit falls, and below which it may rise."""
DEEPEST_CUT = 0.6
GENTLEST_CUT = 0.92


class AdmissionConfig(Section):
    """How much is let in at once."""

    p95_ms: float | None = Field(default=None, gt=0)
    """What 95 of 100 answers must keep below, milliseconds; None: only ``max_in_flight`` limits."""
    measure: Literal["latency", "ttft"] = "latency"
    """What the bound is on: the whole answer, or the time to its first token."""
    max_in_flight: int = Field(default=512, ge=1)
    """Requests under way are never more than this."""
    min_in_flight: int = Field(default=1, ge=1)
    """And the limit never falls below this."""
    start_in_flight: int = Field(default=8, ge=1)
    """Where the limit starts; it doubles while the latency is far from its bound."""


class AdaptiveLimit:
    """The number of requests that may be under way; pure but for the clock that its user reads.

    Args:
        config: bound and range.
    """

    def __init__(self, config: AdmissionConfig) -> None:
        self._config = config
        start = config.start_in_flight if config.p95_ms is not None else config.max_in_flight
        self._limit = float(min(max(start, config.min_in_flight), config.max_in_flight))
        self._samples: list[float] = []
        self._was_full = False
        self._starting = True
        self._skip = 0

    @property
    def value(self) -> int:
        """The limit now."""
        return int(self._limit)

    def full(self) -> None:
        """A request was refused, or the last place was taken: only then may more be let in."""
        self._was_full = True

    def observe(self, latency_ms: float, in_flight: int) -> None:
        """Take an answer's latency, milliseconds, and how many others were under way at its end."""
        if self._config.p95_ms is None:
            return
        if self._skip > 0:  # let in under the limit before the last cut: it says nothing about this one
            self._skip -= 1
            return
        self._samples.append(latency_ms)
        late = [sample for sample in self._samples if sample > HIGH * self._config.p95_ms]
        if len(self._samples) >= WINDOW_SAMPLES or len(late) > LATE_SAMPLES:
            self._steer(sorted(self._samples)[-1 - LATE_SAMPLES] / self._config.p95_ms, in_flight)
            self._samples.clear()
            self._was_full = False

    def _steer(self, load: float, in_flight: int) -> None:
        """``load`` is the quantile as a share of the bound."""
        if load > HIGH:
            self._starting = False
            self._limit *= min(GENTLEST_CUT, max(DEEPEST_CUT, HIGH / load))
            self._skip = in_flight
        elif load < LOW and self._was_full:
            self._limit = (
                self._limit * 2 if self._starting and load < LOW * 0.75 else self._limit + max(1.0, self._limit / 20)
            )
            self._skip = in_flight if self._starting else 0
        self._limit = min(max(self._limit, self._config.min_in_flight), self._config.max_in_flight)


class Lease:
    """A request that was let in; to be given back with ``done``, which may be called again without effect."""

    def __init__(self, admission: "Admission", key_id: str, started: float) -> None:
        self._admission, self._key_id, self._started = admission, key_id, started
        self._open = True

    def done(self, *, tokens: int = 0, ttft_ms: float | None = None) -> None:
        """The request is over.

        Args:
            tokens: prompt and completion tokens; 0 where there was no answer, whose latency then does not count.
            ttft_ms: time to the first token, milliseconds.
        """
        if self._open:
            self._open = False
            self._admission._leave(self._key_id, self._started, tokens, ttft_ms)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.done()


class Admission:
    """Lets requests in or refuses them; for one thread, the event loop's.

    Args:
        config: how much is let in at once; None: nothing is refused for load.
        budgets: what keys may use; None: as much as they like.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        config: AdmissionConfig | None = None,
        budgets: Budgets | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._budgets, self._clock = config, budgets or Budgets(), clock
        self._limit = AdaptiveLimit(config) if config is not None else None
        self.in_flight = 0
        self.refused: dict[str, int] = {}
        """Refused requests by reason: overloaded, rate_limit_exceeded, insufficient_quota."""

    @property
    def limit(self) -> int | None:
        """Requests that may be under way now; None: any number."""
        return self._limit.value if self._limit else None

    def enter(self, key_id: str = "") -> Lease:
        """Let a request in.

        Raises:
            RequestError: 429 with Retry-After: the key is beyond its limits, or there is too much under way.
        """
        if self._limit is not None:
            if self.in_flight >= self._limit.value:
                self._limit.full()
                self._count("overloaded")
                raise RequestError(
                    429, "The endpoint is at its limit: try again shortly.", code="overloaded",
                    retry_after_s=self._retry_after_s(),
                )  # fmt: skip
            if self.in_flight + 1 >= self._limit.value:
                self._limit.full()
        try:
            self._budgets.take(key_id)
        except RequestError as error:
            self._count(error.code or "")
            raise
        self.in_flight += 1
        return Lease(self, key_id, self._clock())

    def close(self) -> None:
        """Keep what keys used today."""
        self._budgets.save()

    def _leave(self, key_id: str, started: float, tokens: int, ttft_ms: float | None) -> None:
        self.in_flight -= 1
        self._budgets.spend(key_id, tokens)
        if self._limit is None or self._config is None or tokens == 0:
            return
        latency_ms = (self._clock() - started) * 1000
        if self._config.measure == "ttft" and ttft_ms is not None:
            latency_ms = ttft_ms
        self._limit.observe(latency_ms, self.in_flight)

    def _retry_after_s(self) -> int:
        bound_ms = self._config.p95_ms if self._config is not None else None
        return max(1, math.ceil((bound_ms or 1000) / 1000))

    def _count(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1
