from datetime import UTC, datetime
from pathlib import Path

import pytest

from serin.core.events import EndpointEvent
from serin.serve.budgets import Budgets, KeyLimits, Prices
from serin.serve.errors import RequestError

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


def test_a_key_may_ask_at_its_rate_with_bursts():
    clock = Clock()
    budgets = Budgets(lambda key: KeyLimits(requests_per_minute=60, burst_requests=3), clock=clock)
    refusals = []
    for _ in range(100):  # ten seconds
        try:
            budgets.take("a")
        except RequestError as error:
            refusals.append((error.status, error.code, error.headers["retry-after"]))
        clock.now += 0.1
    assert len(refusals) in (87, 88)
    assert set(refusals) == {(429, "rate_limit_exceeded", "1")}
    budgets.take("b")


def test_a_key_may_use_its_tokens_of_the_day_and_again_the_next():
    clock = Clock()
    budgets = Budgets(lambda key: KeyLimits(tokens_per_day=100), clock=clock)
    budgets.take("a")
    budgets.spend("a", 100)
    with pytest.raises(RequestError) as refused:
        budgets.take("a")
    assert refused.value.code == "insufficient_quota"
    assert refused.value.headers["retry-after"] == str(12 * 3600)
    budgets.take("b")
    clock.now += 12 * 3600
    budgets.take("a")
    assert budgets.used_today("a") == 0


def test_a_restart_forgets_nothing_of_the_day(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "budgets.json"
    before = Budgets(lambda key: KeyLimits(tokens_per_day=100), file, Clock())
    before.spend("a", 60)
    before.save()
    after = Budgets(lambda key: KeyLimits(tokens_per_day=100), file, Clock())
    assert after.used_today("a") == 60
    file.write_text("torn")
    assert Budgets(lambda key: KeyLimits(tokens_per_day=100), file, Clock()).used_today("a") == 0
    assert "cannot be read" in caplog.text


def test_an_answer_costs_its_tokens_and_its_time():
    event = EndpointEvent(
        trace_id="0" * 32, time="2026-01-01T00:00:00+00:00", session_id="s", endpoint="a", release_id="r",
        track="champion", status=200, prompt_tokens=2000, completion_tokens=500, latency_ms=3000,
    )  # fmt: skip
    prices = Prices(prompt_per_1k_tokens=0.5, completion_per_1k_tokens=2.0, per_second=0.01)
    assert prices.cost(event) == pytest.approx(1.0 + 1.0 + 0.03)
    assert Prices().cost(event) is None
