"""Endpoint events: one record per request, in Parquet batches, read by the judge, the monitors and the next dataset.

Batches are ``endpoints/<endpoint>/events/<UTC date>/<time>-<random>.parquet``, each written whole in one step.
"""

import io
import uuid
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict

from serin.core.errors import InputError
from serin.core.storage import Storage


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
    """-1, 0 or 1."""


def write_events(storage: Storage, endpoint: str, events: Iterable[EndpointEvent]) -> str | None:
    """Write a batch in one step; returns its key, or None for an empty batch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [event.model_dump(mode="json") for event in events]
    if not rows:
        return None
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=event_schema()), buffer, compression="zstd")
    now = datetime.now(UTC)
    key = f"endpoints/{endpoint}/events/{now:%Y-%m-%d}/{now:%H%M%S%f}-{uuid.uuid4().hex[:8]}.parquet"
    storage.write(key, buffer.getvalue())
    return key


def read_events(
    storage: Storage,
    endpoint: str,
    *,
    release_id: str | None = None,
    trace_id: str | None = None,
    since: str | None = None,
) -> list[EndpointEvent]:
    """Events of an endpoint in time order, filtered.

    Args:
        storage: the store.
        endpoint: endpoint name.
        release_id: only this release's.
        trace_id: only this request's.
        since: UTC ISO 8601; only later or equal ones.

    Raises:
        InputError: a batch is not readable Parquet.
    """
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    events = []
    for key in _batches(storage, f"endpoints/{endpoint}/events/", since):
        try:
            rows = pq.read_table(io.BytesIO(storage.read(key))).to_pylist()
        except ArrowInvalid as error:
            raise InputError(f"{key} is not readable Parquet: {error}") from error
        for row in rows:
            if release_id and row["release_id"] != release_id:
                continue
            if (trace_id and row["trace_id"] != trace_id) or (since and row["time"] < since):
                continue
            events.append(EndpointEvent.model_validate(row))
    return sorted(events, key=lambda event: event.time)


def _batches(storage: Storage, prefix: str, since: str | None) -> list[str]:
    """Keys of the batches that may hold events since a time: only their days are listed, not an endpoint's history."""
    if not since:
        return storage.keys(prefix)
    first = date.fromisoformat(since[:10])
    days = (datetime.now(UTC).date() - first).days + 2  # a writer's clock may be ahead
    return [key for day in range(days) for key in storage.keys(f"{prefix}{first + timedelta(days=day)}/")]


def event_schema() -> Any:
    """The Arrow schema of a batch."""
    import pyarrow as pa

    types: dict[Any, Any] = {
        str: pa.string(),
        int: pa.int64(),
        float: pa.float64(),
        bool: pa.bool_(),
        int | None: pa.int64(),
        float | None: pa.float64(),
        tuple[str, ...]: pa.list_(pa.string()),
        tuple[float, ...]: pa.list_(pa.float64()),
    }
    return pa.schema([(name, types[info.annotation]) for name, info in EndpointEvent.model_fields.items()])
