"""What the two kinds of jobs in a cluster have in common."""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from serin.core.kubernetes import LostError, RefusedError
from serin.finetune.cluster.request import Attempt, RequestBook
from serin.finetune.cluster.verdict import Verdict

logger = logging.getLogger(__name__)

Tell = Callable[[str], None]
Take = Callable[[str], None]


class Jobs(Protocol):
    """Runs one request as a job somewhere else."""

    def start(self, book: RequestBook) -> Attempt:
        """Adopt the request's job that still runs, or start one."""

    def follow(self, tell: Tell, take: Take) -> Verdict:
        """Pass its state and log on until it has ended."""

    def end(self) -> None:
        """Remove it, whatever its state; never raises."""

    def end_at_once(self) -> None:
        """The same in one request, for a signal handler; never raises."""


def hold_on(function: Callable[[], Any]) -> None:
    """Call something whose failure does not matter."""
    with suppress(RefusedError, LostError):
        function()
