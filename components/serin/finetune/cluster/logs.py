"""The driver's log, line by line, from the pod that submitted it.

The end of a log stream says nothing about the job: the kubelet, a proxy or the API server may have cut it.  So the
stream is taken up again from the last line's time, and ends when the launcher, who knows the job's end, says so.
A submitter that lost Ray is started again as another pod, and begins with the driver's first line: those are left out.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from serin.core.kubernetes import FORBIDDEN, KubernetesApi, LostError, RefusedError

logger = logging.getLogger(__name__)

QUIET_S = 120.0
"""A stream without a line for this long is opened anew."""
DRAIN_S = 10.0
"""How long the last lines are waited for when the job has ended."""


@dataclass
class _Position:
    """How far a pod's log was read."""

    time: str = ""
    """Of the last line, as the kubelet wrote it."""
    num_at_time: int = 0
    """Lines of that very time that were passed on."""
    whole: bool = False
    """Whether the pod had ended before its log was read to the end."""
    repeats: Counter[int] = field(default_factory=Counter)
    """Lines, by hash, that pods before this one gave and that it will give again."""


class LogFollower:
    """Passes the lines of all pods of a selector on, each once, in a thread.

    Args:
        api: connections of its own.
        namespace: of the pods.
        selector: by label.
        take: called with each line.
        poll_s: pause between looks for pods and before a cut stream is taken up.
    """

    def __init__(
        self, api: KubernetesApi, namespace: str, selector: str, take: Callable[[str], None], poll_s: float
    ) -> None:
        self._api, self._path, self._selector = api, f"/api/v1/namespaces/{namespace}/pods", selector
        self._take, self._poll_s = take, poll_s
        self._positions: dict[str, _Position] = {}
        self._given: Counter[int] = Counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="logs", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if error is None:
            self._thread.join(DRAIN_S)

    def _follow(self) -> None:
        while True:
            last = self._ended.is_set()  # before the look: what was written until then is read
            try:
                self._look(follow=not last)
            except LostError as error:
                logger.debug("The log is taken up again: %s", error)
            except RefusedError as error:
                if error.status == FORBIDDEN:
                    logger.warning("The log cannot be read (%s); the job goes on.", error.message)
                    return
                logger.debug("The log is not there yet: %s", error)
            except Exception:  # the log is a courtesy: the job's outcome is what counts
                logger.exception("The log is no longer followed; the job goes on.")
                return
            if last:
                return
            self._ended.wait(self._poll_s)

    def _look(self, *, follow: bool) -> None:
        for pod in self._api.get(self._path, labelSelector=self._selector)["items"]:
            position = self._positions.setdefault(pod["metadata"]["uid"], _Position(repeats=self._given.copy()))
            phase = pod.get("status", {}).get("phase")
            if position.whole or phase in (None, "Pending"):
                continue
            self._read(pod, position, follow=follow)
            position.whole = phase in ("Succeeded", "Failed")

    def _read(self, pod: dict[str, Any], position: _Position, *, follow: bool) -> None:
        query: dict[str, str] = {"timestamps": "true"}
        query |= {"follow": "true"} if follow else {}
        query |= {"sinceTime": position.time} if position.time else {}
        again, seen = position.num_at_time, 0
        start = position.time
        for line in self._api.lines(f"{self._path}/{pod['metadata']['name']}/log", read_s=QUIET_S, **query):
            time, _, text = line.partition(" ")
            if time < start:
                continue
            if time == start:
                seen += 1
                if seen <= again:
                    continue
            position.num_at_time = position.num_at_time + 1 if time == position.time else 1
            position.time = time
            self._give(text, position)

    def _give(self, text: str, position: _Position) -> None:
        line = hash(text)
        if position.repeats[line] > 0:
            position.repeats[line] -= 1
            return
        self._given[line] += 1
        self._take(text)
