"""Traces of requests: made from what was observed of them, after they are over, and sent over OTLP.

Nothing here is on a request's path: the recorder's thread decides which requests are kept (all that were blocked,
failed or slow, and a share of the rest), makes their spans with OpenTelemetry's SDK and spools them; another thread
posts them to MLflow's ``/v1/traces`` or any collector.  The share is chosen by trace id, as other services that
sample by trace id would.  Texts are in a trace only where the release's policy keeps them, as it keeps them.
"""

import gzip
import json
import logging
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote, urlparse

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from pydantic import Field

from serin.core.config import Section
from serin.core.events import CLIENT_GONE, EndpointEvent
from serin.core.pii import mask_pii
from serin.serve import conventions as names
from serin.serve.recorder import Observation, StageTiming
from serin.serve.spool import RefusedError, Segment, Shipper, Spool

logger = logging.getLogger(__name__)

SPANS = "traces"
MAX_TRIES = 5
"""Of a batch that the collector answers with an error of which we cannot know whether it will pass."""
NEVER = frozenset({400, 405, 406, 411, 413, 414, 415, 501})
"""Answers that another try would not change."""
LATER = frozenset({401, 403, 404, 408, 425, 429, 502, 503, 504})
"""Answers that whoever runs the collector can mend."""
_RANDOM_BITS = 1 << 56
"""Of a trace id's right end: what W3C's trace context has random; the fixed bits of a UUID are further left."""


class TracingConfig(Section):
    """Which requests are traced, and where to.

    Without ``endpoint`` the variables of OpenTelemetry hold (``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``,
    ``OTEL_EXPORTER_OTLP_ENDPOINT``, their ``HEADERS``, ``TIMEOUT``, ``COMPRESSION`` and ``CERTIFICATE``); without
    those, and with ``OTEL_SDK_DISABLED=true``, nothing is traced.
    """

    endpoint: str = ""
    """URL of the collector's trace route, such as http://mlflow:5000/v1/traces."""
    mlflow_experiment_id: str = ""
    """Experiment in which MLflow files the traces."""
    sample_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of ordinary requests that is kept; blocked, failed and slow ones always are."""
    slow_ms: float = Field(default=5000.0, gt=0)
    """From here on a request is slow, milliseconds."""
    service_name: str = "serin-gateway"
    """Who reports."""
    interval_s: float = Field(default=2.0, gt=0)
    """Longest time that a trace waits for others to be sent with."""
    batch_traces: int = Field(default=64, ge=1)
    """Traces that are sent together."""
    max_spool_mib: int = Field(default=64, ge=1)
    """What may wait for a collector that is down; beyond it the oldest traces are lost."""


@dataclass(frozen=True)
class Collector:
    """Where traces are posted."""

    url: str
    headers: Mapping[str, str]
    timeout_s: float = 10.0
    compress: bool = False
    certificate: str = ""
    """File of the authority that the collector's certificate is checked against; empty: the system's."""


def collector_of(config: TracingConfig, environment: Mapping[str, str] | None = None) -> Collector | None:
    """The collector of the settings, else of OpenTelemetry's variables; None: nothing is traced."""
    variables = os.environ if environment is None else environment

    def of(name: str) -> str:
        return variables.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or variables.get(f"OTEL_EXPORTER_OTLP_{name}", "")

    base = variables.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    url = config.endpoint or variables.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
    url = url or (f"{base.rstrip('/')}/v1/traces" if base else "")
    if not url or variables.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    headers = {
        unquote(name).strip().lower(): unquote(value).strip()
        for name, _, value in (pair.partition("=") for pair in of("HEADERS").split(",") if "=" in pair)
    }
    if config.mlflow_experiment_id:
        headers[names.MLFLOW_EXPERIMENT_HEADER] = config.mlflow_experiment_id
    timeout_s = 10.0
    with suppress(ValueError):
        timeout_s = float(of("TIMEOUT") or timeout_s)
    return Collector(url, headers, timeout_s, of("COMPRESSION") == "gzip", of("CERTIFICATE"))


class Tracing:
    """Takes observations (as an observer of the recorder), keeps some as traces, and sends those.

    Args:
        config: which requests.
        collector: where to.
        spool: where traces wait.
        facts_of: attributes of a release by its id, such as its index version.
        lost: told how many traces were given up.
    """

    def __init__(
        self,
        config: TracingConfig,
        collector: Collector,
        spool: Spool | None = None,
        *,
        facts_of: Callable[[str], Mapping[str, str]] = lambda release_id: {},
        lost: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._config, self._collector, self._facts_of = config, collector, facts_of
        self._spool = spool or Spool(max_bytes=config.max_spool_mib << 20)
        self._spans = _SpanMaker(config.service_name)
        self._waiting: list[bytes] = []
        self._guard = threading.Lock()
        self._tries: dict[str, int] = {}
        self._opener = _opener(collector)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._shipper = Shipper(
            self._spool, self._send, name="traces", retry_s=config.interval_s, lost=lambda kind, count: lost(count)
        )

    def start(self) -> None:
        """Start the threads; what an earlier process left is sent first."""
        self._thread.start()
        self._shipper.start()
        self._shipper.wake()

    def __call__(self, observation: Observation, event: EndpointEvent) -> None:
        """Keep a request's trace, if it is to be kept."""
        why = reason_to_keep(event, self._config)
        if why:
            record = self._spans.encoded(
                observation, event, {**self._facts_of(event.release_id), names.SAMPLED_BECAUSE: why}
            )
            with self._guard:
                self._waiting.append(record)
                full = len(self._waiting) >= self._config.batch_traces
            if full:
                self._stage()

    def waiting_bytes(self) -> int:
        """Bytes that wait for the collector."""
        return self._spool.size

    def flush(self) -> int:
        """Send every trace that was kept before; returns how many.

        Raises:
            OSError: the collector does not answer; the traces are kept for the next try.
        """
        self._stage()
        return self._shipper.ship()

    def close(self) -> None:
        """Send the rest, or leave it spooled, and end the threads."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._stage()
        self._shipper.close()
        self._spool.close()

    def _run(self) -> None:
        while not self._stop.wait(self._config.interval_s):
            self._stage()

    def _stage(self) -> None:
        with self._guard:
            waiting, self._waiting = self._waiting, []
        if waiting:
            self._spool.append(SPANS, waiting)
            self._spool.roll()
            self._shipper.wake()

    def _send(self, segment: Segment, records: list[bytes]) -> None:
        """Post a batch; serialized protobuf messages one after the other are their repeated fields joined."""
        body = b"".join(records)
        headers = {"content-type": "application/x-protobuf", **self._collector.headers}
        if self._collector.compress:
            body, headers["content-encoding"] = gzip.compress(body), "gzip"
        request = urllib.request.Request(self._collector.url, body, headers, method="POST")  # noqa: S310
        try:
            with self._opener.open(request, timeout=self._collector.timeout_s) as response:
                response.read()
        except urllib.error.HTTPError as error:
            with error:
                reason = f"{self._collector.url} answers {error.code}: {error.read(300).decode(errors='replace')}"
            tries = self._tries[segment.name] = self._tries.get(segment.name, 0) + 1
            if error.code in NEVER or (error.code not in LATER and tries >= MAX_TRIES):
                self._tries.pop(segment.name)
                raise RefusedError(reason) from error
            raise OSError(reason) from error
        self._tries.pop(segment.name, None)


def reason_to_keep(event: EndpointEvent, config: TracingConfig) -> str:
    """Why a request's trace is kept: blocked, failed, slow or share; empty: it is not."""
    actions = event.guardrail_actions
    if event.finish_reason == "content_filter" or any(action.endswith(":block") for action in actions):
        return "blocked"
    if event.status >= 400:
        return "failed"
    if event.latency_ms >= config.slow_ms:
        return "slow"
    chosen = int(event.trace_id[18:], 16) < config.sample_fraction * _RANDOM_BITS
    return "share" if chosen else ""


class _Ids(RandomIdGenerator):
    """Gives the trace the id that the answer's header has."""

    trace_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id


class _Collected(SpanProcessor):
    """Holds the spans that have ended."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


class _SpanMaker:
    """Makes the spans of a request from its timings; for one thread."""

    def __init__(self, service_name: str) -> None:
        self._ids, self._ended = _Ids(), _Collected()
        resource = Resource.create({} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: service_name})
        provider = TracerProvider(sampler=ALWAYS_ON, id_generator=self._ids, resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._ended)
        self._tracer = provider.get_tracer("serin.serve")

    def encoded(self, observation: Observation, event: EndpointEvent, more: Mapping[str, str]) -> bytes:
        """The spans as a serialized ``ExportTraceServiceRequest``."""
        self._ids.trace_id = int(event.trace_id, 16)
        began = int(datetime.fromisoformat(event.time).timestamp() * 1000) * 1_000_000
        ended = began + int(event.latency_ms * 1e6)
        stages = observation.stages
        began = min([began, *(stage.start_ns for stage in stages)])
        ended = max([ended, *(stage.end_ns for stage in stages)])
        root = self._tracer.start_span(
            f"{names.CHAT} {event.endpoint}", _caller(event.trace_id, observation.parent_span_id), SpanKind.SERVER,
            {**_attributes_of(event), **more}, start_time=began,
        )  # fmt: skip
        assert isinstance(root, Span)
        context = set_span_in_context(root, Context())
        for stage in stages:
            self._stage(stage, event, more, context)
        if event.status >= 500:
            root.set_status(Status(StatusCode.ERROR, event.error or None))
        root.end(ended)
        spans, self._ended.spans = self._ended.spans, []
        data: bytes = encode_spans(spans).SerializeToString()
        return data

    def _stage(self, stage: StageTiming, event: EndpointEvent, more: Mapping[str, str], context: Context) -> None:
        name, kind = stage.name, SpanKind.INTERNAL
        attributes: dict[str, Any] = {_named(key): _valued(value) for key, value in stage.attributes.items()}
        if stage.name == "engine":
            name, kind = f"{names.CHAT} {event.release_id[:12]}", SpanKind.CLIENT
            attributes |= _generation_of(event)
        elif stage.name == "retrieval":
            attributes |= _retrieval_of(event)
            attributes[names.DATA_SOURCE_ID] = more.get(names.INDEX_VERSION, "")
        elif stage.name.startswith("rails."):
            prefix = stage.name.removeprefix("rails.") + ":"
            attributes[names.GUARDRAIL_ACTIONS] = [one for one in event.guardrail_actions if one.startswith(prefix)]
        span = self._tracer.start_span(name, context, kind, attributes, start_time=stage.start_ns)
        span.end(max(stage.end_ns, stage.start_ns))


def _caller(trace_id: str, span_id: str) -> Context:
    """The caller's span as the parent; without one the trace begins here."""
    if not span_id:
        return Context()
    parent = SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _attributes_of(event: EndpointEvent) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        names.OPERATION: names.CHAT,
        names.PROVIDER: "serin",
        names.REQUEST_MODEL: event.endpoint,
        names.RESPONSE_ID: event.answer_id,
        names.CONVERSATION_ID: event.session_id,
        names.FINISH_REASONS: [event.finish_reason] if event.finish_reason else [],
        names.REQUEST_STREAM: event.streamed,
        names.INPUT_TOKENS: event.prompt_tokens,
        names.OUTPUT_TOKENS: event.completion_tokens,
        names.HTTP_STATUS: event.status,
        names.ENDPOINT: event.endpoint,
        names.RELEASE: event.release_id,
        names.TRACK: event.track,
        names.GUARDRAIL_ACTIONS: list(event.guardrail_actions),
        names.RETRIEVAL_IDS: list(event.retrieval_ids),
        names.RETRIEVAL_SCORES: list(event.retrieval_scores),
        names.REFUSED: event.refused,
        names.KEY_ID: event.key_id,
        names.BACKEND: event.backend,
    }
    optional = {
        names.TIME_TO_FIRST_CHUNK: None if event.ttft_ms is None else event.ttft_ms / 1000,
        names.GUARDRAIL_MS: event.rails_ms,
        names.SUPPORT_SCORE: event.support_score,
        names.FORMAT_VALID: event.format_valid,
        names.COST: event.cost,
        names.SHADOW_OF: event.shadow_of or None,
        names.ERROR_TYPE: str(event.status) if event.status >= 400 and event.status != CLIENT_GONE else None,
        names.INPUT_MESSAGES: _messages("user", event.question),
        names.OUTPUT_MESSAGES: _messages("assistant", event.answer, event.finish_reason),
    }
    return attributes | {name: value for name, value in optional.items() if value is not None}


def _generation_of(event: EndpointEvent) -> dict[str, Any]:
    return {
        names.OPERATION: names.CHAT,
        names.PROVIDER: event.backend or "serin",
        names.REQUEST_MODEL: event.release_id[:12],
        names.RESPONSE_MODEL: event.release_id[:12],
        names.INPUT_TOKENS: event.prompt_tokens,
        names.OUTPUT_TOKENS: event.completion_tokens,
        names.FINISH_REASONS: [event.finish_reason] if event.finish_reason else [],
    }


def _retrieval_of(event: EndpointEvent) -> dict[str, Any]:
    found = zip(event.retrieval_ids, event.retrieval_scores, strict=False)
    return {
        names.OPERATION: names.RETRIEVAL,
        names.RETRIEVAL_DOCUMENTS: json.dumps([{"id": name, "score": round(score, 4)} for name, score in found]),
    }


def _messages(role: str, text: str, finish_reason: str = "") -> str | None:
    """A turn in the conventions' form, with personal data masked even where the policy keeps full text."""
    if not text:
        return None
    message: dict[str, Any] = {"role": role, "parts": [{"type": "text", "content": mask_pii(text)[0]}]}
    if role == "assistant":
        message["finish_reason"] = finish_reason
    return json.dumps([message], ensure_ascii=False)


def _named(key: str) -> str:
    return key if key.startswith(("serin.", "gen_ai.")) else f"serin.{key}"


def _valued(value: object) -> object:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _opener(collector: Collector) -> urllib.request.OpenerDirector:
    handlers: list[urllib.request.BaseHandler] = []
    if urlparse(collector.url).hostname in ("127.0.0.1", "::1", "localhost"):
        handlers.append(urllib.request.ProxyHandler({}))
    if collector.certificate:
        context = ssl.create_default_context(cafile=collector.certificate)
        handlers.append(urllib.request.HTTPSHandler(context=context))
    return urllib.request.build_opener(*handlers)
