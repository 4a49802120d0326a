"""Where a rollout's traffic comes from: held-out conversations that it sends itself, or users who come anyway."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

from serin.core.gateway_client import GatewayClient
from serin.core.kubernetes import Clock
from serin.core.records import Conversation
from serin.deploy import traffic
from serin.deploy.config import DeployConfig

SLICE_S = 2.0
"""A wait is cut into pieces of so long, between which commands are looked for."""


class Source(Protocol):
    """What happens between two looks."""

    def round(self, *, golden: int = 0) -> list[traffic.Outcome]:
        """Let some traffic pass; what came back of requests that the rollout sent itself.

        Args:
            golden: send this many held-out questions, each a session of its own, instead of a usual round.
        """

    def wait(self, seconds: float) -> None:
        """Let time pass; ends early when somebody asked for something."""


class Replayed:
    """Held-out conversations, sent as users would send them.

    Args:
        gateway: where to, and whose events are written before a round ends.
        questions: the conversations; shuffled by the settings' seed.
        config: sessions a round, concurrency, time limit.
        clock: for waits.
    """

    def __init__(
        self, gateway: GatewayClient, questions: Sequence[Conversation], config: DeployConfig, clock: Clock
    ) -> None:
        self._gateway, self._config, self._clock = gateway, config, clock
        self._sessions = traffic.sessions(questions, config.seed)
        self._golden = traffic.sessions(questions, config.seed)

    def round(self, *, golden: int = 0) -> list[traffic.Outcome]:
        source = self._golden if golden else self._sessions
        outcomes = self._send(list(itertools.islice(source, golden or self._config.sessions_per_look)), bool(golden))
        self._gateway.flush()
        return outcomes

    def wait(self, seconds: float) -> None:
        self._clock.sleep(min(seconds, SLICE_S))

    def _send(self, batch: list[list[str]], golden: bool) -> list[traffic.Outcome]:
        return asyncio.run(
            traffic.replay(
                self._gateway.url,
                [turns[-1:] for turns in batch] if golden else batch,
                token=self._gateway.admin_token,
                concurrency=self._config.concurrency,
                timeout_s=self._config.request_timeout_s,
            )
        )


class Users:
    """Traffic that comes by itself: a round is a wait.

    Args:
        config: how long a round is.
        clock: for waits.
        asked: whether somebody asked for something since the last call, so that a wait ends early.
        golden: sends held-out questions for the shadow; None: only users' requests are mirrored.
    """

    def __init__(
        self, config: DeployConfig, clock: Clock, asked: Callable[[], bool], golden: Replayed | None = None
    ) -> None:
        self._config, self._clock, self._asked, self._golden = config, clock, asked, golden

    def round(self, *, golden: int = 0) -> list[traffic.Outcome]:
        if golden and self._golden is not None:
            return self._golden.round(golden=golden)
        self.wait(self._config.look_interval_s)
        return []

    def wait(self, seconds: float) -> None:
        until = self._clock.now() + seconds
        while (left := until - self._clock.now()) > 0:
            self._clock.sleep(min(left, SLICE_S))
            if self._asked():
                return
