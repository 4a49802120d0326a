"""What a key may use and what an answer costs: requests per minute, tokens per day, and a price list."""

import json
import logging
import math
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import Field

from serin.core.config import Section
from serin.core.events import EndpointEvent
from serin.serve.errors import RequestError

logger = logging.getLogger(__name__)

SAVE_INTERVAL_S = 10.0


class KeyLimits(Section):
    """What one key may use; None: as much as it likes."""

    requests_per_minute: float | None = Field(default=None, gt=0)
    """Mean rate; a token bucket, so that a key that was quiet may ask ``burst_requests`` at once."""
    burst_requests: int = Field(default=10, ge=1)
    """Size of the bucket."""
    tokens_per_day: int | None = Field(default=None, ge=1)
    """Prompt and completion tokens between one midnight UTC and the next."""


UNLIMITED = KeyLimits()


class Prices(Section):
    """What an answer costs, in a currency of your choice."""

    prompt_per_1k_tokens: float = Field(default=0.0, ge=0)
    """For what is read."""
    completion_per_1k_tokens: float = Field(default=0.0, ge=0)
    """For what is written."""
    per_second: float = Field(default=0.0, ge=0)
    """For the time of the request, as for a machine that is paid by the hour."""

    def cost(self, event: EndpointEvent) -> float | None:
        """The price of a request; None without a price list."""
        if not (self.prompt_per_1k_tokens or self.completion_per_1k_tokens or self.per_second):
            return None
        tokens = (
            event.prompt_tokens * self.prompt_per_1k_tokens + event.completion_tokens * self.completion_per_1k_tokens
        )
        return tokens / 1000 + event.latency_ms / 1000 * self.per_second


class Budgets:
    """Counts what keys use, and refuses what is beyond their limits; for one thread, the event loop's.

    Args:
        limits_of: a key's limits by its id ('' for callers without one).
        state_file: where the day's tokens are kept over restarts; None: nowhere.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        limits_of: Callable[[str], KeyLimits] = lambda key_id: UNLIMITED,
        state_file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._limits_of, self._file, self._clock = limits_of, state_file, clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._day, self._tokens = self._load()
        self._saved_at = clock()
        self._saving = threading.Lock()

    def take(self, key_id: str) -> None:
        """Count a request of a key.

        Raises:
            RequestError: 429, the key asks too often or has used up its day.
        """
        limits = self._limits_of(key_id)
        if limits.tokens_per_day is not None and self.used_today(key_id) >= limits.tokens_per_day:
            raise RequestError(
                429, f"The key's {limits.tokens_per_day} tokens of today are used up: ask again tomorrow (UTC).",
                code="insufficient_quota", retry_after_s=self._until_midnight_s(),
            )  # fmt: skip
        if limits.requests_per_minute is not None:
            self._take_from_bucket(key_id, limits.requests_per_minute / 60, limits.burst_requests)

    def spend(self, key_id: str, tokens: int) -> None:
        """Count the tokens of a request that is over."""
        if tokens and self._limits_of(key_id).tokens_per_day is not None:
            self._tokens[key_id] = self.used_today(key_id) + tokens
            if self._file is not None and self._clock() - self._saved_at > SAVE_INTERVAL_S:
                self._saved_at = self._clock()
                threading.Thread(target=self.save, name="budgets").start()

    def used_today(self, key_id: str) -> int:
        """Tokens that a key used since midnight UTC."""
        if self._today() != self._day:
            self._day, self._tokens = self._today(), {}
        return self._tokens.get(key_id, 0)

    def save(self) -> None:
        """Write the day's counts, in one atomic step; a disk that cannot be written is said once and goes on."""
        if self._file is None:
            return
        with self._saving:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                aside = self._file.with_suffix(".partial")
                aside.write_text(json.dumps({"day": self._day, "tokens": dict(self._tokens)}), encoding="utf-8")
                aside.replace(self._file)
            except OSError as error:
                logger.warning("What keys used today cannot be saved (%s); a restart would forget it.", error)

    def _take_from_bucket(self, key_id: str, per_second: float, burst: int) -> None:
        now = self._clock()
        level, since = self._buckets.get(key_id, (float(burst), now))
        level = min(float(burst), level + max(0.0, now - since) * per_second)
        self._buckets[key_id] = (max(0.0, level - 1) if level >= 1 else level, now)
        if level < 1:
            raise RequestError(
                429, "The key asks too often: wait, then ask again.", code="rate_limit_exceeded",
                retry_after_s=max(1, math.ceil((1 - level) / per_second)),
            )  # fmt: skip

    def _load(self) -> tuple[str, dict[str, int]]:
        if self._file is not None and self._file.exists():
            try:
                kept = json.loads(self._file.read_text(encoding="utf-8"))
                return str(kept["day"]), {str(key): int(count) for key, count in kept["tokens"].items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                logger.warning("%s cannot be read (%s): today's counts start at nothing.", self._file, error)
        return self._today(), {}

    def _today(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).date().isoformat()

    def _until_midnight_s(self) -> int:
        now = datetime.fromtimestamp(self._clock(), UTC)
        midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return max(1, math.ceil((midnight - now).total_seconds()))
