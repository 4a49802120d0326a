"""Decoding for many requests at once, on the event loop of the engine, with a bounded queue before it.

Steps that are short run on the loop itself: handing them to a thread and their tokens back would cost as much as the
step.  Longer ones run in a thread, so that the engine goes on answering.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from serin.core.generation import Decoder, Delta, Generator, Row, TextStream

logger = logging.getLogger(__name__)

INLINE_S = 0.004
"""Steps that are expected to take longer run in a thread."""
GROWTH = 1.05
"""How fast what is expected of a step grows from one to the next."""


class BusyError(Exception):
    """The queue is full."""


class Job:
    """One request: its rows (one for each choice), and the pieces of its answers that were not taken yet."""

    def __init__(self, rows: Sequence[Row], texts: Sequence[TextStream]) -> None:
        self.rows = rows
        self._texts = texts
        self._open = list(range(len(rows)))
        self._pieces: list[tuple[int, Delta]] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def finished(self) -> bool:
        """Whether every row's last piece was made."""
        return not self._open or self._error is not None

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it any more, or nothing is left to do."""
        return all(row.finish_reason is not None for row in self.rows)

    async def take(self) -> list[tuple[int, Delta]]:
        """The pieces since the last call, at least one, each with its choice's number; none once all were taken.

        Raises:
            Exception: decoding failed.
        """
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self.finished:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        pieces, self._pieces = self._pieces, []
        return pieces

    def cancel(self) -> None:
        """End what goes on; its rows are free at the next step."""
        for row in self.rows:
            row.finish_reason = row.finish_reason or "cancelled"
        self._open = []
        self._wake()

    def advance(self) -> None:
        """Make the pieces of what was decoded since the last call."""
        made = False
        for number in tuple(self._open):
            row = self.rows[number]
            if row.error is not None:
                self.fail(row.error)
                return
            delta = self._texts[number].advance(row)
            if delta.finish_reason:
                self._open.remove(number)
            if delta.text or delta.finish_reason:
                self._pieces.append((number, delta))
                made = True
        if made:
            self._wake()

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        self._error = error
        self.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Scheduler:
    """Decodes for jobs; ``run`` is its loop.

    New jobs join the running batch at its next step, so that a short answer does not wait for a long one.

    Args:
        generator: the model.
        max_rows: answers decoded together.
        max_waiting: answers that may wait for a row; further ones are refused.
        prefix_cache_bytes: kept of prompts that were run.
    """

    def __init__(self, generator: Generator, max_rows: int, max_waiting: int, prefix_cache_bytes: int = 0) -> None:
        self.generator = generator
        self.max_rows, self._max_waiting = max_rows, max_waiting
        self._prefix_cache_bytes = prefix_cache_bytes
        self._decoder = self._new_decoder()
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._changed = asyncio.Event()
        self._step_s = self._token_s = 0.0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="decoding")

    @property
    def load(self) -> tuple[int, int]:
        """How many answers are decoded, and how many wait."""
        return sum(len(job.rows) for job in self._active), sum(len(job.rows) for job in self._waiting)

    def submit(self, rows: Sequence[Row], stop: Sequence[str]) -> Job:
        """Queue the rows of one request.

        Raises:
            BusyError: too many wait already.
        """
        self._waiting = deque(job for job in self._waiting if not job.cancelled)
        active, waiting = self.load
        begins_now = not waiting and active + len(rows) <= self.max_rows
        if not begins_now and waiting + len(rows) > self._max_waiting:
            raise BusyError
        job = Job(rows, [TextStream(self.generator, stop) for _ in rows])
        self._waiting.append(job)
        self._changed.set()
        return job

    async def run(self) -> None:
        """Decode until cancelled."""
        try:
            while True:
                self._admit()
                if not self._active:
                    self._changed.clear()
                    await self._changed.wait()
                    continue
                try:
                    await self._step()
                except Exception as error:  # the requests of this batch fail; the next ones get a fresh decoder
                    logger.exception("Decoding failed; %d requests are lost.", len(self._active))
                    for job in self._active:
                        job.fail(error)
                    self._decoder = self._new_decoder()
                for job in self._active:
                    job.advance()
                self._active = [job for job in self._active if not job.finished]
                await asyncio.sleep(0)  # what was decoded is sent, and new requests are read
        finally:
            self._pool.shutdown(wait=False)
            for job in (*self._active, *self._waiting):
                job.fail(ConnectionError("The engine is ending."))

    def _admit(self) -> None:
        room = self.max_rows - sum(len(job.rows) for job in self._active)
        while self._waiting and len(self._waiting[0].rows) <= room:
            job = self._waiting.popleft()
            if job.cancelled:
                continue
            room -= len(job.rows)
            self._active.append(job)
            self._decoder.join(job.rows)

    async def _step(self) -> None:
        tokens = self._decoder.prompt_tokens
        expected = tokens * self._token_s if tokens else self._step_s
        started = time.perf_counter()
        if expected < INLINE_S:
            self._decoder.step()
        else:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._decoder.step)
        took = time.perf_counter() - started
        if tokens:
            self._token_s = _expected(self._token_s, took / tokens)
        else:
            self._step_s = _expected(self._step_s, took)

    def _new_decoder(self) -> Decoder:
        return Decoder(self.generator, self._prefix_cache_bytes)


def _expected(before: float, took: float) -> float:
    """What to expect after another measurement: steps are seldom faster than they can be, often held up by others."""
    return min(took, before * GROWTH) if before else took
