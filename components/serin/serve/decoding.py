"""One thread that decodes for many requests at once, with a bounded queue before it."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from serin.core.generation import Decoder, Delta, Generator, Row, TextStream

logger = logging.getLogger(__name__)


class BusyError(Exception):
    """The queue is full."""


@dataclass(eq=False)
class Job:
    """One request: its row, and where its pieces go."""

    row: Row
    text: TextStream
    loop: asyncio.AbstractEventLoop
    pieces: "asyncio.Queue[Delta | Exception]" = field(default_factory=asyncio.Queue)

    async def deltas(self) -> AsyncIterator[Delta]:
        """The pieces as they come; leaving early frees the row at the next step."""
        try:
            while True:
                piece = await self.pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish_reason:
                    return
        finally:
            self.row.finish_reason = self.row.finish_reason or "cancelled"


class DecodingThread(threading.Thread):
    """Decodes until it is stopped.

    New requests join the running batch at its next step, so that a short answer does not wait for a long one.

    Args:
        generator: the model.
        max_rows: requests decoded together.
        max_waiting: requests that may wait for a row; further ones are refused.
    """

    def __init__(self, generator: Generator, max_rows: int, max_waiting: int) -> None:
        super().__init__(name="decoding", daemon=True)
        self.generator = generator
        self._max_rows, self._max_waiting = max_rows, max_waiting
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._changed = threading.Condition()
        self._stopped = False

    def submit(self, row: Row, stop: Sequence[str]) -> Job:
        """Queue a row; to be called from an event loop.

        Raises:
            BusyError: too many wait already.
        """
        job = Job(row, TextStream(self.generator, stop), asyncio.get_running_loop())
        with self._changed:
            if len(self._waiting) >= self._max_waiting:
                raise BusyError
            self._waiting.append(job)
            self._changed.notify()
        return job

    def stop(self) -> None:
        """End the thread after its current step."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def run(self) -> None:
        """The thread's loop."""
        decoder = Decoder(self.generator)
        while self._wait_for_work(decoder):
            try:
                self._step(decoder)
            except Exception as error:  # the requests of this batch fail; the next ones get a fresh decoder
                logger.exception("Decoding failed; %d requests are lost.", len(self._active))
                _deliver([(job, error) for job in self._active])
                self._active, decoder = [], Decoder(self.generator)

    def _wait_for_work(self, decoder: Decoder) -> bool:
        with self._changed:
            while not (self._stopped or self._waiting or self._active):
                self._changed.wait()
            while self._waiting and len(self._active) < self._max_rows:
                self._active.append(self._waiting.popleft())
        return not self._stopped

    def _step(self, decoder: Decoder) -> None:
        known = set(map(id, decoder.rows))
        decoder.step()
        decoder.join([job.row for job in self._active if id(job.row) not in known])
        deltas = [(job, job.text.advance(job.row)) for job in self._active]
        self._active = [job for job, delta in deltas if not delta.finish_reason]
        _deliver([(job, delta) for job, delta in deltas if delta.text or delta.finish_reason])


def _deliver(pieces: Sequence[tuple[Job, Delta | Exception]]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, Delta | Exception]]] = {}
    for job, piece in pieces:
        by_loop.setdefault(job.loop, []).append((job, piece))
    for loop, mine in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_putter(mine))


def _putter(pieces: Sequence[tuple[Job, Delta | Exception]]) -> Callable[[], None]:
    def put() -> None:
        for job, piece in pieces:
            job.pieces.put_nowait(piece)

    return put
