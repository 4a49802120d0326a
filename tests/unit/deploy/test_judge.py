import random

import pytest

from serin.core.events import EndpointEvent
from serin.deploy.config import JudgePolicy
from serin.deploy.judge import Observations, Session, judge, observe

POLICY = JudgePolicy()


def sessions(
    seed: int, number: int, *, ratio: float = 1.0, errors: float = 0.0, support: float = 0.8, share: float = 0.5
) -> tuple[Session, ...]:
    rng = random.Random(seed)
    made = []
    for _ in range(number):
        candidate = rng.random() < share
        made.append(
            Session(
                of_candidate=candidate,
                failed=candidate and rng.random() < errors,
                log_ttft=rng.gauss(3.0, 0.35) + (ratio - 1 if candidate else 0.0),
                support=min(1.0, max(0.0, rng.gauss(support if candidate else 0.8, 0.15))),
            )
        )
    return tuple(made)


def decide(*args: int, last_step: bool = True, **kwargs: float) -> str:
    return judge(Observations(sessions(*args, **kwargs), ()), POLICY, last_step=last_step).outcome


def test_an_equal_candidate_is_promoted_once_enough_is_seen() -> None:
    assert decide(1, 30) == "hold"
    assert decide(1, 400) == "promote"


def test_before_the_last_step_an_equal_candidate_only_advances() -> None:
    assert decide(1, 400, last_step=False) == "advance"


@pytest.mark.parametrize("harm", [{"ratio": 1.7}, {"errors": 0.25}, {"support": 0.4}])
def test_each_harm_rolls_back_at_any_step(harm: dict[str, float]) -> None:
    assert decide(2, 400, last_step=True, **harm) == "rollback"
    assert decide(2, 400, last_step=False, **harm) == "rollback"


def test_a_burst_of_failures_trips_at_once() -> None:
    decision = judge(Observations((), (False,) * 5 + (True,) * 5), POLICY, last_step=False)
    assert decision.outcome == "rollback"
    assert "last 10 requests failed" in decision.reasons[0]


def test_old_failures_do_not_trip() -> None:
    decision = judge(Observations((), (True,) * 5 + (False,) * 10), POLICY, last_step=False)
    assert decision.outcome == "advance"


def test_no_data_holds_and_says_how_much_is_needed() -> None:
    decision = judge(Observations((), ()), POLICY, last_step=True)
    assert decision.outcome == "hold"
    assert f"{POLICY.min_sessions} are needed" in decision.reasons[0]


def test_evidence_is_json_and_names_its_policy() -> None:
    decision = judge(Observations(sessions(1, 100), ()), POLICY, last_step=True)
    assert set(decision.evidence) >= {"candidate_sessions", "ttft_ratio", "error_rate_difference", "error_e_value"}
    assert decision.policy_version == judge(Observations((), ()), POLICY, last_step=True).policy_version
    assert (
        decision.policy_version != judge(Observations((), ()), JudgePolicy(alpha=0.01), last_step=True).policy_version
    )


def test_an_identical_candidate_is_rolled_back_in_at_most_one_percent_of_rollouts() -> None:
    rolled_back = sum(
        any(
            judge(Observations(all_of_them[:n], ()), POLICY, last_step=True).outcome == "rollback"
            for n in range(20, 401, 20)
        )
        for all_of_them in (sessions(seed, 400) for seed in range(200))
    )
    assert rolled_back <= 2


def event(session: str, second: int, track: str, **fields: object) -> EndpointEvent:
    values = {
        "trace_id": "0" * 32,
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
    assert [(session.of_candidate, session.failed) for session in seen.sessions] == [(True, True), (False, False)]
    assert seen.sessions[0].support == 0.75
    assert seen.sessions[0].log_ttft == pytest.approx(4.605, abs=0.01)
    assert seen.recent_failures == (False, False, True)
