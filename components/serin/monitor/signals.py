"""What the monitor sees: signals of a window of traffic, each against its reference."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from serin.core.events import EndpointEvent
from serin.core.records import Record
from serin.core.reference import Reference
from serin.core.statistics import Interval, mean_shift_test, wilson_interval
from serin.monitor.config import MonitorConfig

SERVER_ERROR = 500
OK = 200


class Shift(Record):
    """A mean in the reference and in the traffic."""

    reference: float
    current: float
    p_value: float
    """Of a change in the bad direction (permutation test over sessions)."""
    num_reference: int
    num_current: int

    @property
    def change(self) -> float:
        """Current minus reference."""
        return self.current - self.reference


class QuestionDrift(Record):
    """The traffic's questions against the dataset's."""

    novelty: float
    """Mean cosine distance from a question to the nearest reference question, 0 to 2."""
    novelty_limit: float
    """What 99 of 100 windows of held-out groups of the reference itself stay below."""
    mix_distance: float
    """Energy coefficient between the embeddings of both, 0 to 1: whether known topics come in other shares."""
    mix_limit: float
    """As for novelty."""
    unknown_word_share: float
    """Of the content words."""
    language_shift: float
    """Share of questions in other languages than the reference's shares say (total variation)."""
    median_words: tuple[float, float]
    """Reference, traffic."""
    num_reference: int
    num_current: int


class IndexState(Record):
    """How old the release's knowledge is."""

    age_days: float
    expired_share: float | None = None
    """Of the documents that carry an end date; none when no document does."""


class Signals(Record):
    """All signals of one look."""

    num_events: int
    num_sessions: int
    first_time: str = ""
    last_time: str = ""
    """UTC, ISO 8601: of the window's first and last request."""
    errors: Interval
    """Share of failed requests."""
    p95_latency_ms: float | None = None
    p95_ttft_ms: float | None = None
    support: Shift | None = None
    refusals: Shift | None = None
    retrieval: Shift | None = None
    questions: QuestionDrift | None = None
    index: IndexState | None = None
    drifted_before: int = 0
    """Looks in a row just before this one, at other traffic, in which the questions had drifted."""
    missing: dict[str, str] = Field(default_factory=dict)
    """Signal to the reason why it could not be computed."""

    def dump(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json")


def failed(event: EndpointEvent) -> bool:
    """Whether the endpoint failed a request; refused and abandoned requests (4xx) are not failures."""
    return event.status == 0 or event.status >= SERVER_ERROR


def service_signals(events: Sequence[EndpointEvent]) -> dict[str, Any]:
    """Counts, errors and latencies of a window."""
    answered = [event for event in events if event.status == OK]
    return {
        "num_events": len(events),
        "num_sessions": len({event.session_id for event in events}),
        "first_time": events[0].time if events else "",
        "last_time": events[-1].time if events else "",
        "errors": _errors(events),
        "p95_latency_ms": _p95([event.latency_ms for event in answered]),
        "p95_ttft_ms": _p95([event.ttft_ms for event in answered if event.ttft_ms is not None]),
    }


def quality_signals(
    events: Sequence[EndpointEvent], reference: Reference | None, config: MonitorConfig
) -> tuple[dict[str, Shift], dict[str, str]]:
    """Support, refusals and retrieval against the evaluation's values, and why one is missing."""
    if reference is None:
        reason = "the release was never evaluated in this store, so there is nothing to compare with."
        return {}, dict.fromkeys(("support", "refusals", "retrieval"), reason)
    answered = [event for event in events if event.status == OK]
    cases: dict[str, tuple[Sequence[float], list[float], Literal["less", "greater"]]] = {
        "support": (reference.support_scores, _session_means(answered, lambda event: event.support_score), "less"),
        "refusals": (reference.refused, _session_means(answered, lambda event: float(event.refused)), "greater"),
        "retrieval": (reference.top_scores, _session_means(answered, _top_score), "less"),
    }
    shifts, missing = {}, {}
    for name, (before, now, bad) in cases.items():
        if len(before) < 2 or len(now) < 2:
            missing[name] = f"the {'evaluation' if len(before) < 2 else 'traffic'} holds too few values of it."
        else:
            shifts[name] = _shift([float(value) for value in before], now, bad, config)
    return shifts, missing


def _errors(events: Sequence[EndpointEvent]) -> Interval:
    if not events:
        return Interval(0.0, 0.0, 1.0, 0)
    return wilson_interval(sum(failed(event) for event in events), len(events))


def _shift(before: list[float], now: list[float], bad: Literal["less", "greater"], config: MonitorConfig) -> Shift:
    result = mean_shift_test(before, now, alternative=bad, permutations=config.permutations, seed=config.seed)
    return Shift(
        reference=float(np.mean(before)),
        current=float(np.mean(now)),
        p_value=result.p_value,
        num_reference=len(before),
        num_current=len(now),
    )


def _session_means(events: Sequence[EndpointEvent], value: Callable[[EndpointEvent], float | None]) -> list[float]:
    """One mean for each session: requests of a session are not independent."""
    sessions: dict[str, list[float]] = {}
    for event in events:
        if (number := value(event)) is not None:
            sessions.setdefault(event.session_id, []).append(number)
    return [float(np.mean(values)) for values in sessions.values()]


def _top_score(event: EndpointEvent) -> float:
    return max(event.retrieval_scores, default=0.0)


def _p95(values: Sequence[float]) -> float | None:
    return float(np.quantile(values, 0.95)) if values else None
