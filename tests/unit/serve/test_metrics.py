import re

from prometheus_client.parser import text_string_to_metric_families
from test_tracing import observed

from serin.serve import conventions as names
from serin.serve.metrics import Metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.text(0.0, [("f" * 64, "champion", True)]).decode()
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in found}


def test_a_time_is_counted_once_and_shown_under_ours_opentelemetrys_and_vllms_name():
    metrics = Metrics()
    _, event = observed()
    metrics.observe(event, 1.0)
    by = (("release", "f" * 12), ("track", "champion"))
    aliased = (("model_name", "assistant"), *by)
    found = samples(metrics)
    for family, seconds in ((names.LATENCY_NAMES, 0.12), (names.TTFT_NAMES, 0.04), (names.TOKEN_TIME_NAMES, 0.01)):
        assert abs(found[f"{family[0]}_sum", by] - seconds) < 1e-9
        for name in family[1:]:
            assert found[f"{name}_sum", aliased] == found[f"{family[0]}_sum", by]
            assert found[f"{name}_count", aliased] == 1
    assert found["vllm:prompt_tokens_total", aliased] == 30
    assert found["vllm:generation_tokens_total", aliased] == 9
    assert found["vllm:request_success_total", (("finished_reason", "stop"), *by)] == 1


def test_every_name_is_one_that_prometheus_takes():
    for family in (names.LATENCY_NAMES, names.TTFT_NAMES, names.TOKEN_TIME_NAMES):
        for name in family:
            assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", name)


def test_costs_and_stages_are_counted_off_the_requests_path():
    metrics = Metrics()
    observation, event = observed(cost=0.25)
    metrics.observe_scored(observation, event)
    by = (("release", "f" * 12), ("track", "champion"))
    found = samples(metrics)
    assert found["serin_cost_total", by] == 0.25
    assert abs(found["serin_stage_seconds_sum", (by[0], ("stage", "engine"), by[1])] - 0.11) < 1e-9


def test_what_waits_and_what_was_refused_is_shown_as_it_is_now():
    metrics, refused = Metrics(), {"overloaded": 1}
    metrics.watch(
        in_flight=lambda: 3,
        limit=lambda: 8,
        refused=lambda: refused,
        spooled={"events": lambda: 1234, "traces": lambda: 0},
    )
    refused["overloaded"] = 5
    found = samples(metrics)
    assert found["serin_requests_in_flight", ()] == found["vllm:num_requests_running", ()] == 3
    assert found["serin_in_flight_limit", ()] == 8
    assert found["serin_requests_refused_total", (("reason", "overloaded"),)] == 5
    assert found["serin_spool_bytes", (("kind", "events"),)] == 1234
