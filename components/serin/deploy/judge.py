"""The judge of a canary: per-session observations in, a Decision out.  Pure: it reads no clock and moves no traffic.

*Harm.*  Every metric that may roll back has an e-process against 'the candidate is no worse than tolerated': a
conditional likelihood ratio for rates, an exponentially tilted permutation test for logarithms, a betting test for
scores (serin.deploy.sequential).  Their weighted mean is an e-process against 'no metric is worse' - whatever the
dependence between metrics - and by Ville's inequality ever reaches 1 / alpha with a chance of at most alpha.  It needs
no share of alpha set aside for looks, and gives each metric at least what a weighted Bonferroni split would:
Vovk and Wang, "E-values: calibration, combination and applications" (2021).

*No harm.*  A promotion needs proof on every metric that has a limit.  That is an intersection-union test (Berger,
1982): each proof at the full alpha keeps the chance that a candidate beyond any one limit is promoted below alpha.

*Trips.*  A crash loop, a burst of failures and a leaked secret act at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serin.core.decision import Decision
from serin.core.digests import digest_of
from serin.deploy.config import JudgePolicy, MetricPolicy
from serin.deploy.judge_metrics import metrics_of
from serin.deploy.judge_sessions import Observations, Stream, observe, stream_of
from serin.deploy.judge_trips import tripped
from serin.deploy.sequential import (
    BET_BLOCK,
    ODDS_WEIGHTS,
    SHIFT_WEIGHTS,
    TILT_BLOCK,
    Bools,
    Floats,
    Interval,
    Ints,
    Path,
    betting_path,
    block_differences,
    blocks_of,
    bounded_sequence,
    difference_path,
    difference_sequence,
    log_mixture,
    rate_log_scores,
    shift_log_scores,
    tilted_path,
)

__all__ = [
    "Look",
    "Observations",
    "combined_log_e",
    "harm_path",
    "judge",
    "look_at",
    "observe",
    "proof_path",
]


@dataclass(frozen=True)
class Look:
    """What one metric says now."""

    metric: MetricPolicy
    stream: Stream
    interval: Interval
    """Candidate less champion; of logarithms for a ``log_mean``."""
    share: float
    """Its part of alpha; 0 for a metric that never rolls back."""
    harm: Path
    proven: bool
    """Whether its limit is proven."""

    @property
    def sessions(self) -> tuple[int, int]:
        """Sessions with a value: the candidate's, the champion's."""
        mine = int(self.stream.of_candidate.sum())
        return mine, len(self.stream.of_candidate) - mine


def judge(observations: Observations, policy: JudgePolicy, *, last_step: bool) -> Decision:
    """Decide what to do with the candidate now.

    Harm that is sure at a look rolls back; absence of harm within the limits, sure at the last step, promotes;
    otherwise ``advance`` (no harm seen, more traffic is safe) or, at the last step, ``hold`` (more data is needed).

    Args:
        observations: the rollout so far.
        policy: metrics, margins and level.
        last_step: whether the candidate has its largest share already.

    Raises:
        ConfigError: the policy's metrics contradict each other.
    """
    looks = [look_at(metric, observations, policy) for metric in metrics_of(policy)]
    log_e = combined_log_e(
        [(look.share, look.stream, look.harm) for look in looks if look.share], len(observations.sessions)
    )
    trips, bounds = tripped(observations.trips, policy)
    harms = [*trips, *_harms(looks, float(log_e[-1]), policy)]
    evidence = _evidence(observations, looks, float(log_e[-1]), bounds, policy)
    if harms:
        return _decision("rollback", harms, evidence, policy)
    if not last_step:
        return _decision("advance", ["No harm is seen so far."], evidence, policy)
    open_questions = _open_questions(policy, observations, looks)
    if open_questions:
        return _decision("hold", open_questions, evidence, policy)
    return _decision("promote", _proofs(looks), evidence, policy)


def look_at(metric: MetricPolicy, observations: Observations, policy: JudgePolicy) -> Look:
    """Work out one metric."""
    stream = stream_of(observations.sessions, metric.name)
    level = 2 * policy.alpha  # half of it on each side: a bound that is proven is proven at alpha
    sequence = difference_sequence if metric.kind == "log_mean" else bounded_sequence
    _, proofs = proof_path(metric, stream, policy.alpha)
    return Look(
        metric=metric,
        stream=stream,
        interval=sequence(stream.means, stream.of_candidate, level),
        share=_share(metric, policy),
        harm=harm_path(metric, stream),
        proven=bool(len(proofs) and proofs[-1]),
    )


def harm_path(metric: MetricPolicy, stream: Stream) -> Path:
    """The e-process against 'the candidate is no worse than tolerated'; empty for a metric that never rolls back.

    Its null hypothesis: for a rate without tolerance, failures of a session are not stochastically more; for a
    ``log_mean``, no quantile exceeds the champion's by more than the tolerated ratio (and evidence counts only while
    the mean does); otherwise, the mean is worse by no more than is tolerated.
    """
    if metric.tolerated is None or not len(stream.place):
        return Path(np.zeros(0, dtype=np.int64), np.zeros(0))
    sign = 1.0 if metric.better == "lower" else -1.0
    if metric.kind == "rate" and metric.tolerated == 0:
        blocks = blocks_of(stream.of_candidate, TILT_BLOCK)
        bad = stream.totals if metric.better == "lower" else stream.counts - stream.totals
        scores = rate_log_scores(bad, stream.counts, blocks)
        return tilted_path(stream.of_candidate, scores, blocks, ODDS_WEIGHTS)
    if metric.kind == "log_mean":
        blocks = blocks_of(stream.of_candidate, TILT_BLOCK)
        worse = sign * stream.means - math.log(metric.tolerated) * stream.of_candidate
        path = tilted_path(stream.of_candidate, shift_log_scores(worse, blocks), blocks, SHIFT_WEIGHTS)
        difference, weight = block_differences(worse, stream.of_candidate, blocks)
        return Path(path.ends, np.where(np.cumsum(difference * weight) > 0, path.log_e, -np.inf))
    blocks = blocks_of(stream.of_candidate, BET_BLOCK)
    difference, _ = block_differences(sign * stream.means, stream.of_candidate, blocks)
    return betting_path(difference - metric.tolerated, blocks.ends, 1 + metric.tolerated)


def proof_path(metric: MetricPolicy, stream: Stream, alpha: float) -> tuple[Ints, Bools]:
    """After each block (sessions that had arrived), whether 'worse by less than the limit' is proven at ``alpha``."""
    if metric.limit is None or not len(stream.place):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
    sign = 1.0 if metric.better == "lower" else -1.0
    if metric.kind == "log_mean":
        ends, estimates, widths = difference_path(sign * stream.means, stream.of_candidate, 2 * alpha)
        return ends, estimates + widths < math.log(metric.limit)
    blocks = blocks_of(stream.of_candidate, BET_BLOCK)
    difference, _ = block_differences(sign * stream.means, stream.of_candidate, blocks)
    path = betting_path(metric.limit - difference, blocks.ends, 1 - metric.limit)
    return path.ends, path.log_e >= -math.log(alpha)


def combined_log_e(parts: Sequence[tuple[float, Stream, Path]], num_sessions: int) -> Floats:
    """(sessions + 1,) log of the weighted mean of the metrics' e-values after each session; 0 before the first."""
    if not parts:
        return np.zeros(num_sessions + 1)
    paths = [_by_session(stream, path, num_sessions) for _, stream, path in parts]
    return log_mixture(np.stack(paths, axis=1), tuple(share for share, _, _ in parts))


def _by_session(stream: Stream, path: Path, num_sessions: int) -> Floats:
    """A path by the place among all sessions instead of among those with a value."""
    if not len(path.ends):
        return np.zeros(num_sessions + 1)
    known_from = stream.place[path.ends - 1] + 1
    block = np.searchsorted(known_from, np.arange(num_sessions + 1), side="right") - 1
    return np.where(block >= 0, np.maximum(path.log_e, -700.0)[np.maximum(block, 0)], 0.0)


def _share(metric: MetricPolicy, policy: JudgePolicy) -> float:
    total = sum(one.weight for one in metrics_of(policy) if one.tolerated is not None)
    return metric.weight / total if metric.tolerated is not None else 0.0


def _harms(looks: Sequence[Look], log_e: float, policy: JudgePolicy) -> list[str]:
    """Reasons to roll back: each metric that is harm by itself, or the one that weighs most in the mean."""
    if log_e < -math.log(policy.alpha):
        return []
    weighed = [(math.log(look.share) + look.harm.last, look) for look in looks if look.share]
    weighed.sort(key=lambda pair: -pair[0])
    alone = [look for weight, look in weighed if weight >= -math.log(policy.alpha)]
    return [_harm(look) for look in alone or [weighed[0][1]]]


def _harm(look: Look) -> str:
    metric, estimate = look.metric, look.interval.estimate
    e_value = _text(math.exp(min(look.harm.last, 700.0)))
    if metric.kind == "log_mean":
        found = f"{_ratio(estimate)} times the champion's (tolerated {_tolerated_ratio(metric)})"
        return f"{metric.name} is {found}; e-value {e_value}."
    direction = "higher" if metric.better == "lower" else "lower"
    allowed = f" (tolerated {metric.tolerated:g})" if metric.tolerated else ""
    return f"{metric.name} is {abs(estimate):.3f} {direction} than the champion's{allowed}; e-value {e_value}."


def _tolerated_ratio(metric: MetricPolicy) -> str:
    assert metric.tolerated is not None
    return f"{metric.tolerated:.2f}" if metric.better == "lower" else f"{1 / metric.tolerated:.2f}"


def _open_questions(policy: JudgePolicy, observations: Observations, looks: Sequence[Look]) -> list[str]:
    questions = []
    fewest = min(observations.number(of_candidate=True), observations.number(of_candidate=False))
    if fewest < policy.min_sessions:
        questions.append(f"{fewest} sessions on the smaller side; {policy.min_sessions} are needed.")
    for look in looks:
        if not _asked(look) or look.proven:
            continue
        if not min(look.sessions):
            questions.append(f"{look.metric.name} has no values on one side, and its limit must be proven.")
        else:
            questions.append(f"{look.metric.name} may still be {_worst(look)} (limit {look.metric.limit:g}).")
    return questions


def _asked(look: Look) -> bool:
    return look.metric.limit is not None and (look.metric.required or min(look.sessions) > 0)


def _worst(look: Look) -> str:
    lower_is_better = look.metric.better == "lower"
    edge = look.interval.upper if lower_is_better else look.interval.lower
    if look.metric.kind == "log_mean":
        return f"{_ratio(edge)} times the champion's"
    return f"{abs(edge):.3f} {'higher' if edge > 0 else 'lower'}"


def _proofs(looks: Sequence[Look]) -> list[str]:
    proofs = []
    for look in looks:
        if not _asked(look):
            continue
        interval, bound = look.interval, "under" if look.metric.better == "lower" else "above"
        edge = interval.upper if look.metric.better == "lower" else interval.lower
        if look.metric.kind == "log_mean":
            found = f"{_ratio(interval.estimate)} times the champion's, surely {bound} {_ratio(edge)}"
            proofs.append(f"{look.metric.name} is {found}.")
        else:
            proofs.append(f"{look.metric.name} differs by {interval.estimate:+.3f}, surely {bound} {edge:+.3f}.")
    return proofs or ["No harm is seen, and no metric has a limit to prove."]


def _ratio(log_value: float) -> str:
    return f"{math.exp(log_value):.2f}" if log_value < 5 else "over 100"


def _text(e_value: float) -> str:
    return f"{e_value:.0f}" if e_value < 1e6 else f"{e_value:.1e}"


def _evidence(
    observations: Observations,
    looks: Sequence[Look],
    log_e: float,
    bounds: dict[str, Any],
    policy: JudgePolicy,
) -> dict[str, Any]:
    return {
        "candidate_sessions": observations.number(of_candidate=True),
        "champion_sessions": observations.number(of_candidate=False),
        "candidate_requests": len(observations.trips.recent),
        "alpha": policy.alpha,
        "e_value": _e_value(log_e),
        "e_threshold": round(1 / policy.alpha, 6),
        "same_time": not observations.apart,
        "trips": bounds,
        "metrics": {look.metric.name: _of_metric(look, policy) for look in looks if sum(look.sessions)},
        "without_values": [look.metric.name for look in looks if not sum(look.sessions)],
    }


def _of_metric(look: Look, policy: JudgePolicy) -> dict[str, Any]:
    metric, interval = look.metric, look.interval
    ratio = metric.kind == "log_mean"
    values = {name: _finite(math.exp(min(value, 50.0)) if ratio else value) for name, value in vars(interval).items()}
    sides = {}
    for side, of_candidate in (("candidate", True), ("champion", False)):
        means = look.stream.means[look.stream.of_candidate == of_candidate]
        mean = float(means.mean()) if len(means) else math.nan
        sides[side] = _finite(math.exp(mean) if ratio and math.isfinite(mean) else mean)
    return {
        "kind": metric.kind,
        "compared_as": "ratio" if ratio else "difference",
        **sides,
        **values,
        "tolerated": metric.tolerated,
        "limit": metric.limit,
        "proven": look.proven if metric.limit is not None else None,
        "e_value": _e_value(look.harm.last) if look.share else None,
        "e_threshold_alone": round(1 / (policy.alpha * look.share), 3) if look.share else None,
        "candidate_sessions": look.sessions[0],
        "champion_sessions": look.sessions[1],
    }


def _e_value(log_e: float) -> float | None:
    return _finite(math.exp(min(log_e, 200.0)))


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _decision(outcome: str, reasons: list[str], evidence: dict[str, Any], policy: JudgePolicy) -> Decision:
    version = digest_of(policy.dump())[:16]
    return Decision(outcome=outcome, reasons=tuple(reasons), evidence=evidence, policy_version=version)
