"""The breaker's states, on a clock of our own."""

import pytest

from serin.serve.backends.breaker import Breaker


class Clock:
    """Time that tests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.enter()
        breaker.failed()


def succeed(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.enter()
        breaker.succeeded()


def test_it_opens_after_enough_failures_and_closes_after_one_success(clock: Clock) -> None:
    breaker = Breaker(failures=3, open_s=2, clock=clock)
    fail(breaker, 2)
    assert breaker.admits()
    fail(breaker)
    assert (breaker.state, breaker.admits(), breaker.opens_in_s) == ("open", False, 2.0)
    clock.now += 2
    assert (breaker.state, breaker.admits()) == ("half-open", True)
    breaker.enter()
    assert not breaker.admits(), "one request tries, the others wait"
    breaker.works()
    assert (breaker.state, breaker.admits()) == ("closed", True)
    fail(breaker, 2)
    assert breaker.state == "closed", "what was before is forgotten"


def test_each_failed_try_doubles_the_wait_up_to_a_bound(clock: Clock) -> None:
    breaker = Breaker(failures=1, open_s=2, max_open_s=5, clock=clock)
    fail(breaker)
    waits = []
    for _ in range(3):
        waits.append(breaker.opens_in_s)
        clock.now += breaker.opens_in_s
        fail(breaker)
    assert [*waits, breaker.opens_in_s] == [2, 4, 5, 5]
    clock.now += 5
    succeed(breaker)
    fail(breaker)
    assert breaker.opens_in_s == 2 or breaker.state == "closed"


def test_few_failures_among_many_successes_do_not_open_it(clock: Clock) -> None:
    breaker = Breaker(failures=3, clock=clock)
    for _ in range(10):
        succeed(breaker, 2)
        fail(breaker)
    assert breaker.state == "closed"


def test_old_failures_are_forgotten(clock: Clock) -> None:
    breaker = Breaker(failures=3, window_s=10, clock=clock)
    for _ in range(5):
        fail(breaker)
        clock.now += 6
    assert breaker.state == "closed"


def test_a_client_that_went_away_frees_the_try(clock: Clock) -> None:
    breaker = Breaker(failures=1, open_s=1, clock=clock)
    fail(breaker)
    clock.now += 1
    breaker.enter()
    breaker.left()
    assert breaker.admits()


def test_requests_from_before_it_opened_do_not_open_it_for_longer(clock: Clock) -> None:
    breaker = Breaker(failures=2, open_s=2, clock=clock)
    for _ in range(5):
        breaker.enter()
    for _ in range(5):
        breaker.failed()
    assert breaker.opens_in_s == 2


def test_news_of_the_server_lets_the_next_request_try_at_once(clock: Clock) -> None:
    breaker = Breaker(failures=1, open_s=20, clock=clock)
    fail(breaker)
    breaker.try_now()
    assert breaker.admits()
