"""Endpoint events, off the request's path: a thread scores, redacts and spools them, another writes them in batches.

With a spool on disk an event outlasts the store being down, and the gateway being killed half a second after the
request; the store gets each batch under the spool's name for it, so that none comes twice.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from serin.core.events import SHADOW, EndpointEvent, Feedback, write_events, write_feedback, write_shadows
from serin.core.policy import default_policy
from serin.core.storage import Storage
from serin.core.text import is_refusal, support_score
from serin.serve.budgets import Prices
from serin.serve.guardrails import Guardrails
from serin.serve.spool import RefusedError, Segment, Shipper, Spool

logger = logging.getLogger(__name__)

BATCH_EVENTS = 200
INTERVAL_S = 5.0
SPOOL_INTERVAL_S = 0.5
"""Longest time that an event is in memory alone."""
MAX_BUFFERED = 20_000
"""Observations that wait to be scored; beyond it the oldest are lost."""
EVENTS, FEEDBACK, SHADOWS = "events", "feedback", SHADOW
T = TypeVar("T", EndpointEvent, Feedback)


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
    parent_span_id: str = ""
    """The caller's span, 16 hex digits; empty: the trace begins with this request."""
    also_kept_by: Guardrails | None = None
    """Whose policy limits what is kept of the texts, besides ``guardrails``: a champion's, for its shadow."""


Observer = Callable[[Observation, EndpointEvent], None]
"""Told of each request off its path, with the event as it is stored."""


class Recorder:
    """Buffers observations and writes them every few seconds, every few hundred, and at the end.

    Args:
        storage: where the events go.
        endpoint: whose they are.
        batch_events: a batch is written when it holds this many.
        interval_s: or when this much time has passed.
        lost: told how many events were given up.
        spool: where they wait; None: in memory.
        prices: what requests cost; None: nothing is known of it.
        observers: told of each request in the recorder's thread.
    """

    def __init__(
        self,
        storage: Storage,
        endpoint: str,
        *,
        batch_events: int = BATCH_EVENTS,
        interval_s: float = INTERVAL_S,
        lost: Callable[[int], None] = lambda count: None,
        spool: Spool | None = None,
        prices: Prices | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._storage, self._endpoint = storage, endpoint
        self._batch_events, self._interval_s, self._lost = batch_events, interval_s, lost
        self._spool, self._prices, self._observers = spool or Spool(), prices or Prices(), observers
        self._buffer: deque[Observation | Feedback] = deque()
        self._guardrails = Guardrails(default_policy())
        self._in_segment = 0
        self._wake = threading.Condition()
        self._staging = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._shipper = Shipper(
            self._spool, self._send, name="endpoint events", retry_s=interval_s, lost=lambda kind, count: lost(count)
        )

    def start(self) -> None:
        """Start the threads; what an earlier process left is written first."""
        self._thread.start()
        self._shipper.start()
        self._shipper.wake()

    def add(self, observation: Observation) -> None:
        """Take an observation; returns at once."""
        self._take(observation)

    def add_feedback(self, feedback: Feedback) -> None:
        """Take what a user says about an answer; returns at once."""
        self._take(feedback)

    def flush(self) -> int:
        """Write everything that was added before; returns how many events.

        Raises:
            SerinError: the store cannot be written; the events are kept for the next try.
        """
        self._stage(close=True)
        return self._shipper.ship()

    def close(self) -> None:
        """Write the rest, or leave it spooled, and end the threads."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._stage(close=True)
        self._shipper.close()
        self._spool.close()

    def _take(self, item: Observation | Feedback) -> None:
        with self._wake:
            self._buffer.append(item)
            if len(self._buffer) > MAX_BUFFERED:
                self._buffer.popleft()
                self._lost(1)
            if len(self._buffer) >= self._batch_events:
                self._wake.notify()

    def _run(self) -> None:
        wait_s = min(self._interval_s, SPOOL_INTERVAL_S)
        waited = 0.0
        while not self._stopped:
            with self._wake:
                full = self._wake.wait_for(lambda: self._stopped or len(self._buffer) >= self._batch_events, wait_s)
            waited = waited + wait_s
            if close := full or waited >= self._interval_s:
                waited = 0.0
            self._stage(close=close)

    def _stage(self, *, close: bool) -> None:
        """Score and spool what was added; with ``close``, or at a full batch, let it be shipped."""
        with self._staging:
            with self._wake:
                taken = list(self._buffer)
                self._buffer.clear()
            events = [self._noted(item) for item in taken if isinstance(item, Observation)]
            opinions = [self._redacted(item) for item in taken if isinstance(item, Feedback)]
            for start in range(0, len(events), self._batch_events):
                batch = events[start : start + self._batch_events]
                shadows = [event for event in batch if event.track == SHADOW]
                self._spool.append(EVENTS, [e.model_dump_json().encode() for e in batch if e.track != SHADOW])
                self._spool.append(SHADOWS, [event.model_dump_json().encode() for event in shadows])
                self._in_segment += len(batch)
                if self._in_segment >= self._batch_events:
                    self._roll()
            self._spool.append(FEEDBACK, [item.model_dump_json().encode() for item in opinions])
            self._in_segment += len(opinions)
            if close and self._in_segment:
                self._roll()

    def _roll(self) -> None:
        self._spool.roll()
        self._in_segment = 0
        self._shipper.wake()

    def _noted(self, observation: Observation) -> EndpointEvent:
        if observation.event.track != SHADOW:
            self._guardrails = observation.guardrails
        try:
            event = scored(observation, self._prices)
        except Exception:  # a text that a scorer cannot take must not take the others along
            logger.exception("An endpoint event is stored without its texts and scores.")
            event = observation.event.model_copy(update={"question": "", "answer": ""})
        for observer in self._observers:
            try:
                observer(observation, event)
            except Exception:  # nor what only watches
                logger.exception("An observer of endpoint events failed.")
        return event

    def _redacted(self, feedback: Feedback) -> Feedback:
        """By the policy of the requests seen last: feedback itself names no release."""
        time = feedback.time or datetime.now(UTC).isoformat(timespec="milliseconds")
        return feedback.model_copy(update={"comment": self._guardrails.kept(feedback.comment), "time": time})

    def _send(self, segment: Segment, records: list[bytes]) -> None:
        write = {
            EVENTS: self._write_events,
            FEEDBACK: self._write_feedback,
            SHADOWS: self._write_shadows,
        }.get(segment.kind)
        if write is None:
            raise RefusedError(f"{segment.kind!r} is not a kind of record that this version knows.")
        write(segment.name, records)

    def _write_events(self, name: str, records: list[bytes]) -> None:
        write_events(self._storage, self._endpoint, _loaded(EndpointEvent, records), name=name)

    def _write_shadows(self, name: str, records: list[bytes]) -> None:
        write_shadows(self._storage, self._endpoint, _loaded(EndpointEvent, records), name=name)

    def _write_feedback(self, name: str, records: list[bytes]) -> None:
        write_feedback(self._storage, self._endpoint, _loaded(Feedback, records), name=name)


def scored(observation: Observation, prices: Prices | None = None) -> EndpointEvent:
    """The event with its scores and its price, and with its texts as the policy (or policies) let them be stored."""
    event = observation.event

    def kept(text: str) -> str:
        text = observation.guardrails.kept(text)
        return observation.also_kept_by.kept(text) if observation.also_kept_by else text

    passages, support = observation.passages, event.support_score
    if support is None and event.answer and passages:
        support = support_score(event.answer, passages)
    return event.model_copy(
        update={
            "support_score": support,
            "refused": is_refusal(event.answer),
            "question": kept(event.question),
            "answer": kept(event.answer),
            "cost": prices.cost(event) if prices else event.cost,
        }
    )


def _loaded(model: type[T], records: list[bytes]) -> list[T]:
    """Records of a spool, which an earlier version may have written."""
    try:
        return [model.model_validate_json(record) for record in records]
    except ValueError as error:
        raise RefusedError(f"they are not what this version writes ({error})") from error
