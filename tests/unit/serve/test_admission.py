"""The limit is judged on a simulated engine: slots that take requests from a queue, with times drawn from a seed."""

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from serin.serve.admission import Admission, AdmissionConfig, Lease
from serin.serve.budgets import Budgets, KeyLimits
from serin.serve.errors import RequestError


@dataclass
class Engine:
    """Answers with lognormal service times, ``slots`` at once; slower by ``factor`` from ``slow_from_s`` on."""

    slots: int
    mean_s: float
    seed: int
    slow_from_s: float = math.inf
    factor: float = 1.0
    now: float = 0.0
    busy: int = 0
    queue: "deque[tuple[Lease, float]]" = field(default_factory=deque)
    ends: list[tuple[float, int, Lease, float]] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    refused: int = 0

    def run(self, config: AdmissionConfig | None, rate: float, seconds: float, burst: int = 1) -> Admission:
        """Poisson arrivals, ``burst`` at a time, at a mean rate per second."""
        draw = random.Random(self.seed)
        admission = Admission(config, clock=lambda: self.now)
        arrival = draw.expovariate(rate / burst)
        while arrival < seconds or self.ends:
            if arrival < seconds and (not self.ends or arrival <= self.ends[0][0]):
                self.now = arrival
                arrival += draw.expovariate(rate / burst)
                for _ in range(burst):
                    self._arrive(admission)
            else:
                self.now, _, lease, came = heapq.heappop(self.ends)
                self.busy -= 1
                self.latencies.append((self.now, (self.now - came) * 1000))
                lease.done(tokens=10)
            while self.queue and self.busy < self.slots:
                lease, came = self.queue.popleft()
                self.busy += 1
                mean_s = self.mean_s * (self.factor if self.now >= self.slow_from_s else 1.0)
                took = mean_s * math.exp(draw.gauss(-0.125, 0.5))
                heapq.heappush(self.ends, (self.now + took, len(self.latencies) + len(self.ends), lease, came))
        return admission

    def p95_ms(self, since_s: float = 0.0) -> float:
        """Of the answers that ended since a time."""
        found = sorted(latency for when, latency in self.latencies if when >= since_s)
        return found[math.ceil(0.95 * len(found)) - 1]

    def goodput(self, bound_ms: float, seconds: float) -> float:
        """Answers within the bound, as a share of what the engine can do."""
        return sum(latency <= bound_ms for _, latency in self.latencies) / (seconds * self.slots / self.mean_s)

    def _arrive(self, admission: Admission) -> None:
        try:
            self.queue.append((admission.enter(), self.now))
        except RequestError:
            self.refused += 1


CASES = [(4, 0.2, 1000.0), (16, 0.5, 2500.0), (1, 0.05, 400.0), (8, 1.0, 3000.0)]


@pytest.mark.parametrize(("slots", "mean_s", "bound_ms"), CASES)
@pytest.mark.parametrize("burst", [1, 5])
def test_under_threefold_load_answers_keep_their_bound_and_the_engine_stays_busy(slots, mean_s, bound_ms, burst):
    capacity = slots / mean_s
    seconds = 3000 / capacity
    engine = Engine(slots, mean_s, seed=1)
    engine.run(AdmissionConfig(p95_ms=bound_ms), 3 * capacity, seconds, burst)
    assert engine.p95_ms() <= bound_ms
    assert engine.goodput(bound_ms, seconds) >= 0.8
    unlimited = Engine(slots, mean_s, seed=1)
    unlimited.run(None, 3 * capacity, seconds, burst)
    assert unlimited.goodput(bound_ms, seconds) < 0.2


def test_below_capacity_hardly_anything_is_refused():
    engine = Engine(16, 0.5, seed=2)
    engine.run(AdmissionConfig(p95_ms=2500), 0.7 * 32, 200)
    assert engine.refused < 0.02 * len(engine.latencies)


def test_an_engine_that_becomes_slower_gets_less():
    engine = Engine(16, 0.5, seed=3, slow_from_s=100, factor=2.0)
    admission = engine.run(AdmissionConfig(p95_ms=2500), 60, 300)
    assert engine.p95_ms(since_s=130) <= 2500
    assert admission.limit is not None
    assert admission.limit < 40


def test_without_a_bound_only_the_highest_number_limits():
    admission = Admission(AdmissionConfig(max_in_flight=2))
    leases = [admission.enter(), admission.enter()]
    with pytest.raises(RequestError) as refused:
        admission.enter()
    assert (refused.value.status, refused.value.code) == (429, "overloaded")
    assert int(refused.value.headers["retry-after"]) >= 1
    leases[0].done()
    leases[0].done()
    admission.enter()
    assert admission.in_flight == 2
    assert admission.refused == {"overloaded": 1}
    Admission().enter("anyone").done(tokens=5)


def test_keys_have_their_budgets_and_a_refused_request_takes_no_place():
    admission = Admission(budgets=Budgets(lambda key: KeyLimits(tokens_per_day=10) if key else KeyLimits()))
    with admission.enter("a") as lease:
        lease.done(tokens=10)
    with pytest.raises(RequestError) as refused:
        admission.enter("a")
    assert refused.value.code == "insufficient_quota"
    assert admission.in_flight == 0
    admission.enter("")


def test_answers_that_were_none_do_not_steer():
    now = 0.0
    admission = Admission(AdmissionConfig(p95_ms=100, start_in_flight=4), clock=lambda: now)
    for _ in range(200):
        lease = admission.enter()
        now += 5.0
        lease.done()  # blocked, failed
    assert admission.limit == 4
    for _ in range(200):
        lease = admission.enter()
        now += 5.0
        lease.done(tokens=3)
    assert admission.limit == 1


def test_the_bound_can_be_on_the_first_token():
    now = 0.0
    admission = Admission(AdmissionConfig(p95_ms=100, measure="ttft", start_in_flight=4), clock=lambda: now)
    for _ in range(200):
        lease = admission.enter()
        now += 5.0
        lease.done(tokens=3, ttft_ms=20)
    assert admission.limit == 4


def test_a_few_answers_that_are_far_too_late_are_enough():
    now = 0.0
    admission = Admission(AdmissionConfig(p95_ms=100, start_in_flight=16), clock=lambda: now)
    leases = [admission.enter() for _ in range(16)]
    now = 2.0  # a slow engine: forty answers, which a whole window needs, would take it minutes
    for number, lease in enumerate(leases):
        assert admission.limit == (16 if number < 3 else 9)
        lease.done(tokens=3)
