"""Traces against a small OTLP collector over HTTP that can go away and come back."""

import gzip
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from serin.core.events import EndpointEvent
from serin.core.policy import GuardrailPolicy
from serin.core.storage import LocalStorage
from serin.serve.guardrails import Guardrails
from serin.serve.recorder import Observation, Recorder, StageTiming
from serin.serve.spool import Spool
from serin.serve.tracing import Collector, Tracing, TracingConfig, collector_of, reason_to_keep

T0_NS = 1_767_225_600_000_000_000
"""2026-01-01 UTC."""


@dataclass
class OtlpCollector:
    """Keeps what it is sent; answers ``status`` while it is up."""

    status: int = 200
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    port: int = 0
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/traces"

    @property
    def spans(self) -> list[Span]:
        parsed = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [
            span for one in parsed for res in one.resource_spans for scope in res.scope_spans for span in scope.spans
        ]

    def start(self) -> None:
        """Listen; on the same port as before."""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if collector.status == 200:
                    collector.bodies.append(body)
                    collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(collector.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}).start()

    def stop(self) -> None:
        """Die."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@pytest.fixture
def collector() -> Iterator[OtlpCollector]:
    made = OtlpCollector()
    made.start()
    yield made
    made.stop()


def observed(trace_id: str = "", keep_text: str = "redacted", **fields: Any) -> tuple[Observation, EndpointEvent]:
    event = EndpointEvent.model_validate(
        {
            "trace_id": trace_id or uuid.uuid4().hex, "time": "2026-01-01T00:00:00.000+00:00", "session_id": "s",
            "endpoint": "assistant", "release_id": "f" * 64, "track": "champion", "status": 200, "latency_ms": 120.0,
            "ttft_ms": 40.0, "prompt_tokens": 30, "completion_tokens": 9, "finish_reason": "stop",
            "question": "Where is it?", "answer": "Mail jo@mail.example.", "retrieval_ids": ["c1", "c2"],
            "retrieval_scores": [0.9, 0.5], "guardrail_actions": ["input:pii:mask"], "support_score": 0.7, **fields,
        }
    )  # fmt: skip
    ms = 1_000_000
    stages = (
        StageTiming("rails.input", T0_NS, T0_NS + 2 * ms),
        StageTiming("retrieval", T0_NS + 2 * ms, T0_NS + 9 * ms, {"passages": 2}),
        StageTiming("engine", T0_NS + 9 * ms, T0_NS + 119 * ms),
    )
    guardrails = Guardrails(GuardrailPolicy.load({"keep_text": keep_text}))
    stored = {"question": guardrails.kept(event.question), "answer": guardrails.kept(event.answer)}
    return Observation(event, (), guardrails, stages), event.model_copy(update=stored)


def tracing_to(collector: OtlpCollector, spool: Spool | None = None, **settings: Any) -> Tracing:
    config = TracingConfig.load({"endpoint": collector.url, "sample_fraction": 1.0, "interval_s": 0.05, **settings})
    target = collector_of(config, {})
    assert target is not None
    return Tracing(config, target, spool, facts_of=lambda release_id: {"serin.index.version": "idx-1"})


def value_of(span: Span, name: str) -> Any:
    found = {attribute.key: attribute.value for attribute in span.attributes}.get(name)
    if found is None:
        return None
    kind = found.WhichOneof("value")
    return [one.string_value for one in found.array_value.values] if kind == "array_value" else getattr(found, kind)


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_a_request_is_a_trace_of_its_stages_under_the_id_that_its_answer_has(collector: OtlpCollector):
    tracing = tracing_to(collector)
    observation, event = observed()
    tracing(observation, event)
    assert tracing.flush() == 1
    tracing.close()
    spans = {span.name: span for span in collector.spans}
    root = spans["chat assistant"]
    assert {span.trace_id.hex() for span in spans.values()} == {event.trace_id}
    assert root.parent_span_id == b""
    assert {span.parent_span_id for name, span in spans.items() if name != root.name} == {root.span_id}
    assert (root.start_time_unix_nano, root.end_time_unix_nano) == (T0_NS, T0_NS + 120_000_000)
    assert value_of(root, "serin.release.id") == "f" * 64
    assert value_of(root, "serin.track") == "champion"
    assert value_of(root, "serin.index.version") == "idx-1"
    assert value_of(root, "serin.guardrail.actions") == ["input:pii:mask"]
    assert value_of(root, "serin.retrieval.ids") == ["c1", "c2"]
    assert value_of(root, "gen_ai.usage.input_tokens") == 30
    assert value_of(root, "gen_ai.response.finish_reasons") == ["stop"]
    assert value_of(spans["retrieval"], "serin.passages") == 2
    assert value_of(spans["rails.input"], "serin.guardrail.actions") == ["input:pii:mask"]
    engine = spans["chat ffffffffffff"]
    assert engine.end_time_unix_nano - engine.start_time_unix_nano == 110_000_000
    assert value_of(engine, "gen_ai.operation.name") == "chat"


def test_texts_are_traced_as_the_policy_keeps_them(collector: OtlpCollector):
    tracing = tracing_to(collector)
    for keep_text in ("none", "redacted", "full"):
        tracing(*observed(keep_text=keep_text))
    tracing.flush()
    tracing.close()
    texts = [value_of(span, "gen_ai.output.messages") for span in collector.spans if span.name == "chat assistant"]
    assert texts[0] is None
    for text in texts[1:]:
        assert json.loads(text)[0]["parts"][0]["content"] == "Mail <EMAIL>."


def test_a_caller_s_span_is_the_parent(collector: OtlpCollector):
    tracing = tracing_to(collector)
    observation, event = observed()
    tracing(replace(observation, parent_span_id="00f067aa0ba902b7"), event)
    tracing.flush()
    tracing.close()
    (root,) = (span for span in collector.spans if span.name == "chat assistant")
    assert root.parent_span_id.hex() == "00f067aa0ba902b7"
    assert root.trace_id.hex() == event.trace_id


def test_blocked_failed_and_slow_requests_are_always_kept_and_a_share_of_the_rest():
    config = TracingConfig(sample_fraction=0.2, slow_ms=1000)
    blocked = {"guardrail_actions": ["output:secrets:block"]}
    for fields, why in (
        (blocked, "blocked"),
        ({"finish_reason": "content_filter"}, "blocked"),
        ({"status": 502}, "failed"),
        ({"status": 499}, "failed"),
        ({"latency_ms": 1000.0}, "slow"),
    ):
        assert reason_to_keep(observed(**fields)[1], config) == why
    kept = sum(bool(reason_to_keep(observed()[1], config)) for _ in range(2000))
    assert 320 <= kept <= 480
    assert all(reason_to_keep(observed()[1], TracingConfig(sample_fraction=1.0)) == "share" for _ in range(50))
    assert not any(reason_to_keep(observed()[1], TracingConfig(sample_fraction=0.0)) for _ in range(50))


def test_a_server_s_error_is_one_in_the_trace_and_a_refusal_is_none(collector: OtlpCollector):
    tracing = tracing_to(collector)
    tracing(*observed(status=502, error="The engine broke off."))
    tracing(*observed(status=400, guardrail_actions=["input:injection:block"]))
    tracing.flush()
    tracing.close()
    failed, refused = (span for span in collector.spans if span.name == "chat assistant")
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert failed.status.message == "The engine broke off."
    assert refused.status.code == Status.STATUS_CODE_UNSET
    assert value_of(refused, "serin.sampled_because") == "blocked"


def test_no_trace_is_lost_while_the_collector_is_away_and_requests_do_not_wait(
    tmp_path: Path, collector: OtlpCollector
):
    tracing = tracing_to(collector, Spool(tmp_path / "spool"), batch_traces=10)
    recorder = Recorder(LocalStorage(tmp_path / "store"), "a", interval_s=0.02, observers=[tracing])
    recorder.start()
    tracing.start()
    sent = []

    def ask(count: int) -> None:
        for _ in range(count):
            observation, event = observed()
            sent.append(event.trace_id)
            recorder.add(observation)

    ask(20)
    assert wait_until(lambda: bool(collector.bodies))
    collector.stop()
    began = time.perf_counter()
    ask(60)
    assert time.perf_counter() - began < 0.5
    assert wait_until(lambda: tracing.waiting_bytes() > 0)
    collector.status = 503
    collector.start()
    ask(20)
    time.sleep(0.2)
    collector.status = 200
    assert wait_until(lambda: len({span.trace_id for span in collector.spans}) == 100)
    recorder.close()
    tracing.close()
    assert {span.trace_id.hex() for span in collector.spans} == set(sent)
    assert len(collector.spans) == 4 * 100


def test_traces_of_a_gateway_that_ended_before_the_collector_came_back_are_sent_by_the_next(
    tmp_path: Path, collector: OtlpCollector
):
    collector.stop()
    first = tracing_to(collector, Spool(tmp_path))
    observation, event = observed()
    first(observation, event)
    first.close()
    collector.start()
    second = tracing_to(collector, Spool(tmp_path))
    second.start()
    assert wait_until(lambda: len(collector.spans) == 4)
    second.close()
    assert collector.spans[0].trace_id.hex() == event.trace_id


def test_what_a_collector_never_takes_is_given_up_and_counted(collector: OtlpCollector):
    lost: list[int] = []
    config = TracingConfig(endpoint=collector.url, sample_fraction=1.0)
    tracing = Tracing(config, Collector(collector.url, {}), lost=lost.append)
    collector.status = 400
    tracing(*observed())
    assert tracing.flush() == 0
    collector.status = 422  # MLflow's answer to a broken span, but also to a database that was busy
    tracing(*observed())
    for _ in range(4):
        with pytest.raises(OSError, match="422"):
            tracing.flush()
    tracing.flush()
    assert lost == [1, 1]
    tracing.close()


def test_opentelemetry_s_own_variables_are_honoured():
    assert collector_of(TracingConfig(), {}) is None
    base = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/", "OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b,x=1"}
    found = collector_of(TracingConfig(), base)
    assert found == Collector("http://c:4318/v1/traces", {"api-key": "a b", "x": "1"})
    more = base | {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/otlp",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "y=2",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "3",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
    }
    assert collector_of(TracingConfig(), more) == Collector("http://t/otlp", {"y": "2"}, 3.0, compress=True)
    assert collector_of(TracingConfig(), more | {"OTEL_SDK_DISABLED": "true"}) is None
    ours = collector_of(TracingConfig(endpoint="http://mlflow:5000/v1/traces", mlflow_experiment_id="7"), more)
    assert ours is not None
    assert ours.url == "http://mlflow:5000/v1/traces"
    assert ours.headers == {"y": "2", "x-mlflow-experiment-id": "7"}


def test_headers_and_compression_arrive(collector: OtlpCollector):
    target = Collector(collector.url, {"x-mlflow-experiment-id": "7"}, compress=True)
    tracing = Tracing(TracingConfig(sample_fraction=1.0), target)
    tracing(*observed())
    tracing.flush()
    tracing.close()
    assert collector.headers[0]["x-mlflow-experiment-id"] == "7"
    assert collector.headers[0]["content-type"] == "application/x-protobuf"
    assert len(collector.spans) == 4
