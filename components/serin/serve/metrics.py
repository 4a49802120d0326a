"""Prometheus metrics of the gateway, in a registry of their own."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serin.core.events import EndpointEvent

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BY = ("release", "track")


class Metrics:
    """What the gateway counts; ``release`` labels are the first 12 digits of the id."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("serin_requests", "Requests by HTTP status.", (*BY, "status"))
        self._latency = self._histogram("serin_request_latency_seconds", "Time to the end of the answer.")
        self._ttft = self._histogram("serin_ttft_seconds", "Time to the first token.")
        self._tokens = self._counter("serin_tokens", "Tokens by kind (prompt, completion).", (*BY, "kind"))
        self._rails = self._counter("serin_guardrail_actions", "What rails did.", (*BY, "stage", "rail", "action"))
        self._rail_time = self._histogram("serin_guardrail_latency_seconds", "Time that a request spent in rails.")
        self._failovers = self._counter("serin_failovers", "Requests that the champion took over.", ("release",))
        self._lost = self._counter("serin_events_lost", "Endpoint events that were given up.", ())
        self._weight = Gauge(
            "serin_candidate_weight_percent", "The candidate's share of sessions.", registry=self._registry
        )
        self._engines = Gauge("serin_engine_up", "1 while the engine's process runs.", BY, registry=self._registry)

    def observe(self, event: EndpointEvent, rails_ms: float) -> None:
        """Count a finished request."""
        by = (event.release_id[:12], event.track)
        self._requests.labels(*by, str(event.status)).inc()
        self._latency.labels(*by).observe(event.latency_ms / 1000)
        self._rail_time.labels(*by).observe(rails_ms / 1000)
        if event.ttft_ms is not None:
            self._ttft.labels(*by).observe(event.ttft_ms / 1000)
        self._tokens.labels(*by, "prompt").inc(event.prompt_tokens)
        self._tokens.labels(*by, "completion").inc(event.completion_tokens)
        for action in event.guardrail_actions:
            self._rails.labels(*by, *action.split(":", 2)).inc()

    def failover(self, release_id: str) -> None:
        """Count a request that a candidate's failure sent to the champion."""
        self._failovers.labels(release_id[:12]).inc()

    def lost(self, count: int) -> None:
        """Count events that were given up."""
        self._lost.inc(count)

    def text(self, weight_percent: float, engines: Iterable[tuple[str, str, bool]]) -> bytes:
        """The exposition text.

        Args:
            weight_percent: the candidate's weight now.
            engines: (release id, track, whether its process runs) of each engine.
        """
        self._weight.set(weight_percent)
        self._engines.clear()
        for release_id, track, up in engines:
            self._engines.labels(release_id[:12], track).set(up)
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, BY, registry=self._registry, buckets=SECONDS)
