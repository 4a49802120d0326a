"""Endpoint events: one record per request, in Parquet batches, read by the judge, the monitors and the next dataset.

Batches are ``endpoints/<endpoint>/events/<UTC date>/<time>-<random>.parquet``, each written whole in one step; a batch
that is written again under its name replaces itself.  What users say about answers comes later than the answers, so
it has batches of its own (``feedback`` instead of ``events``) and is joined when events are read.  What a candidate
answers in a champion's shadow, unseen by users, is kept apart from their traffic (``shadow`` instead of ``events``).
"""

import io
import re
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict

from serin.core.errors import InputError
from serin.core.storage import Storage

CLIENT_GONE = 499
SHADOW = "shadow"
"""Track of what no user sees."""


class EndpointEvent(BaseModel):
    """What happened to one request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trace_id: str
    """32 hex digits, as in the response's ``x-serin-trace-id``."""
    time: str
    """UTC, ISO 8601: when the request came in."""
    session_id: str
    endpoint: str
    release_id: str
    track: str
    """champion, candidate or shadow."""
    status: int
    """HTTP status of the answer."""
    error: str = ""
    question: str = ""
    """Redacted by the guardrail policy, or empty where the policy keeps no text."""
    answer: str = ""
    language: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_ms: float | None = None
    """Time to the first token, milliseconds."""
    latency_ms: float = 0.0
    finish_reason: str = ""
    streamed: bool = False
    guardrail_actions: tuple[str, ...] = ()
    """'stage:rail:action', such as 'input:pii:mask'."""
    retrieval_ids: tuple[str, ...] = ()
    retrieval_scores: tuple[float, ...] = ()
    support_score: float | None = None
    """0 to 1: how far the answer rests on the retrieved passages."""
    refused: bool = False
    feedback: int | None = None
    """-1, 0 or 1: the latest rating that a user gave."""
    answer_id: str = ""
    """The id that the answer carries; several requests of one trace have one each."""
    cost: float | None = None
    """By the gateway's price list, in its currency."""
    key_id: str = ""
    """Id of the API key that asked; never the key."""
    format_valid: bool | None = None
    """Whether the answer keeps to the ``response_format`` that was asked for; None where none was."""
    rails_ms: float | None = None
    """Time spent in guardrails, milliseconds."""
    backend: str = ""
    """What generated the answer, such as 'embedded' or 'openai'."""
    feedback_comment: str = ""
    """Redacted like the texts."""
    shadow_of: str = ""
    """In a shadow's event: ``answer_id`` of the champion's event that answers the same messages."""


class Feedback(BaseModel):
    """What a user says about an answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer_id: str = ""
    """The answer's id; empty: every answer of the trace is meant."""
    trace_id: str = ""
    """32 hex digits; empty: the answer's id says it."""
    rating: int
    """-1, 0 or 1."""
    comment: str = ""
    time: str = ""
    """UTC, ISO 8601; of several ratings the latest counts."""
    session_id: str = ""


def batch_name(now: datetime | None = None) -> str:
    """A new name for a batch: its UTC date, time and a random part."""
    now = now or datetime.now(UTC)
    return f"{now:%Y-%m-%d}/{now:%H%M%S%f}-{uuid.uuid4().hex[:8]}"


def write_events(storage: Storage, endpoint: str, events: Iterable[EndpointEvent], *, name: str = "") -> str | None:
    """Write a batch of users' requests in one step; returns its key, or None for an empty batch.

    Args:
        storage: the store.
        endpoint: endpoint name.
        events: the batch; none of a shadow.
        name: what ``batch_name`` gave; a batch that may have been written before replaces itself. Empty: a new one.
    """
    rows = [event.model_dump(mode="json") for event in events]
    assert all(row["track"] != SHADOW for row in rows), "a shadow's events are no traffic: write_shadows"
    return _write(storage, endpoint, "events", rows, name)


def write_shadows(storage: Storage, endpoint: str, events: Iterable[EndpointEvent], *, name: str = "") -> str | None:
    """Write a batch of shadow events, apart from users' traffic; arguments as for ``write_events``."""
    rows = [event.model_dump(mode="json") for event in events]
    assert all(row["track"] == SHADOW for row in rows), "users' traffic is no shadow's: write_events"
    return _write(storage, endpoint, SHADOW, rows, name)


def write_feedback(storage: Storage, endpoint: str, items: Iterable[Feedback], *, name: str = "") -> str | None:
    """Write a batch of feedback in one step; returns its key, or None for an empty batch."""
    return _write(storage, endpoint, "feedback", [item.model_dump(mode="json") for item in items], name)


def read_feedback(storage: Storage, endpoint: str, *, since: str | None = None) -> list[Feedback]:
    """Feedback of an endpoint in time order.

    Args:
        storage: the store.
        endpoint: endpoint name.
        since: UTC ISO 8601; batches of earlier days are not looked at.

    Raises:
        InputError: a batch is not readable Parquet.
    """
    keys = _batches(storage, f"endpoints/{endpoint}/feedback/", since)
    items = [Feedback.model_validate(row) for key in keys for row in _rows(storage, key)]
    return sorted(items, key=lambda item: item.time)


def read_events(
    storage: Storage,
    endpoint: str,
    *,
    release_id: str | None = None,
    trace_id: str | None = None,
    since: str | None = None,
) -> list[EndpointEvent]:
    """Users' requests of an endpoint in time order, filtered, each with the latest rating that its answer got.

    What was answered in the shadow is not among them: ``read_shadows``.

    Args:
        storage: the store.
        endpoint: endpoint name.
        release_id: only this release's.
        trace_id: only this request's.
        since: UTC ISO 8601; only later or equal ones.

    Raises:
        InputError: a batch is not readable Parquet.
    """
    events = _read(storage, endpoint, "events", release_id, trace_id, since)
    events = with_feedback(events, read_feedback(storage, endpoint, since=since) if events else [])
    return sorted(events, key=lambda event: event.time)


def read_shadows(
    storage: Storage, endpoint: str, *, release_id: str | None = None, since: str | None = None
) -> list[EndpointEvent]:
    """What candidates answered in the champion's shadow, in time order; arguments as for ``read_events``.

    Raises:
        InputError: a batch is not readable Parquet.
    """
    return sorted(_read(storage, endpoint, SHADOW, release_id, None, since), key=lambda event: event.time)


def shadow_pairs(
    events: Iterable[EndpointEvent], shadows: Iterable[EndpointEvent]
) -> list[tuple[EndpointEvent, EndpointEvent]]:
    """Each shadow with the champion's event that it stands beside, as (champion, shadow), in the shadows' order.

    A shadow whose champion's event is not among ``events`` (not written yet, or out of their window) is left out.
    """
    champions = {event.answer_id: event for event in events if event.answer_id and event.track == "champion"}
    return [(champions[one.shadow_of], one) for one in shadows if one.shadow_of in champions]


class EventLog:
    """An endpoint's events since a time, read again and again: each batch once, each event once.

    Args:
        storage: the store.
        endpoint: endpoint name.
        since: UTC ISO 8601; earlier events are left out.
    """

    def __init__(self, storage: Storage, endpoint: str, since: str) -> None:
        self._storage, self._endpoint, self._since = storage, endpoint, since
        self._read: set[str] = set()
        self._events: dict[tuple[str, ...], EndpointEvent] = {}

    def events(self) -> list[EndpointEvent]:
        """All of them by now, shadows included, in time order, each with its latest rating; each counts once.

        Raises:
            InputError: a batch is not readable Parquet.
        """
        folders = [f"endpoints/{self._endpoint}/{kind}/" for kind in ("events", SHADOW)]
        for key in [key for folder in folders for key in _batches(self._storage, folder, self._since)]:
            if key in self._read:
                continue
            for row in _rows(self._storage, key):
                if row["time"] >= self._since:
                    event = EndpointEvent.model_validate(row)
                    self._events[event.trace_id, event.answer_id, event.track, event.release_id] = event
            self._read.add(key)
        events = list(self._events.values())
        if events:
            events = with_feedback(events, read_feedback(self._storage, self._endpoint, since=self._since))
        return sorted(events, key=lambda event: event.time)


def with_feedback(events: Sequence[EndpointEvent], items: Iterable[Feedback]) -> list[EndpointEvent]:
    """Events with the ratings of their answers; of several ratings the last one given counts.

    A rating names an answer, or a trace for all of its answers; a request that gave no answer has none.
    """
    latest: dict[str, Feedback] = {}
    for item in items:
        if name := _bare(item.answer_id) or item.trace_id:
            latest[name] = item
    return [_rated(event, latest) for event in events] if latest else list(events)


def _rated(event: EndpointEvent, latest: dict[str, Feedback]) -> EndpointEvent:
    if event.status >= 400 and event.status != CLIENT_GONE:
        return event
    found = [latest[name] for name in {_bare(event.answer_id), event.trace_id} if name in latest]
    if not found:
        return event
    item = max(found, key=lambda item: item.time)
    return event.model_copy(update={"feedback": item.rating, "feedback_comment": item.comment})


def _bare(answer_id: str) -> str:
    return re.sub(r"^(?:chatcmpl|cmpl)-", "", answer_id)


def _write(storage: Storage, endpoint: str, kind: str, rows: list[dict[str, Any]], name: str) -> str | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not rows:
        return None
    buffer = io.BytesIO()
    schema = _schema_of(Feedback) if kind == "feedback" else event_schema()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    key = f"endpoints/{endpoint}/{kind}/{name or batch_name()}.parquet"
    storage.write(key, buffer.getvalue())
    return key


def _read(
    storage: Storage, endpoint: str, kind: str, release_id: str | None, trace_id: str | None, since: str | None
) -> list[EndpointEvent]:
    events = []
    for key in _batches(storage, f"endpoints/{endpoint}/{kind}/", since):
        for row in _rows(storage, key):
            if release_id and row["release_id"] != release_id:
                continue
            if (trace_id and row["trace_id"] != trace_id) or (since and row["time"] < since):
                continue
            events.append(EndpointEvent.model_validate(row))
    return events


def _rows(storage: Storage, key: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    try:
        return list(pq.read_table(io.BytesIO(storage.read(key))).to_pylist())
    except ArrowInvalid as error:
        raise InputError(f"{key} is not readable Parquet: {error}") from error


def _batches(storage: Storage, prefix: str, since: str | None) -> list[str]:
    """Keys of the batches that may hold events since a time: only their days are listed, not an endpoint's history."""
    if not since:
        return storage.keys(prefix)
    first = date.fromisoformat(since[:10])
    days = (datetime.now(UTC).date() - first).days + 2  # a writer's clock may be ahead
    return [key for day in range(days) for key in storage.keys(f"{prefix}{first + timedelta(days=day)}/")]


def event_schema() -> Any:
    """The Arrow schema of a batch."""
    return _schema_of(EndpointEvent)


def _schema_of(model: type[BaseModel]) -> Any:
    import pyarrow as pa

    types: dict[Any, Any] = {
        str: pa.string(),
        int: pa.int64(),
        float: pa.float64(),
        bool: pa.bool_(),
        int | None: pa.int64(),
        float | None: pa.float64(),
        bool | None: pa.bool_(),
        tuple[str, ...]: pa.list_(pa.string()),
        tuple[float, ...]: pa.list_(pa.float64()),
    }
    return pa.schema([(name, types[info.annotation]) for name, info in model.model_fields.items()])
