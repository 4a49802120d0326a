"""What a judge's policy does to traffic, by simulation: false rollbacks, detections, requests needed.

Traffic is drawn session by session, from a model or, with replacement, from recorded sessions (so that their own
spread, and the dependence of requests within them, stay as they are).  A harm is put on the candidate's requests; a
rollout without one compares identical releases.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from serin.core.errors import InputError
from serin.deploy.config import JudgePolicy, MetricPolicy
from serin.deploy.judge import combined_log_e, harm_path, proof_path
from serin.deploy.judge_metrics import metrics_of, value_of
from serin.deploy.judge_sessions import Request, Stream
from serin.deploy.sequential import Bools, Floats, Ints

HARM_CORRELATION = 0.1
"""Within-session correlation of failures that a harm adds."""


@dataclass(frozen=True)
class Traffic:
    """Requests in order of arrival, a session's together."""

    session: Ints
    """(requests,) number of the session, from 0 upwards."""
    values: Mapping[str, Floats]
    """(requests,) by name of the metric; NaN where a request has no value."""


class TrafficModel(Protocol):
    """Where simulated traffic comes from."""

    def draw(self, rng: np.random.Generator, num_requests: int) -> Traffic:
        """So many requests, whole sessions."""
        ...


@dataclass(frozen=True)
class SyntheticTraffic:
    """A chat endpoint: sessions of geometric length, with what differs between sessions and between requests."""

    mean_requests: float = 3.0
    """A session's, on average."""
    error_rate: float = 0.02
    error_correlation: float = 0.1
    """Within-session correlation of failures (beta-binomial)."""
    ttft_ms: float = 400.0
    """Median."""
    session_sd: float = 0.3
    """Of log TTFT, between sessions."""
    request_sd: float = 0.4
    """Of log TTFT, within sessions."""
    support: float = 0.75
    """Mean support score."""

    def draw(self, rng: np.random.Generator, num_requests: int) -> Traffic:
        """So many requests, whole sessions."""
        lengths = rng.geometric(1 / self.mean_requests, size=num_requests)
        lengths = lengths[: np.searchsorted(np.cumsum(lengths), num_requests)]
        session = np.repeat(np.arange(len(lengths)), lengths)
        rates = correlated_rates(rng, self.error_rate, self.error_correlation, len(lengths))
        level = rng.normal(math.log(self.ttft_ms), self.session_sd, len(lengths))
        quality = rng.normal(self.support, 0.1, len(lengths))
        return Traffic(
            session=session,
            values={
                "errors": (rng.random(len(session)) < rates[session]).astype(float),
                "ttft": np.exp(level[session] + rng.normal(0, self.request_sd, len(session))),
                "support": np.clip(quality[session] + rng.normal(0, 0.12, len(session)), 0.0, 1.0),
            },
        )


class RecordedTraffic:
    """Sessions as they were recorded, drawn with replacement."""

    def __init__(self, requests: Sequence[Request], metrics: Sequence[MetricPolicy]) -> None:
        """Keep the values of the champion's requests.

        Raises:
            InputError: there are too few sessions to draw from, or a value does not fit its metric.
        """
        by_session: dict[str, list[Request]] = {}
        for request in sorted(requests, key=lambda one: one.time_s):
            by_session.setdefault(request.session, []).append(request)
        if len(by_session) < 30:
            raise InputError(f"{len(by_session)} recorded sessions are too few to simulate with: give at least 30.")
        groups = list(by_session.values())
        self._lengths = np.array([len(group) for group in groups])
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._values = {}
        for metric in metrics:
            values = [value_of(metric, one.fields, one.extra) for group in groups for one in group]
            if any(value is not None for value in values):
                self._values[metric.name] = np.array([math.nan if value is None else value for value in values])

    @property
    def measured(self) -> tuple[str, ...]:
        """The metrics that the recorded sessions have values of."""
        return tuple(self._values)

    def draw(self, rng: np.random.Generator, num_requests: int) -> Traffic:
        """So many requests, whole sessions."""
        chosen = rng.integers(len(self._lengths), size=num_requests)
        chosen = chosen[: np.searchsorted(np.cumsum(self._lengths[chosen]), num_requests)]
        lengths = self._lengths[chosen]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        request = np.repeat(self._starts[chosen], lengths) + within
        return Traffic(
            session=np.repeat(np.arange(len(chosen)), lengths),
            values={name: values[request] for name, values in self._values.items()},
        )


@dataclass(frozen=True)
class Harm:
    """One thing that is wrong with the candidate."""

    metric: str
    size: float
    """A ratio for a ``log_mean`` (1.4), else what is added to (or, where higher is better, taken from) the mean."""

    @property
    def name(self) -> str:
        """Such as 'ttft=1.4'."""
        return f"{self.metric}={self.size:g}"


@dataclass(frozen=True)
class Rollout:
    """What a simulated rollout came to."""

    outcome: str
    """rollback, promote or hold: what the judge said first."""
    requests: int
    """Of both sides, until then (or the end)."""
    detected: tuple[int, int] | None
    """Requests of both sides, and the candidate's, when it would be rolled back if it were never promoted before, as
    on a step that is not the last; None: never."""


@dataclass(frozen=True)
class Plan:
    """How a simulated rollout runs."""

    num_requests: int = 6000
    looks: int = 30
    """At equal distances."""
    shares_percent: tuple[float, ...] = (10.0,)
    """The candidate's share of sessions; several last equally long."""


@dataclass(frozen=True)
class Summary:
    """Many simulated rollouts of one kind."""

    rollouts: tuple[Rollout, ...] = field(default=())

    def fraction(self, outcome: str) -> float:
        """The share that ended so."""
        return sum(one.outcome == outcome for one in self.rollouts) / len(self.rollouts)

    @property
    def detected_fraction(self) -> float:
        """The share that is rolled back at some look, as long as it is not promoted."""
        return sum(one.detected is not None for one in self.rollouts) / len(self.rollouts)

    def median_detected(self, *, canary: bool) -> float | None:
        """Median of the requests (of both sides, or the candidate's) until detection, never counted as infinite."""
        return _median([one.detected[canary] if one.detected else math.inf for one in self.rollouts])

    @property
    def median_promoted(self) -> float | None:
        """Median of the requests of both sides until promotion, never counted as infinite."""
        return _median([one.requests if one.outcome == "promote" else math.inf for one in self.rollouts])


def _median(values: Sequence[float]) -> float | None:
    middle = sorted(values)[(len(values) - 1) // 2]
    return float(middle) if math.isfinite(middle) else None


def simulate(
    policy: JudgePolicy, model: TrafficModel, *, harm: Harm | None, plan: Plan, runs: int, seed: int
) -> Summary:
    """Roll out so many times, each on traffic of its own.

    Raises:
        InputError: the harm is on a metric that the policy or the traffic does not have.
    """
    rollouts = []
    for run in range(runs):
        rng = np.random.default_rng([seed, run])
        traffic = model.draw(rng, plan.num_requests)
        of_candidate = assign(traffic, plan, rng)
        if harm:
            traffic = harmed(traffic, of_candidate, harm, policy, rng)
        rollouts.append(roll_out(policy, traffic, of_candidate, plan))
    return Summary(tuple(rollouts))


def assign(traffic: Traffic, plan: Plan, rng: np.random.Generator) -> Bools:
    """(sessions,) whose each session is: sticky, by the share at its start."""
    first = np.flatnonzero(np.diff(traffic.session, prepend=-1))
    step = first * len(plan.shares_percent) // max(len(traffic.session), 1)
    return rng.random(len(first)) * 100 < np.array(plan.shares_percent)[step]


def harmed(traffic: Traffic, of_candidate: Bools, harm: Harm, policy: JudgePolicy, rng: np.random.Generator) -> Traffic:
    """The traffic with a harm on the candidate's requests.

    Raises:
        InputError: the policy or the traffic has no such metric.
    """
    metric = next((one for one in metrics_of(policy) if one.name == harm.metric), None)
    if metric is None or harm.metric not in traffic.values:
        known = ", ".join(one.name for one in metrics_of(policy) if one.name in traffic.values)
        raise InputError(f"No harm can be put on {harm.metric!r}: the policy and the traffic share {known}.")
    values = traffic.values[harm.metric].copy()
    mine = of_candidate[traffic.session]
    worse = 1.0 if metric.better == "lower" else -1.0
    if metric.kind == "log_mean":
        values[mine] *= harm.size**worse
    elif metric.kind == "bounded_mean":
        values[mine] = np.clip(values[mine] + worse * harm.size, 0.0, 1.0)
    else:
        good = 0.0 if metric.better == "lower" else 1.0
        unharmed = float(np.nanmean(values == good))
        rates = correlated_rates(rng, min(harm.size / max(unharmed, 1e-9), 1.0), HARM_CORRELATION, len(of_candidate))
        hit = mine & ~np.isnan(values) & (rng.random(len(values)) < rates[traffic.session])
        values[hit] = 1.0 - good
    return Traffic(traffic.session, {**traffic.values, harm.metric: values})


def roll_out(policy: JudgePolicy, traffic: Traffic, of_candidate: Bools, plan: Plan) -> Rollout:
    """Judge one simulated rollout at each of its looks, with the same functions that judge a real one."""
    mine = of_candidate[traffic.session]
    looks = np.linspace(0, len(mine), plan.looks + 1).astype(int)[1:]
    canary = np.cumsum(mine)
    kept = _after_warm_up(of_candidate, policy)
    streams = {
        name: _stream(traffic, values, of_candidate, kept, policy, name) for name, values in traffic.values.items()
    }
    ended = _sessions_ended(traffic, kept, looks)
    log_e = _log_e(policy, streams, int(kept.sum()))
    rolled = log_e[ended] >= -math.log(policy.alpha)
    if "errors" in traffic.values:
        rolled |= _burst(traffic, mine, policy)[looks - 1]
    promoted = _proven(policy, streams, ended) & _enough(of_candidate[kept], ended, policy)
    promoted &= np.arange(1, plan.looks + 1) > plan.looks * (len(plan.shares_percent) - 1) // len(plan.shares_percent)
    first_bad = int(np.argmax(rolled)) if rolled.any() else None
    first_good = int(np.argmax(promoted)) if promoted.any() else None
    detected = None if first_bad is None else (int(looks[first_bad]), int(canary[looks[first_bad] - 1]))
    if first_bad is not None and (first_good is None or first_bad <= first_good):
        return Rollout("rollback", int(looks[first_bad]), detected)
    if first_good is not None:
        return Rollout("promote", int(looks[first_good]), detected)
    return Rollout("hold", len(mine), detected)


def correlated_rates(rng: np.random.Generator, rate: float, correlation: float, number: int) -> Floats:
    """(number,) rates of failure of sessions: beta with that mean, so that two requests correlate so much."""
    if rate <= 0 or rate >= 1 or correlation <= 0:
        return np.full(number, rate)
    concentration = (1 - correlation) / correlation
    return rng.beta(rate * concentration, (1 - rate) * concentration, number)


def _after_warm_up(of_candidate: Bools, policy: JudgePolicy) -> Bools:
    nth = np.where(of_candidate, np.cumsum(of_candidate), np.cumsum(~of_candidate))
    kept = nth > policy.warm_up_sessions
    if policy.concurrent:
        first = np.flatnonzero(kept & of_candidate)
        kept &= np.arange(len(kept)) >= (first[0] if len(first) else len(kept))
    return kept


def _stream(
    traffic: Traffic, values: Floats, of_candidate: Bools, kept: Bools, policy: JudgePolicy, name: str
) -> Stream:
    kind = next((metric.kind for metric in metrics_of(policy) if metric.name == name), "rate")
    there = ~np.isnan(values)
    terms = np.log(values[there]) if kind == "log_mean" else values[there]
    totals = np.bincount(traffic.session[there], weights=terms, minlength=len(kept))[kept]
    counts = np.bincount(traffic.session[there], minlength=len(kept))[kept]
    place = np.flatnonzero(counts)
    found: Floats = totals[place].astype(np.float64)
    return Stream(place, of_candidate[kept][place], found, counts[place].astype(float))


def _sessions_ended(traffic: Traffic, kept: Bools, looks: Ints) -> Ints:
    """(looks,) how many of the kept sessions have ended by each look."""
    last = np.searchsorted(traffic.session, np.flatnonzero(kept), side="right")
    return np.searchsorted(last, looks, side="right")


def _log_e(policy: JudgePolicy, streams: Mapping[str, Stream], num_sessions: int) -> Floats:
    harmful = [metric for metric in metrics_of(policy) if metric.tolerated is not None]
    total = sum(metric.weight for metric in harmful)
    empty = Stream(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool), np.zeros(0), np.zeros(0))
    parts = []
    for metric in harmful:
        stream = streams.get(metric.name, empty)
        parts.append((metric.weight / total, stream, harm_path(metric, stream)))
    return combined_log_e(parts, num_sessions)


def _proven(policy: JudgePolicy, streams: Mapping[str, Stream], ended: Ints) -> Bools:
    """(looks,) whether every limit that is asked is proven; a metric that the traffic does not have is not asked."""
    proven = np.ones(len(ended), dtype=bool)
    for metric in metrics_of(policy):
        if metric.limit is None or metric.name not in streams:
            continue
        stream = streams[metric.name]
        ends, holds = proof_path(metric, stream, policy.alpha)
        known_from = stream.place[ends - 1] + 1 if len(ends) else np.zeros(0, dtype=np.int64)
        block = np.searchsorted(known_from, ended, side="right") - 1
        proven &= np.where(block >= 0, np.append(holds, False)[block], False)
    return proven


def _enough(of_candidate: Bools, ended: Ints, policy: JudgePolicy) -> Bools:
    candidates = np.append(0, np.cumsum(of_candidate))[ended]
    return np.minimum(candidates, ended - candidates) >= policy.min_sessions


def _burst(traffic: Traffic, mine: Bools, policy: JudgePolicy) -> Bools:
    """(requests,) whether the burst trip has acted by then (the champion's own failures left aside)."""
    tripped = np.zeros(len(mine), dtype=bool)
    places = np.flatnonzero(mine)
    failed = traffic.values["errors"][places] > 0
    total = np.append(0, np.cumsum(failed))
    ends = np.arange(1, len(places) + 1)
    within = total[ends] - total[np.maximum(ends - policy.trip_window, 0)]
    for end in ends[within >= policy.trip_errors]:
        window = slice(max(end - policy.trip_window, 0), end)
        sessions = np.unique(traffic.session[places[window]][failed[window]])
        if len(sessions) >= min(policy.trip_sessions, policy.trip_errors):
            tripped[places[end - 1] :] = True
            break
    return tripped


def default_harms(policy: JudgePolicy, measured: Sequence[str]) -> tuple[Harm, ...]:
    """Harms worth asking about, for the metrics that the traffic has."""
    harms: list[Harm] = []
    for metric in metrics_of(policy):
        if metric.tolerated is None or metric.name not in measured:
            continue
        if metric.kind == "log_mean":
            harms += [Harm(metric.name, round(metric.tolerated * ratio, 3)) for ratio in (1.15, 1.3)]
        else:
            harms += [Harm(metric.name, round(metric.tolerated + step, 3)) for step in (0.03, 0.06, 0.12)]
    return tuple(harms)


def report(
    policy: JudgePolicy, model: TrafficModel, harms: Sequence[Harm], *, plan: Plan, runs: int, seed: int
) -> dict[str, Any]:
    """Identical releases and each harm, as JSON values."""
    same = simulate(policy, model, harm=None, plan=plan, runs=runs, seed=seed)
    found = {}
    for harm in harms:
        summary = simulate(policy, model, harm=harm, plan=plan, runs=runs, seed=seed)
        found[harm.name] = {
            "detected_fraction": summary.detected_fraction,
            "median_canary_requests": summary.median_detected(canary=True),
            "median_requests": summary.median_detected(canary=False),
            "promoted_fraction": summary.fraction("promote"),
        }
    return {
        "runs": runs,
        "num_requests": plan.num_requests,
        "shares_percent": list(plan.shares_percent),
        "looks": plan.looks,
        "identical": {
            "false_rollback_fraction": same.detected_fraction,
            "false_rollback_upper_95": _upper_95(same),
            "promoted_fraction": same.fraction("promote"),
            "median_requests_to_promote": same.median_promoted,
        },
        "harms": found,
    }


def _upper_95(summary: Summary) -> float:
    """Upper 95% limit of the share of detections (Clopper and Pearson, 1934)."""
    from scipy.stats import beta

    number = len(summary.rollouts)
    hits = sum(one.detected is not None for one in summary.rollouts)
    return float(beta.ppf(0.95, hits + 1, number - hits)) if hits < number else 1.0
