"""The judge's decisions: harms, proofs, trips, which sessions count, and what it says about them."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from serin.core.errors import ConfigError, InputError
from serin.core.events import EndpointEvent
from serin.deploy.config import JudgePolicy, MetricPolicy
from serin.deploy.judge import Observations, judge, observe
from serin.deploy.judge_metrics import built_in, metrics_of
from serin.deploy.judge_sessions import Sample, Session, Trips
from serin.deploy.judge_trips import burst_bound

POLICY = JudgePolicy()


def sessions(
    seed: int, number: int, *, ratio: float = 1.0, errors: float = 0.0, support: float = 0.8, share: float = 0.5
) -> tuple[Session, ...]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        candidate = bool(rng.random() < share)
        failures = int(rng.binomial(2, errors)) if candidate else 0
        ttft = rng.normal(3.0, 0.35) + (math.log(ratio) if candidate else 0.0)
        score = min(1.0, max(0.0, rng.normal(support if candidate else 0.8, 0.15)))
        samples = {"errors": Sample(failures, 2), "ttft": Sample(2 * ttft, 2), "support": Sample(2 * score, 2)}
        made.append(Session(of_candidate=candidate, samples=samples, requests=2))
    return tuple(made)


def decide(*args: int, last_step: bool = True, **kwargs: float) -> str:
    return judge(Observations(sessions(*args, **kwargs)), POLICY, last_step=last_step).outcome


def test_an_equal_candidate_is_promoted_once_enough_is_seen() -> None:
    assert decide(1, 30) == "hold"
    assert decide(1, 500) == "promote"


def test_before_the_last_step_an_equal_candidate_only_advances() -> None:
    assert decide(1, 500, last_step=False) == "advance"


@pytest.mark.parametrize("harm", [{"ratio": 1.7}, {"errors": 0.2}, {"support": 0.4}])
def test_each_harm_rolls_back_at_any_step(harm: dict[str, float]) -> None:
    assert decide(2, 400, last_step=True, **harm) == "rollback"
    assert decide(2, 400, last_step=False, **harm) == "rollback"


@pytest.mark.parametrize(("harm", "name"), [({"ratio": 1.7}, "ttft"), ({"errors": 0.2}, "errors")])
def test_a_rollback_names_the_metric_that_is_worse(harm: dict[str, float], name: str) -> None:
    decision = judge(Observations(sessions(2, 400, **harm)), POLICY, last_step=True)
    assert decision.reasons[0].startswith(name)
    values = decision.evidence["metrics"][name]
    assert values["e_value"] >= values["e_threshold_alone"]


def test_what_is_tolerated_does_not_roll_back() -> None:
    lenient = JudgePolicy(tolerated_ttft_ratio=2.0, max_ttft_ratio=3.0)
    assert judge(Observations(sessions(2, 400, ratio=1.7)), lenient, last_step=True).outcome == "promote"


def test_a_candidate_beyond_its_limit_is_not_promoted() -> None:
    unwatched = MetricPolicy(name="ttft", kind="log_mean", limit=1.4, required=True)
    policy = JudgePolicy(metrics=(unwatched,))
    decision = judge(Observations(sessions(2, 400, ratio=1.5)), policy, last_step=True)
    assert decision.outcome == "hold"
    assert decision.reasons[0].startswith("ttft may still be")


def test_a_declared_metric_is_judged_in_its_direction() -> None:
    made = [
        replace(one, samples={**one.samples, "accuracy": Sample(1.0 if one.of_candidate or place % 3 else 0.0, 1)})
        for place, one in enumerate(sessions(3, 400))
    ]
    for better, outcome in (("higher", "promote"), ("lower", "rollback")):
        metric = MetricPolicy(name="accuracy", kind="rate", better=better, tolerated=0.0, limit=0.1, weight=20)
        policy = JudgePolicy(metrics=(metric,))
        assert judge(Observations(tuple(made)), policy, last_step=True).outcome == outcome


def test_a_rising_share_under_a_drifting_load_is_no_harm() -> None:
    """Load doubles the latency of both while the share goes from 10 to 50%: pooled, the candidate would look slower."""
    rng, made = np.random.default_rng(4), []
    for place in range(600):
        candidate = bool(rng.random() < (0.1 if place < 300 else 0.5))
        ttft = rng.normal(3.0, 0.3) + (0.7 if place >= 300 else 0.0)
        made.append(Session(candidate, {"ttft": Sample(ttft, 1)}))
    policy = JudgePolicy(default_metrics=False, metrics=(built_in(POLICY)[1],))
    assert judge(Observations(tuple(made)), policy, last_step=True).outcome == "promote"


def test_an_identical_candidate_is_rolled_back_in_at_most_one_percent_of_rollouts() -> None:
    rolled_back = 0
    for seed in range(100):
        every = sessions(seed, 300)
        looks = (judge(Observations(every[:n]), POLICY, last_step=False).outcome for n in range(60, 301, 60))
        rolled_back += "rollback" in looks
    assert rolled_back <= 1


# trips


def trips(*failures: bool, **fields: object) -> Observations:
    return Observations((), Trips(recent=tuple((f"s{n}", bad) for n, bad in enumerate(failures)), **fields))  # type: ignore[arg-type]


def test_a_burst_of_failures_trips_at_once() -> None:
    decision = judge(trips(*(False,) * 5, *(True,) * 5), POLICY, last_step=False)
    assert decision.outcome == "rollback"
    assert "last 10 requests failed" in decision.reasons[0]


@pytest.mark.parametrize(
    "seen",
    [
        trips(*(True,) * 5, *(False,) * 10),
        trips(*(True,) * 5, champion_recent=(True,) * 4),
        Observations((), Trips(recent=(("one", True),) * 10)),
        trips(leaks=1, champion_leaks=1),
        trips(restarts=2),
    ],
    ids=["old", "the champion fails too", "one session", "the champion leaks too", "two restarts"],
)
def test_what_is_no_burst_leak_or_crash_loop_does_not_trip(seen: Observations) -> None:
    assert judge(seen, POLICY, last_step=False).outcome == "advance"


@pytest.mark.parametrize("fields", [{"leaks": 1}, {"restarts": 3}])
def test_a_leaked_secret_and_a_crash_loop_trip_at_once(fields: dict[str, int]) -> None:
    assert judge(trips(**fields), POLICY, last_step=False).outcome == "rollback"


def test_the_bound_of_a_bursts_false_alarm_holds() -> None:
    rng = random.Random(5)
    runs, requests, rate, hits = 400, 300, 0.15, 0
    for _ in range(runs):
        failed = [rng.random() < rate for _ in range(requests)]
        hits += any(sum(failed[max(0, n - 9) : n + 1]) >= POLICY.trip_errors for n in range(requests))
    assert hits / runs <= burst_bound(POLICY, rate, requests)
    assert burst_bound(POLICY, 0.02, 600) < 0.001


# which sessions, which values


def event(session: str, second: int, track: str, **fields: object) -> EndpointEvent:
    values = {
        "trace_id": f"{second:032x}",
        "time": f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}",
        "session_id": session,
        "endpoint": "assistant",
        "release_id": "r",
        "track": track,
        "status": 200,
    }
    return EndpointEvent(**{**values, **fields})


def test_requests_of_a_session_count_once_and_warm_up_is_left_out() -> None:
    events = [
        event("cold", 0, "candidate", ttft_ms=900.0),
        event("a", 1, "candidate", ttft_ms=10.0, support_score=0.5),
        event("a", 2, "candidate", ttft_ms=1000.0, support_score=1.0, status=502),
        event("b", 3, "champion", ttft_ms=10.0),
        event("c", 4, "champion"),
        event("d", 5, "shadow", ttft_ms=1.0),
    ]
    seen = observe(events, JudgePolicy(warm_up_sessions=1))
    assert [session.of_candidate for session in seen.sessions] == [True, False]
    samples = seen.sessions[0].samples
    assert (samples["errors"].total, samples["errors"].count) == (1, 2)
    assert samples["support"].mean == 0.75
    assert samples["ttft"].mean == pytest.approx(4.605, abs=0.01)
    assert "ttft" not in seen.sessions[1].samples
    assert [failed for _, failed in seen.trips.recent] == [False, False, True]


def test_the_order_of_events_within_a_look_does_not_matter() -> None:
    rng = random.Random(6)
    events = [
        event(f"s{n // 2}", n, "candidate" if n % 6 < 2 else "champion", ttft_ms=rng.lognormvariate(4, 0.4))
        for n in range(400)
    ]
    shuffled = rng.sample(events, len(events))
    assert judge(observe(shuffled, POLICY), POLICY, last_step=True) == judge(
        observe(events, POLICY), POLICY, last_step=True
    )


def test_the_champions_sessions_from_before_the_candidate_are_left_out() -> None:
    events = [event(f"s{n}", n, "champion") for n in range(10)] + [event("new", 8, "candidate")]
    policy = JudgePolicy(warm_up_sessions=0)
    assert observe(events, policy).number(of_candidate=False) == 2
    assert observe(events, policy.model_copy(update={"concurrent": False})).number(of_candidate=False) == 10


def test_sessions_can_be_judged_at_the_same_age() -> None:
    events = [event("old", second, "candidate", status=500 if second == 50 else 200) for second in (0, 10, 50)]
    events += [event("young", 45, "champion")]
    seen = observe(events, JudgePolicy(warm_up_sessions=0, session_age_s=20))
    assert [(one.of_candidate, one.requests) for one in seen.sessions] == [(True, 2)]
    assert seen.sessions[0].samples["errors"].total == 0


def test_every_built_in_metric_is_read_from_an_event() -> None:
    full = event(
        "a", 1, "candidate", ttft_ms=100.0, latency_ms=500.0, completion_tokens=5, cost=0.002, finish_reason="length",
        guardrail_actions=("output:pii:mask", "input:topic:block"), format_valid=False, refused=True, feedback=-1,
        support_score=0.4,
    )  # fmt: skip
    samples = observe([full], JudgePolicy(warm_up_sessions=0)).sessions[0].samples
    assert set(samples) == {metric.name for metric in metrics_of(POLICY)}
    assert samples["inter_token"].mean == pytest.approx(math.log(100))
    rates = ("guardrail_blocks", "guardrail_flags", "invalid_format", "refusals", "cut_short", "negative_feedback")
    assert all(samples[name].mean == 1.0 for name in rates)
    assert samples["errors"].mean == 0.0


def test_a_metric_of_ones_own_reads_a_field_or_an_extra_value() -> None:
    metrics = (
        MetricPolicy(name="chars", field="prompt_tokens", kind="log_mean"),
        MetricPolicy(name="judge_score", kind="bounded_mean", better="higher"),
    )
    one = event("a", 1, "candidate", prompt_tokens=7)
    policy = JudgePolicy(metrics=metrics, warm_up_sessions=0)
    samples = observe([one], policy, {one.trace_id: {"judge_score": 0.25}}).sessions[0].samples
    assert samples["chars"].mean == pytest.approx(math.log(7))
    assert samples["judge_score"].mean == 0.25
    with pytest.raises(InputError, match="judge_score is 7: a bounded_mean needs a number from 0 to 1"):
        observe([one], policy, {one.trace_id: {"judge_score": 7}})


def test_a_secret_that_a_rail_caught_is_a_leak_of_the_candidate() -> None:
    events = [event("a", 1, "candidate", guardrail_actions=("output:secrets:mask",))]
    assert judge(observe(events, POLICY), POLICY, last_step=False).outcome == "rollback"
    at_input = [event("a", 1, "candidate", guardrail_actions=("input:secrets:mask",))]
    assert judge(observe(at_input, POLICY), POLICY, last_step=False).outcome == "advance"


# what it says


def test_no_data_holds_and_says_how_much_is_needed() -> None:
    decision = judge(Observations(()), POLICY, last_step=True)
    assert decision.outcome == "hold"
    assert f"{POLICY.min_sessions} are needed" in decision.reasons[0]


def test_evidence_is_json_and_names_its_policy() -> None:
    decision = judge(Observations(sessions(1, 100)), POLICY, last_step=True)
    assert set(decision.evidence) >= {"candidate_sessions", "champion_sessions", "e_value", "e_threshold", "metrics"}
    assert set(decision.evidence["metrics"]) == {"errors", "ttft", "support"}
    assert "cost" in decision.evidence["without_values"]
    json.dumps(decision.evidence, allow_nan=False)
    assert decision.policy_version == judge(Observations(()), POLICY, last_step=True).policy_version
    assert decision.policy_version != judge(Observations(()), JudgePolicy(alpha=0.01), last_step=True).policy_version


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metrics": [{"name": "a", "kind": "rate"}] * 2}, "declared twice"),
        ({"default_metrics": False}, "no metric"),
        ({"metrics": [{"name": "a", "kind": "log_mean", "tolerated": 0.1}]}, "ratios for the worse"),
        ({"metrics": [{"name": "a", "kind": "rate", "required": True}]}, "needs a limit"),
        ({"metrics": [{"name": "a", "kind": "median"}]}, "metrics.0.kind"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused_by_name(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        metrics_of(JudgePolicy.load(values))


def test_a_policy_survives_being_a_pipeline_parameter() -> None:
    metric = MetricPolicy(name="a", kind="bounded_mean", limit=0.1)
    policy = JudgePolicy(metrics=(metric,))
    assert JudgePolicy.load(policy.parameters()) == policy
