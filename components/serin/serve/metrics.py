"""Prometheus metrics of the gateway, in a registry of their own.

Times are counted once and exposed under three names each: ours, OpenTelemetry's for generative AI, and vLLM's, so that
dashboards made for either work (names in ``conventions``).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from serin.core.events import SHADOW, EndpointEvent
from serin.serve import conventions as names
from serin.serve.recorder import Observation

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
BY = ("release", "track")
OK = 200


class Metrics:
    """What the gateway counts.

    ``release`` labels are the first 12 digits of the id; ``track`` is champion, candidate, or shadow (no user's).
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._model_name = ""
        self._requests = self._counter("serin_requests", "Requests by HTTP status.", (*BY, "status"))
        self._latency = self._histogram(names.LATENCY_NAMES, "Time to the end of the answer.")
        self._ttft = self._histogram(names.TTFT_NAMES, "Time to the first token.")
        self._token_time = self._histogram(names.TOKEN_TIME_NAMES, "Time per token after the first.", TOKEN_SECONDS)
        self._tokens = self._counter("serin_tokens", "Tokens by kind (prompt, completion).", (*BY, "kind"))
        self._alias(self._tokens, names.PROMPT_TOKENS_NAME, {"kind": "prompt"})
        self._alias(self._tokens, names.GENERATION_TOKENS_NAME, {"kind": "completion"})
        self._success = self._counter(names.SUCCESS_NAME, "Answers by how they ended.", (*BY, "finished_reason"))
        self._rails = self._counter("serin_guardrail_actions", "What rails did.", (*BY, "stage", "rail", "action"))
        self._rail_time = self._histogram(
            ("serin_guardrail_latency_seconds",), "Time that a request spent in rails.", SECONDS
        )
        self._stages = Histogram(
            "serin_stage_seconds", "What the time of requests went to.", (*BY, "stage"), registry=self._registry,
            buckets=SECONDS,
        )  # fmt: skip
        self._cost = self._counter("serin_cost", "What answers cost, by the price list.", BY)
        self._failovers = self._counter("serin_failovers", "Requests that the champion took over.", ("release",))
        self._dropped = self._counter(
            "serin_shadows_dropped", "Requests that were not mirrored after all.", ("release", "reason")
        )
        self._lost = self._counter("serin_events_lost", "Endpoint events that were given up.", ())
        self._traces_lost = self._counter("serin_traces_lost", "Traces that were given up.", ())
        self._weight = Gauge(
            "serin_candidate_weight_percent", "The candidate's share of sessions.", registry=self._registry
        )
        self._engines = Gauge("serin_engine_up", "1 while the engine's process runs.", BY, registry=self._registry)

    def observe(self, event: EndpointEvent, rails_ms: float) -> None:
        """Count a finished request."""
        by = (event.release_id[:12], event.track)
        self._model_name = event.endpoint
        self._requests.labels(*by, str(event.status)).inc()
        self._latency.labels(*by).observe(event.latency_ms / 1000)
        self._rail_time.labels(*by).observe(rails_ms / 1000)
        if event.ttft_ms is not None:
            self._ttft.labels(*by).observe(event.ttft_ms / 1000)
            if event.completion_tokens > 1:
                after_first_s = max(0.0, event.latency_ms - event.ttft_ms) / 1000
                self._token_time.labels(*by).observe(after_first_s / (event.completion_tokens - 1))
        self._tokens.labels(*by, "prompt").inc(event.prompt_tokens)
        self._tokens.labels(*by, "completion").inc(event.completion_tokens)
        if event.status == OK and event.track != SHADOW:
            self._success.labels(*by, event.finish_reason).inc()
        for action in event.guardrail_actions:
            self._rails.labels(*by, *action.split(":", 2)).inc()

    def observe_scored(self, observation: Observation, event: EndpointEvent) -> None:
        """Count what is known of a request only after it; an observer of the recorder, off the request's path."""
        by = (event.release_id[:12], event.track)
        for stage in observation.stages:
            self._stages.labels(*by, stage.name).observe((stage.end_ns - stage.start_ns) / 1e9)
        if event.cost is not None:
            self._cost.labels(*by).inc(event.cost)

    def failover(self, release_id: str) -> None:
        """Count a request that a candidate's failure sent to the champion."""
        self._failovers.labels(release_id[:12]).inc()

    def shadow_dropped(self, release_id: str, reason: str) -> None:
        """Count a request that was to be mirrored and was not."""
        self._dropped.labels(release_id[:12], reason).inc()

    def lost(self, count: int) -> None:
        """Count events that were given up."""
        self._lost.inc(count)

    def traces_lost(self, count: int) -> None:
        """Count traces that were given up."""
        self._traces_lost.inc(count)

    def watch(
        self,
        *,
        in_flight: Callable[[], float],
        limit: Callable[[], float],
        refused: Callable[[], Mapping[str, int]],
        spooled: Mapping[str, Callable[[], float]],
    ) -> None:
        """Expose what others know, as it is when it is asked for.

        Args:
            in_flight: requests under way.
            limit: how many may be.
            refused: requests that were not let in, by reason.
            spooled: bytes that wait to be sent, by what they are.
        """
        for name in ("serin_requests_in_flight", names.RUNNING_NAME):
            Gauge(name, "Requests under way.", registry=self._registry).set_function(in_flight)
        Gauge("serin_in_flight_limit", "Requests that may be under way.", registry=self._registry).set_function(limit)
        bytes_ = Gauge("serin_spool_bytes", "Bytes that wait to be sent.", ("kind",), registry=self._registry)
        for kind, size in spooled.items():
            bytes_.labels(kind).set_function(size)
        self._registry.register(_Refused(refused))

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

    def _histogram(self, aliases: Sequence[str], text: str, buckets: Sequence[float] = SECONDS) -> Histogram:
        made = Histogram(aliases[0], text, BY, registry=self._registry, buckets=buckets)
        for name in aliases[1:]:
            self._alias(made, name)
        return made

    def _alias(self, source: Counter | Histogram, name: str, only: Mapping[str, str] | None = None) -> None:
        self._registry.register(_Alias(source, name, only or {}, lambda: self._model_name))


class _Alias(Collector):
    """A metric of users' requests once more under another name, with vLLM's label for the model.

    ``only`` picks labels and drops them.  Shadow requests are left out: who made a dashboard for those names does not
    know of tracks.
    """

    def __init__(
        self, source: Counter | Histogram, name: str, only: Mapping[str, str], model_name: Callable[[], str]
    ) -> None:
        self._source, self._name, self._only, self._model_name = source, name, only, model_name

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        for metric in self._source.collect():
            copy = Metric(self._name, metric.documentation, metric.type)
            for sample in metric.samples:
                if self._only.items() <= sample.labels.items() and sample.labels.get("track") != SHADOW:
                    labels = {key: value for key, value in sample.labels.items() if key not in self._only}
                    suffix = sample.name.removeprefix(metric.name)
                    copy.add_sample(self._name + suffix, {**labels, "model_name": self._model_name()}, sample.value)
            yield copy


class _Refused(Collector):
    """Requests that were not let in."""

    def __init__(self, refused: Callable[[], Mapping[str, int]]) -> None:
        self._refused = refused

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily("serin_requests_refused", "Requests that were not let in.", labels=("reason",))
        for reason, count in self._refused().items():
            family.add_metric((reason,), count)
        yield family
