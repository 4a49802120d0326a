"""A fleet of engines with continuous batching under arriving requests, simulated iteration by iteration.

One engine works in iterations.  Each gives every sequence of its batch one token; waiting requests join at the start of
one, as long as the batch and the iteration's prompt tokens have room, and their prompts are read in it.  Between two
arrivals or completions nothing changes, so the simulation jumps over those iterations at once.

Left out: the KV cache running full (the batch limit stands for it), prefix caching, preemption, network and gateway.
"""

import csv
import gzip
import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Workload:
    """Requests in the order of their arrival."""

    arrival_s: Floats  # (requests,)
    prompt_tokens: Ints  # (requests,)
    completion_tokens: Ints  # (requests,), at least 1

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def rate_per_s(self) -> float:
        """Mean arrivals a second."""
        return len(self) / float(self.arrival_s[-1])


@dataclass(frozen=True)
class Engine:
    """How long an engine's iterations take."""

    name: str
    step_s: Callable[[int], float]
    """Seconds of an iteration by the number of sequences in it."""
    prefill_s_per_token: float
    """Seconds that a prompt token adds; 0 where the steps were measured with prompts in them."""
    max_batch: int
    max_prefill_tokens: int = 8192
    """Prompt tokens in one iteration; a longer prompt has one to itself."""
    gpus: int = 0

    def tokens_per_s(self, batch: int) -> float:
        """Tokens a second with a batch that is always full."""
        return batch / self.step_s(batch)


@dataclass(frozen=True)
class Outcome:
    """What the requests met."""

    ttft_s: Floats  # (requests,)
    latency_s: Floats  # (requests,)
    tokens: int
    busy_fraction: float
    """Of the engines' time, from the first arrival to the last answer."""

    def percentile(self, name: str, percent: float) -> float:
        """A percentile of ``ttft_s`` or ``latency_s``."""
        return float(np.percentile(getattr(self, name), percent))


def simulate(workload: Workload, engine: Engine, replicas: int = 1) -> Outcome:
    """Serve a workload; each request goes to the engine with the fewest unfinished ones.

    Args:
        workload: the requests.
        engine: each replica.
        replicas: number of engines.

    Returns:
        Time to the first token and to the last of each request, from its arrival.
    """
    first, last = np.zeros(len(workload)), np.zeros(len(workload))
    fleet = [_Replica(engine, workload, first, last) for _ in range(replicas)]
    for request, arrival in enumerate(workload.arrival_s.tolist()):
        for replica in fleet:
            replica.run(arrival)
        min(fleet, key=lambda replica: replica.unfinished).take(request, arrival)
    for replica in fleet:
        replica.run(math.inf)
    span = float(last.max() - workload.arrival_s[0])
    return Outcome(
        first - workload.arrival_s,
        last - workload.arrival_s,
        int(sum(replica.tokens for replica in fleet)),
        sum(replica.busy_s for replica in fleet) / (replicas * span),
    )


@dataclass
class _Replica:
    """One engine's state; iterations are counted, and a request ends at a count known when it joins."""

    engine: Engine
    workload: Workload
    first: Floats
    last: Floats
    clock: float = 0.0
    iterations: int = 0
    busy_s: float = 0.0
    tokens: int = 0
    waiting: deque[int] = field(default_factory=deque)
    active: list[tuple[int, int]] = field(default_factory=list)  # heap of (iteration of the last token, request)

    @property
    def unfinished(self) -> int:
        return len(self.waiting) + len(self.active)

    def take(self, request: int, now: float) -> None:
        """Queue a request; an idle engine's clock has stood still."""
        if not self.unfinished:
            self.clock = max(self.clock, now)
        self.waiting.append(request)

    def run(self, until: float) -> None:
        """Iterate until the clock has reached a time or there is nothing to do."""
        while self.unfinished and self.clock < until:
            joined, prompt_tokens = self._admit()
            step = self.engine.step_s(len(self.active))
            count = 1 if joined else self._unchanged(step, until)
            self._iterate(count, count * step + prompt_tokens * self.engine.prefill_s_per_token)
            self.first[joined] = self.clock
            while self.active and self.active[0][0] <= self.iterations:
                self.last[heapq.heappop(self.active)[1]] = self.clock

    def _admit(self) -> tuple[list[int], int]:
        """Requests that join the next iteration, and their prompt tokens."""
        joined: list[int] = []
        prompt_tokens = 0
        while self.waiting and len(self.active) < self.engine.max_batch:
            size = int(self.workload.prompt_tokens[self.waiting[0]])
            if joined and prompt_tokens + size > self.engine.max_prefill_tokens:
                break
            request = self.waiting.popleft()
            joined.append(request)
            prompt_tokens += size
            heapq.heappush(self.active, (self.iterations + int(self.workload.completion_tokens[request]), request))
        return joined, prompt_tokens

    def _unchanged(self, step: float, until: float) -> int:
        """Iterations until a sequence ends, or the first that ends after ``until``."""
        remaining = self.active[0][0] - self.iterations
        return remaining if math.isinf(until) else max(1, min(remaining, math.ceil((until - self.clock) / step)))

    def _iterate(self, count: int, seconds: float) -> None:
        self.iterations += count
        self.tokens += count * len(self.active)
        self.clock += seconds
        self.busy_s += seconds


# workloads


def poisson(rate_per_s: float, requests: int, lengths: "Lengths", seed: int = 0) -> Workload:
    """Independent arrivals."""
    return renewal(rate_per_s, requests, lengths, cv=1.0, seed=seed)


def renewal(rate_per_s: float, requests: int, lengths: "Lengths", *, cv: float, seed: int = 0) -> Workload:
    """Gamma-distributed gaps; a coefficient of variation above 1 comes in bursts, 1 is Poisson."""
    rng = np.random.default_rng(seed)
    shape = 1 / cv**2
    gaps = rng.gamma(shape, 1 / (rate_per_s * shape), requests)
    return Workload(np.cumsum(gaps), *lengths.draw(requests, rng))


@dataclass(frozen=True)
class Lengths:
    """Log-normal prompt and completion lengths, in tokens."""

    prompt_median: float
    completion_median: float
    prompt_sigma: float
    completion_sigma: float
    longest: int = 8192

    def draw(self, requests: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        prompts = rng.lognormal(math.log(self.prompt_median), self.prompt_sigma, requests)
        completions = rng.lognormal(math.log(self.completion_median), self.completion_sigma, requests)
        return tuple(np.clip(np.rint(one), 1, self.longest).astype(np.int64) for one in (prompts, completions))  # type: ignore[return-value]


def trace(path: Path, speedup: float = 1.0, requests: int | None = None) -> Workload:
    """A recorded trace with the columns offset_s, ContextTokens and GeneratedTokens (.csv.gz), sped up."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))[:requests]
    times = np.array([float(row["offset_s"]) for row in rows]) / speedup
    order = np.argsort(times, kind="stable")
    prompts = np.array([int(row["ContextTokens"]) for row in rows])[order]
    completions = np.maximum(1, np.array([int(row["GeneratedTokens"]) for row in rows])[order])
    return Workload(times[order], prompts, completions)


# engines


def measured_engine(name: str, tokens_per_s: dict[int, float]) -> Engine:
    """An engine from its measured throughput by number of clients; straight lines between the step times.

    Beyond the largest measured batch requests wait: nothing is extrapolated.
    """
    batches = sorted(tokens_per_s)
    steps = [batch / tokens_per_s[batch] for batch in batches]
    largest = batches[-1]
    table = [float(np.interp(batch, batches, steps)) for batch in range(largest + 1)]
    return Engine(name, table.__getitem__, 0.0, largest)


@dataclass(frozen=True)
class Gpu:
    """An accelerator's data sheet, and how much of it is reached."""

    name: str
    flops: float
    """Dense bf16, operations a second."""
    bytes_per_s: float
    memory_bytes: float
    flops_fraction: float = 0.5
    bytes_fraction: float = 0.8


def gpu_engine(
    gpu: Gpu,
    parameters: float,
    *,
    gpus: int = 1,
    weight_bytes: float = 2.0,
    kv_bytes_per_token: float,
    context_tokens: float,
    overhead_s: float,
    batch_limit: int = 256,
) -> Engine:
    """An engine from a roofline: weights and KV cache are read, 2 operations a parameter and token are done.

    Args:
        gpu: the accelerator.
        parameters: of the model, all of them active.
        gpus: over which the model is split.
        weight_bytes: a parameter's; 2 computes in bf16, 1 in FP8 at twice the rate.
        kv_bytes_per_token: of all layers.
        context_tokens: a sequence's, on average.
        overhead_s: what an iteration takes beside that (launches, sampling, communication): from a measurement.
        batch_limit: sequences at most; fewer if the KV cache holds fewer.

    Raises:
        ValueError: the weights do not fit.
    """
    room = 0.9 * gpus * gpu.memory_bytes - weight_bytes * parameters
    if room <= 0:
        raise ValueError(f"{parameters:.2g} parameters do not fit {gpus} {gpu.name}.")
    bandwidth = gpus * gpu.bytes_per_s * gpu.bytes_fraction
    compute = gpus * gpu.flops * gpu.flops_fraction * 2 / weight_bytes
    weights_s = weight_bytes * parameters / bandwidth
    sequence_s = kv_bytes_per_token * context_tokens / bandwidth
    token_s = 2 * parameters / compute

    def step_s(batch: int) -> float:
        return overhead_s + max(weights_s, batch * token_s) + batch * sequence_s

    fitting = max(1, int(room / (kv_bytes_per_token * context_tokens)))
    return Engine(f"{parameters / 1e9:g}B on {gpus} {gpu.name}", step_s, token_s, min(batch_limit, fitting), gpus=gpus)


# on paper


def erlang_c(servers: int, offered: float) -> float:
    """Probability that an M/M/c arrival waits (Erlang 1917), by the stable recursion of Erlang B.

    Args:
        servers: c.
        offered: arrival rate times mean service time, below c.
    """
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    utilisation = offered / servers
    return blocked / (1 - utilisation * (1 - blocked))


def largest_rate(holds: Callable[[float], bool], low: float, high: float, steps: int = 9) -> float:
    """The largest rate at which something still holds, by bisection on a log scale; 0 if not even at ``low``."""
    if not holds(low):
        return 0.0
    for _ in range(steps):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
