"""Endpoint events, off the request's path: a thread scores, redacts and writes them in batches."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from serin.core.errors import SerinError
from serin.core.events import EndpointEvent, write_events
from serin.core.storage import Storage
from serin.core.text import is_refusal, support_score
from serin.serve.guardrails import Guardrails

logger = logging.getLogger(__name__)

BATCH_EVENTS = 200
INTERVAL_S = 5.0
MAX_BUFFERED = 20_000
"""Events kept while the store cannot be written; beyond it the oldest are lost."""


@dataclass(frozen=True)
class StageTiming:
    """One stage of a request: 'rails.input', 'retrieval', 'rails.retrieval', 'engine', 'rails.output'."""

    name: str
    start_ns: int
    """``time.time_ns`` when it began."""
    end_ns: int
    attributes: dict[str, str | int | float | bool | tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """A request's event before it is scored and redacted."""

    event: EndpointEvent
    """With question and answer in full: they never leave memory like that unless the policy keeps full text."""
    passages: tuple[str, ...]
    guardrails: Guardrails
    stages: tuple[StageTiming, ...] = ()
    """What the time went to, in order of their ends."""


class Recorder:
    """Buffers observations and writes them every few seconds, every few hundred, and at the end.

    Args:
        storage: where the events go.
        endpoint: whose they are.
        batch_events: a batch is written when it holds this many.
        interval_s: or when this much time has passed.
        lost: told how many events were given up.
    """

    def __init__(
        self,
        storage: Storage,
        endpoint: str,
        *,
        batch_events: int = BATCH_EVENTS,
        interval_s: float = INTERVAL_S,
        lost: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._storage, self._endpoint = storage, endpoint
        self._batch_events, self._interval_s, self._lost = batch_events, interval_s, lost
        self._buffer: deque[Observation] = deque()
        self._unwritten: list[EndpointEvent] = []
        self._wake = threading.Condition()
        self._writing = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Start the writing thread."""
        self._thread.start()

    def add(self, observation: Observation) -> None:
        """Take an observation; returns at once."""
        with self._wake:
            self._buffer.append(observation)
            if len(self._buffer) >= self._batch_events:
                self._wake.notify()

    def flush(self) -> int:
        """Write everything that was added before; returns how many events.

        Raises:
            SerinError: the store cannot be written; the events are kept for the next try.
        """
        with self._writing:
            with self._wake:
                taken = list(self._buffer)
                self._buffer.clear()
            self._unwritten += [scored(observation) for observation in taken]
            self._drop_oldest()
            write_events(self._storage, self._endpoint, self._unwritten)
            written, self._unwritten = len(self._unwritten), []
            return written

    def close(self) -> None:
        """Write the rest and end the thread."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._try_flush()

    def _run(self) -> None:
        while not self._stopped:
            with self._wake:
                self._wake.wait_for(lambda: self._stopped or len(self._buffer) >= self._batch_events, self._interval_s)
            self._try_flush()

    def _try_flush(self) -> None:
        try:
            self.flush()
        except (SerinError, OSError) as error:
            logger.error("Endpoint events could not be written and are kept: %s", error)
        except Exception:  # events must never take the endpoint down
            logger.exception("Endpoint events could not be written and are kept.")

    def _drop_oldest(self) -> None:
        if (surplus := len(self._unwritten) - MAX_BUFFERED) > 0:
            del self._unwritten[:surplus]
            self._lost(surplus)
            logger.error("%d endpoint events were lost: the store could not be written for too long.", surplus)


def scored(observation: Observation) -> EndpointEvent:
    """The event with its scores, and with its texts as the policy lets them be stored."""
    event, guardrails = observation.event, observation.guardrails
    passages = observation.passages
    return event.model_copy(
        update={
            "support_score": support_score(event.answer, passages) if event.answer and passages else None,
            "refused": is_refusal(event.answer),
            "question": guardrails.kept(event.question),
            "answer": guardrails.kept(event.answer),
        }
    )
