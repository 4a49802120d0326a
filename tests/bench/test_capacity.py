"""The capacity simulation against queueing theory, conservation and common sense."""

import math
import re
from dataclasses import replace
from pathlib import Path

import capacity
import numpy as np
import pytest
from queueing import (
    Engine,
    Gpu,
    Lengths,
    Workload,
    erlang_c,
    gpu_engine,
    largest_rate,
    measured_engine,
    poisson,
    renewal,
    simulate,
    trace,
)

CHAT_OF_PAGE = capacity.CHAT
CHAT = Lengths(prompt_median=1000, completion_median=130, prompt_sigma=1.0, completion_sigma=0.9)
H200 = Gpu("H200", flops=989e12, bytes_per_s=4.8e12, memory_bytes=141e9)
MODEL = gpu_engine(H200, 8e9, kv_bytes_per_token=131_072, context_tokens=1250, overhead_s=0.002)


def exponential(rate: float, requests: int, mean_tokens: int, seed: int = 1) -> Workload:
    rng = np.random.default_rng(seed)
    tokens = np.maximum(1, np.rint(rng.exponential(mean_tokens, requests))).astype(np.int64)
    return Workload(np.cumsum(rng.exponential(1 / rate, requests)), np.zeros(requests, dtype=np.int64), tokens)


# queueing theory


@pytest.mark.parametrize(("servers", "offered", "probability"), [(1, 0.7, 0.7), (2, 1.0, 1 / 3), (10, 8.0, 0.4092)])
def test_erlang_c_is_the_textbooks(servers: int, offered: float, probability: float) -> None:
    assert erlang_c(servers, offered) == pytest.approx(probability, abs=1e-4)


@pytest.mark.parametrize(("servers", "utilisation"), [(1, 0.5), (1, 0.8), (4, 0.8), (16, 0.85)])
def test_a_batch_of_slots_that_do_not_slow_each_other_is_the_queue_of_erlang(servers: int, utilisation: float) -> None:
    """Iterations of a constant 1 ms and exponential lengths of 1,000 tokens on average: M/M/c with 1 s of service."""
    engine = Engine("slots", lambda batch: 0.001, 0.0, servers)
    offered = servers * utilisation
    outcome = simulate(exponential(offered, 150_000, 1000), engine)
    waited = outcome.ttft_s - 0.001
    expected_s = erlang_c(servers, offered) / (servers - offered)
    assert waited.mean() == pytest.approx(expected_s, rel=0.1, abs=0.002)
    assert (waited > 0.001).mean() == pytest.approx(erlang_c(servers, offered), abs=0.02)
    assert outcome.busy_fraction == pytest.approx(utilisation, abs=0.02) or servers > 1


def test_littles_law_holds() -> None:
    workload = poisson(8.0, 4000, CHAT)
    outcome = simulate(workload, MODEL)
    events = np.concatenate([workload.arrival_s, workload.arrival_s + outcome.latency_s])
    order = np.argsort(events, kind="stable")
    present = np.cumsum(np.where(order < len(workload), 1, -1))
    span = events.max() - events.min()
    in_system = float((present[:-1] * np.diff(events[order])).sum() / span)
    assert in_system == pytest.approx(len(workload) / span * outcome.latency_s.mean(), rel=1e-9)


# conservation


@pytest.mark.parametrize("replicas", [1, 3])
def test_every_request_is_answered_in_full_and_in_order(replicas: int) -> None:
    workload = renewal(20.0, 2000, CHAT, cv=3.0)
    outcome = simulate(workload, MODEL, replicas)
    assert outcome.tokens == workload.completion_tokens.sum()
    assert (outcome.ttft_s > 0).all()
    assert (outcome.latency_s >= outcome.ttft_s).all()
    assert 0 < outcome.busy_fraction < 1 + 1e-9


def test_a_lone_request_takes_its_prompt_and_its_iterations() -> None:
    engine = Engine("plain", lambda batch: 0.01, 0.001, 4)
    lone = Workload(np.array([5.0]), np.array([100]), np.array([7]))
    outcome = simulate(lone, engine)
    assert outcome.ttft_s[0] == pytest.approx(0.1 + 0.01)
    assert outcome.latency_s[0] == pytest.approx(0.1 + 7 * 0.01)
    assert outcome.busy_fraction == pytest.approx(1)


def test_a_request_beyond_the_batch_waits_for_a_place() -> None:
    engine = Engine("one", lambda batch: 0.01, 0.0, 1)
    two = Workload(np.array([0.0, 0.001]), np.array([1, 1]), np.array([10, 1]))
    assert simulate(two, engine).ttft_s[1] == pytest.approx(0.11 - 0.001)


def test_prompts_beyond_an_iterations_room_are_read_in_the_next() -> None:
    engine = Engine("small", lambda batch: 0.01, 0.001, 8, max_prefill_tokens=100)
    three = Workload(np.zeros(3), np.array([80, 80, 500]), np.array([5, 5, 5]))
    assert simulate(three, engine).ttft_s == pytest.approx([0.09, 0.18, 0.69])


# common sense


def test_more_replicas_never_wait_longer() -> None:
    workload = poisson(30.0, 3000, CHAT)
    p95 = [simulate(workload, MODEL, replicas).percentile("ttft_s", 95) for replicas in (1, 2, 4, 8)]
    assert p95 == sorted(p95, reverse=True)
    assert p95[0] > 2 * p95[-1]


def test_more_traffic_waits_longer() -> None:
    p95 = [simulate(poisson(rate, 3000, CHAT), MODEL).percentile("ttft_s", 95) for rate in (2.0, 10.0, 40.0)]
    assert p95 == sorted(p95)


def test_bursts_wait_longer_than_a_steady_stream_of_the_same_rate() -> None:
    steady, bursty = (simulate(renewal(12.0, 4000, CHAT, cv=cv), MODEL) for cv in (1.0, 4.0))
    assert bursty.percentile("ttft_s", 95) > steady.percentile("ttft_s", 95)


def test_the_same_seed_gives_the_same_outcome() -> None:
    one, two = (simulate(poisson(10.0, 500, CHAT, seed=3), MODEL, 2) for _ in range(2))
    assert np.array_equal(one.latency_s, two.latency_s)


def test_a_renewal_stream_has_the_rate_and_the_burstiness_asked_for() -> None:
    gaps = np.diff(renewal(5.0, 50_000, CHAT, cv=3.0).arrival_s)
    assert 1 / gaps.mean() == pytest.approx(5.0, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.05)


# engines


def test_a_measured_engine_gives_back_what_was_measured() -> None:
    measured = {1: 219.0, 4: 532.0, 16: 609.0}
    engine = measured_engine("cpu", measured)
    assert {batch: engine.tokens_per_s(batch) for batch in measured} == pytest.approx(measured)
    assert engine.max_batch == 16


def test_a_larger_model_is_slower_and_more_gpus_are_faster() -> None:
    shape = {"kv_bytes_per_token": 131_072.0, "context_tokens": 1000.0, "overhead_s": 0.002}
    small, large = gpu_engine(H200, 8e9, **shape), gpu_engine(H200, 60e9, **shape)
    assert small.step_s(8) < large.step_s(8)
    assert gpu_engine(H200, 60e9, gpus=2, **shape).step_s(8) < large.step_s(8)
    assert large.max_batch < small.max_batch


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        gpu_engine(H200, 70e9, kv_bytes_per_token=1.0, context_tokens=1.0, overhead_s=0.0)


def test_the_largest_rate_is_found_from_below() -> None:
    assert largest_rate(lambda rate: rate <= 7.0, 0.1, 100.0, steps=20) == pytest.approx(7.0, rel=1e-3)
    assert largest_rate(lambda rate: False, 0.1, 100.0) == 0.0


def test_a_recorded_trace_can_be_sped_up(shared_data: Path) -> None:
    path = shared_data / "azure_llm_trace_2023" / "dev" / "conv.csv.gz"
    plain, fast = trace(path, requests=1000), trace(path, speedup=4.0, requests=1000)
    assert fast.rate_per_s == pytest.approx(4 * plain.rate_per_s)
    assert np.array_equal(plain.prompt_tokens, fast.prompt_tokens)
    assert (np.diff(plain.arrival_s) >= 0).all()


def test_an_idle_fleet_serves_at_once() -> None:
    slow = replace(poisson(0.01, 50, CHAT), prompt_tokens=np.full(50, 100))
    outcome = simulate(slow, MODEL, 2)
    assert math.isclose(outcome.percentile("ttft_s", 99), 100 * MODEL.prefill_s_per_token + MODEL.step_s(1))


# the page's figures


def test_the_fitted_engine_gives_back_the_published_latency() -> None:
    engine = capacity.gpu_engine(
        H200, 8.03e9, kv_bytes_per_token=131_072, context_tokens=96, overhead_s=capacity.overhead_s(False)
    )
    batch = Workload(np.zeros(8), np.full(8, 32), np.full(8, 128))
    assert simulate(batch, engine).latency_s == pytest.approx(capacity.PUBLISHED_8B_S, rel=0.01)


def test_the_engine_comes_near_a_published_throughput_it_was_not_fitted_to() -> None:
    simulated = float(capacity.published()[0][1])
    assert simulated == pytest.approx(capacity.PUBLISHED_8B_REQUESTS_PER_S, rel=0.25)


def test_a_replicas_rate_keeps_to_the_goal_and_a_stricter_goal_allows_less() -> None:
    rate = capacity.model_rate(1, 3.0)
    assert capacity.meets_goal(renewal(rate, capacity.REQUESTS, CHAT_OF_PAGE, cv=3.0), capacity.MODELS[1].engine())
    assert rate <= capacity.model_rate(1, 3.0, capacity.PATIENT)
    assert rate <= capacity.model_rate(1, 1.0)


def test_training_time_is_linear_in_model_and_data() -> None:
    assert capacity.train_hours(5e9, 1e8) == pytest.approx(100 * capacity.train_hours(0.5e9, 1e7))
    assert capacity.train_hours(1e9, 1e9, 6.0, 1.0) == pytest.approx(6e18 / 989e12 / 3600)


def test_cost_falls_with_traffic_on_the_same_gpus() -> None:
    assert capacity.cost_per_1k(1.0, 1, 3.6) == pytest.approx(1.0)
    assert capacity.cost_per_1k(10.0, 1, 3.6) == pytest.approx(0.1)


def test_a_table_is_markdown() -> None:
    assert capacity.table("T", ["a", "b"], [["1", "2"]]) == "**T**\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"


def test_every_table_on_the_page_is_one_that_the_bench_prints() -> None:
    page = (Path(capacity.__file__).resolve().parents[2] / "manifests" / "CAPACITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\(`(\w+)`\)", page))
    assert named == {
        "engines",
        "published",
        "one_replica",
        "pooling",
        "fleets",
        "cpu_fleets",
        "recorded",
        "training",
        "index",
        "embedding",
        "events",
        "platform",
    }
    assert all(callable(getattr(capacity, name)) for name in named)


@pytest.mark.parametrize("name", ["engines", "published", "fleets", "training", "index", "platform"])
def test_the_page_holds_what_the_simulation_says_now(name: str) -> None:
    page = (Path(capacity.__file__).resolve().parents[2] / "manifests" / "CAPACITY.md").read_text(encoding="utf-8")
    for row in getattr(capacity, name)():
        assert "| " + " | ".join(row) + " |" in page
