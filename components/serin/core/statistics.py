"""Intervals and tests for evaluation and monitoring: seeded, in numpy, each with its source.

All of them treat the given values as independent; values of one session or one template are not, so callers give one
value for each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
BATCH = 1_000
"""Resamples made at once: bounds memory."""
MAX_KEPT = 2_000_000
"""Resamples times values up to which a bootstrap's draws are kept for the next sample of the same size."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float
    count: int
    """Values that it rests on."""

    def dump(self) -> dict[str, float | int]:
        """Plain JSON values."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high, "count": self.count}


@dataclass(frozen=True)
class Comparison:
    """A two-sample test."""

    statistic: float
    p_value: float
    """Probability of a statistic at least as extreme when both samples come from one source."""


def bootstrap_mean(values: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Bias-corrected and accelerated (BCa) bootstrap interval of a mean.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 14.3.  Given the paired differences of two
    systems on the same items, it is the interval of their mean difference.  Few items (below about 30) make it too
    narrow.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    sample = _finite(values, minimum=2)
    mean = float(sample.mean())
    if np.ptp(sample) == 0:
        return Interval(mean, mean, mean, len(sample))
    means = bootstrap_means(sample, resamples=resamples, seed=seed)
    low, high = np.quantile(means, _bca_levels(sample, means, confidence))
    return Interval(mean, float(low), float(high), len(sample))


def bootstrap_quantile(
    values: ArrayLike, quantile: float, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a quantile (Efron and Tibshirani 1993, section 13.3).

    The interval of a high quantile of few values ends at the largest of them, and is too narrow then.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    sample = _finite(values, minimum=2)
    drawn = _resampled(len(sample), resamples, seed)
    found = np.concatenate([np.quantile(sample[places], quantile, axis=1) for places in drawn])
    low, high = np.quantile(found, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(np.quantile(sample, quantile)), float(low), float(high), len(sample))


def bootstrap_means(sample: Floats, *, resamples: int, seed: int) -> Floats:
    """Means of resamples with replacement, (resamples,); the same draws for every sample of the same size."""
    size = len(sample)
    if size * resamples <= MAX_KEPT:
        counts: Floats = _counts(size, resamples, seed)
        return counts @ sample / size
    return np.concatenate([sample[drawn].mean(axis=1) for drawn in _resampled(size, resamples, seed)])


@lru_cache(maxsize=6)
def _counts(size: int, resamples: int, seed: int) -> Floats:
    """How often each value is in each resample, (resamples, size)."""
    rows = [
        np.bincount((drawn + size * np.arange(len(drawn))[:, None]).ravel(), minlength=drawn.size).reshape(drawn.shape)
        for drawn in _resampled(size, resamples, seed)
    ]
    return np.concatenate(rows).astype(np.float64)


def _resampled(size: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Places of the values in each resample, by batches of (resamples, size)."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, BATCH):
        yield generator.integers(0, size, (min(BATCH, resamples - start), size))


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927, JASA 22:209); with no trials, 0 to 1."""
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials is impossible.")
    if trials == 0:
        return Interval(0.5, 0.0, 1.0, 0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), trials)


def mean_shift_test(
    reference: ArrayLike,
    current: ArrayLike,
    *,
    alternative: Literal["two-sided", "greater", "less"] = "two-sided",
    permutations: int = 1_999,
    seed: int = 0,
) -> Comparison:
    """Permutation test that two samples have one mean; ``greater`` asks whether the current one is higher.

    The p-value counts the observed arrangement too, so it is never 0 (Phipson and Smyth 2010, doi
    10.2202/1544-6115.1585).

    Returns:
        The statistic is mean(current) - mean(reference).

    Raises:
        ValueError: an empty sample, or a value that is not finite.
    """
    first, second = _finite(reference), _finite(current)
    pooled, size = np.concatenate([first, second]), len(second)
    observed = float(second.mean() - first.mean())
    total = pooled.sum()
    sums = np.array([pooled[chosen].sum() for chosen in _draws(len(pooled), size, permutations, seed)])
    shifts = sums / size - (total - sums) / len(first)
    extreme = {
        "two-sided": np.abs(shifts) >= abs(observed) - 1e-12,
        "greater": shifts >= observed - 1e-12,
        "less": shifts <= observed + 1e-12,
    }[alternative]
    return Comparison(observed, float((extreme.sum() + 1) / (permutations + 1)))


def euclidean_distances(points: Floats) -> Floats:
    """Distances between all rows of (items, features), (items, items)."""
    squares = (points**2).sum(axis=1)
    distances: Floats = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * points @ points.T, 0.0))
    np.fill_diagonal(distances, 0.0)
    return distances


def energy_coefficients(distances: Floats, current: Floats, reference: Floats) -> Floats:
    """Energy coefficients of many pairs of samples drawn from one pool of items.

    Szekely and Rizzo, Energy statistics (2013), doi 10.1016/j.jspi.2013.03.018.

    Args:
        distances: (items, items).
        current: (items, pairs): how often each item is in the current sample of a pair.
        reference: (items, pairs): the same for the reference sample.

    Returns:
        (pairs,), each 0 (one distribution) to 1 (two separate points).
    """
    num_current, num_reference = current.sum(axis=0), reference.sum(axis=0)
    to_current = distances @ current  # (items, pairs)
    between = 2 * (to_current * reference).sum(axis=0) / (num_current * num_reference)
    within_current = (to_current * current).sum(axis=0) / num_current**2
    within_reference = ((distances @ reference) * reference).sum(axis=0) / num_reference**2
    excess = between - within_current - within_reference
    return np.divide(excess, between, out=np.zeros_like(between), where=between > 0)


def _bca_levels(sample: Floats, means: Floats, confidence: float) -> Floats:
    normal = NormalDist()
    below = (means < sample.mean()).mean() + (means == sample.mean()).mean() / 2
    bias = normal.inv_cdf(float(np.clip(below, 1 / (len(means) + 1), len(means) / (len(means) + 1))))
    jackknife = (sample.sum() - sample) / (len(sample) - 1)
    spread = jackknife.mean() - jackknife
    acceleration = (spread**3).sum() / (6 * (spread**2).sum() ** 1.5)
    levels = []
    for level in (0.5 - confidence / 2, 0.5 + confidence / 2):
        z = bias + normal.inv_cdf(level)
        levels.append(normal.cdf(bias + z / (1 - acceleration * z)))
    return np.array(levels)


def _draws(total: int, size: int, count: int, seed: int) -> list[NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    return [generator.permutation(total)[:size] for _ in range(count)]


def _finite(values: Any, minimum: int = 1) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if len(array) < minimum:
        raise ValueError(f"{len(array)} values are given; at least {minimum} are needed.")
    if not np.isfinite(array).all():
        raise ValueError("A value is not finite.")
    return array
