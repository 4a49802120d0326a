"""Simulated rollouts: what is known about them must come out."""

import numpy as np
import pytest

from serin.core.errors import InputError
from serin.deploy.config import JudgePolicy
from serin.deploy.judge import judge
from serin.deploy.judge_metrics import metrics_of
from serin.deploy.judge_sessions import Request, observe_requests
from serin.deploy.simulate import (
    Harm,
    Plan,
    RecordedTraffic,
    SyntheticTraffic,
    Traffic,
    assign,
    default_harms,
    harmed,
    report,
    roll_out,
    simulate,
)

POLICY = JudgePolicy()
SHORT = Plan(num_requests=2400, looks=12, shares_percent=(30.0,))


def test_gross_harms_are_found_and_identical_releases_are_let_pass() -> None:
    model = SyntheticTraffic()
    same = simulate(POLICY, model, harm=None, plan=SHORT, runs=60, seed=1)
    assert same.detected_fraction <= 1 / 60
    for harm in (Harm("ttft", 1.6), Harm("errors", 0.15), Harm("support", 0.3)):
        found = simulate(POLICY, model, harm=harm, plan=SHORT, runs=15, seed=1)
        assert found.detected_fraction == 1.0, harm
        assert found.fraction("promote") == 0.0, harm


def test_a_simulated_rollout_ends_as_the_judge_says_of_its_requests() -> None:
    policy = JudgePolicy(trip_errors=9)
    for seed, harm in enumerate([None, Harm("errors", 0.1), Harm("ttft", 1.5), None]):
        rng = np.random.default_rng(seed)
        plan = Plan(num_requests=900, looks=1, shares_percent=(40.0,))
        traffic = SyntheticTraffic().draw(rng, plan.num_requests)
        of_candidate = assign(traffic, plan, rng)
        if harm:
            traffic = harmed(traffic, of_candidate, harm, policy, rng)
        requests = [
            Request(
                of_candidate=bool(of_candidate[session]),
                session=f"{session:05d}",
                time_s=float(place),
                fields={name: float(values[place]) for name, values in traffic.values.items()}.get,
            )
            for place, session in enumerate(traffic.session)
        ]
        decision = judge(observe_requests(requests, policy), policy, last_step=True)
        assert roll_out(policy, traffic, of_candidate, plan).outcome == decision.outcome


def test_a_harm_changes_the_candidate_alone_by_its_size() -> None:
    rng = np.random.default_rng(2)
    traffic = SyntheticTraffic().draw(rng, 60_000)
    of_candidate = assign(traffic, Plan(shares_percent=(50.0,)), rng)
    mine = of_candidate[traffic.session]
    for harm, change in ((Harm("errors", 0.06), 0.06), (Harm("support", 0.2), -0.2)):
        after = harmed(traffic, of_candidate, harm, POLICY, rng).values[harm.metric]
        assert np.array_equal(after[~mine], traffic.values[harm.metric][~mine])
        assert after[mine].mean() - traffic.values[harm.metric][mine].mean() == pytest.approx(change, abs=0.01)
    after = harmed(traffic, of_candidate, Harm("ttft", 1.4), POLICY, rng).values["ttft"]
    assert after[mine] == pytest.approx(1.4 * traffic.values["ttft"][mine])
    with pytest.raises(InputError, match="share errors, ttft, support"):
        harmed(traffic, of_candidate, Harm("cost", 1.4), POLICY, rng)


def test_shares_grow_in_equal_steps_and_sessions_stay_whole() -> None:
    rng = np.random.default_rng(3)
    traffic = SyntheticTraffic().draw(rng, 30_000)
    of_candidate = assign(traffic, Plan(shares_percent=(10.0, 60.0)), rng)
    half = len(of_candidate) // 2
    assert of_candidate[:half].mean() == pytest.approx(0.1, abs=0.02)
    assert of_candidate[half:].mean() == pytest.approx(0.6, abs=0.02)


def recorded(number: int) -> list[Request]:
    rows = [{"ttft_ms": 100.0 + n, "status": 500 if n % 40 == 0 else 200} for n in range(number)]
    return [Request(False, f"s{n // 2}", float(n), row.get) for n, row in enumerate(rows)]


def test_recorded_sessions_are_drawn_whole_with_the_values_they_have() -> None:
    model = RecordedTraffic(recorded(400), metrics_of(POLICY))
    assert model.measured == ("errors", "ttft")
    traffic = model.draw(np.random.default_rng(4), 1000)
    assert len(traffic.session) <= 1000
    assert np.bincount(traffic.session).tolist() == [2] * (int(traffic.session[-1]) + 1)
    first = traffic.values["ttft"][::2]
    assert np.allclose(traffic.values["ttft"][1::2] - first, 1.0)
    with pytest.raises(InputError, match="too few"):
        RecordedTraffic(recorded(40), metrics_of(POLICY))


def test_a_report_has_identical_releases_and_every_harm() -> None:
    model = RecordedTraffic(recorded(400), metrics_of(POLICY))
    harms = default_harms(POLICY, model.measured)
    found = report(POLICY, model, harms, plan=SHORT, runs=4, seed=1)
    assert set(found["harms"]) == {harm.name for harm in harms}
    assert 0 <= found["identical"]["false_rollback_fraction"] < found["identical"]["false_rollback_upper_95"]
    assert report(POLICY, model, harms, plan=SHORT, runs=4, seed=1) == found


def test_a_burst_in_simulated_traffic_trips_before_the_statistics() -> None:
    failed = np.zeros(300)
    failed[100:120] = 1.0
    traffic = Traffic(np.arange(300), {"errors": failed})
    of_candidate = np.ones(300, dtype=bool)
    assert roll_out(POLICY, traffic, of_candidate, Plan(looks=30)).detected == (110, 110)
