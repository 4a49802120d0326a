"""Statistics that stay valid however often one looks (anytime-valid), as the judge needs them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

RHO_SQUARED = 0.1
"""Mixture parameter of the confidence sequence: tightest at around 40 to 100 observations."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its bounds."""

    estimate: float
    lower: float
    upper: float


def mean_sequence(values: Sequence[float], alpha: float) -> Interval:
    """Asymptotic confidence sequence of a mean.

    Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence
    sequences" (2021), eq. 2: mean +- sd sqrt(2 (n rho^2 + 1) / (n^2 rho^2) log(sqrt(n rho^2 + 1) / alpha)).

    Args:
        values: independent observations, one a session.
        alpha: chance that the mean ever leaves the interval.

    Returns:
        The mean with its bounds; infinite bounds for fewer than two values.
    """
    n = len(values)
    if n == 0:
        return Interval(math.nan, -math.inf, math.inf)
    mean = math.fsum(values) / n
    if n < 2:
        return Interval(mean, -math.inf, math.inf)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    scale = n * RHO_SQUARED + 1
    width = sd * math.sqrt(2 * scale / (n * n * RHO_SQUARED) * math.log(math.sqrt(scale) / alpha))
    return Interval(mean, mean - width, mean + width)


def difference_sequence(candidate: Sequence[float], champion: Sequence[float], alpha: float) -> Interval:
    """Confidence sequence of mean(candidate) - mean(champion), by a union bound over the two arms."""
    first, second = mean_sequence(candidate, alpha / 2), mean_sequence(champion, alpha / 2)
    return Interval(first.estimate - second.estimate, first.lower - second.upper, first.upper - second.lower)


def rate_sequence(events: int, trials: int, alpha: float) -> Interval:
    """Confidence sequence of a Bernoulli rate, from the uniform mixture martingale.

    Robbins, "Statistical methods related to the law of the iterated logarithm" (1970): the set of p where
    B(events + 1, trials - events + 1) / (p^events (1 - p)^(trials - events)) < 1 / alpha.

    Returns:
        The rate with bounds in 0 to 1 (found by bisection to 1e-6).
    """
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    rate = events / trials
    log_mixture = math.lgamma(events + 1) + math.lgamma(trials - events + 1) - math.lgamma(trials + 2)

    def excluded(p: float) -> bool:
        return log_mixture - _log_likelihood(p, events, trials) >= -math.log(alpha)

    return Interval(rate, _edge(excluded, rate, 0.0), _edge(excluded, rate, 1.0))


def harm_e_value(outcomes: Sequence[tuple[bool, bool]]) -> float:
    """E-process against 'the candidate fails no more often than the champion'; reject at level a once >= 1 / a.

    Turner, Ly and Gruenwald, "Generic E-variables for exact sequential k-sample tests that allow for optional
    stopping" (2021).  A block closes as soon as both sides are in it, which depends on arrivals alone and never on
    outcomes, so earlier blocks stay as they are when more data comes.  In each, the likelihood under plug-in rates
    (candidate >= champion, smoothed, from earlier blocks only) over that under their weighted mean.

    Args:
        outcomes: (of the candidate, failed) of each session, in order of arrival.
    """
    log_e = 0.0
    seen, bad = [0, 0], [0, 0]  # champion, candidate: in closed blocks
    block_seen, block_bad = [0, 0], [0, 0]
    for of_candidate, failed in outcomes:
        block_seen[of_candidate] += 1
        block_bad[of_candidate] += failed
        if not all(block_seen):
            continue
        champion = (bad[0] + 0.18) / (seen[0] + 0.36)
        candidate = max((bad[1] + 0.18) / (seen[1] + 0.36), champion)
        null = (block_seen[0] * champion + block_seen[1] * candidate) / sum(block_seen)
        log_e += _log_likelihood(champion, block_bad[0], block_seen[0])
        log_e += _log_likelihood(candidate, block_bad[1], block_seen[1])
        log_e -= _log_likelihood(null, sum(block_bad), sum(block_seen))
        seen = [total + new for total, new in zip(seen, block_seen, strict=True)]
        bad = [total + new for total, new in zip(bad, block_bad, strict=True)]
        block_seen, block_bad = [0, 0], [0, 0]
    return math.exp(min(log_e, 700.0))


def _log_likelihood(p: float, events: int, trials: int) -> float:
    if (p <= 0 and events) or (p >= 1 and events < trials):
        return -math.inf
    first = events * math.log(p) if events else 0.0
    return first + ((trials - events) * math.log1p(-p) if events < trials else 0.0)


def _edge(excluded: Callable[[float], bool], inside: float, outside: float) -> float:
    """Bisect between a rate that is inside the interval and an end of 0 to 1."""
    if not excluded(outside):
        return outside
    for _ in range(40):
        middle = (inside + outside) / 2
        if excluded(middle):
            outside = middle
        else:
            inside = middle
    return outside
