"""Tests on paired differences: one number for each independent item, positive where the first system is better."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import ceil, inf, sqrt
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
BATCH = 1_000
"""Sign vectors made at once: bounds memory."""
MAX_KEPT = 2_000_000
"""Permutations times differences up to which the signs are kept for the next test of as many differences."""


def sign_flip_test(
    differences: ArrayLike,
    *,
    null: float = 0.0,
    alternative: Literal["greater", "two-sided"] = "greater",
    permutations: int = 9_999,
    seed: int = 0,
) -> float:
    """p-value that the mean difference is at most ``null`` (one-sided), or is ``null`` (two-sided).

    The signs of (difference - null) are flipped at random: exact where differences are symmetric around ``null``, and
    right in the limit otherwise, because the sum of squares does not change and so ranks the means as it ranks
    Student's t (Romano 1990, JASA 85:686).  The observed arrangement counts too, so that p is never 0 (Phipson and
    Smyth 2010, doi 10.2202/1544-6115.1585).

    Raises:
        ValueError: no differences, or one that is not finite.
    """
    sample = _finite(differences) - null
    observed, size = sample.sum(), len(sample)
    if size * permutations <= MAX_KEPT:
        sums = _kept_signs(size, permutations, seed) @ sample
    else:
        sums = np.concatenate([signs @ sample for signs in _signs(size, permutations, seed)])
    if alternative == "two-sided":
        sums, observed = np.abs(sums), abs(observed)
    tolerance = 1e-12 * max(1.0, float(np.abs(sample).sum()))
    extreme = int((sums >= observed - tolerance).sum())
    return (extreme + 1) / (permutations + 1)


@lru_cache(maxsize=6)
def _kept_signs(size: int, permutations: int, seed: int) -> Floats:
    return np.concatenate(list(_signs(size, permutations, seed)))


def _signs(size: int, permutations: int, seed: int) -> Iterator[Floats]:
    """Signs of each permutation, by batches of (permutations, size)."""
    generator = np.random.default_rng(seed)
    for start in range(0, permutations, BATCH):
        flips = generator.integers(0, 2, (min(BATCH, permutations - start), size), dtype=np.int8)
        yield 2.0 * flips.astype(np.float64) - 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values: rejecting those at most alpha makes any false rejection at most alpha likely.

    Holm 1979, Scandinavian Journal of Statistics 6:65; valid under any dependence.
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], name))):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def effect_size(differences: ArrayLike) -> float:
    """Mean difference in standard deviations of the differences (Cohen's d for paired samples); 0 for equal zeros."""
    sample = _finite(differences)
    deviation = float(sample.std(ddof=1)) if len(sample) > 1 else 0.0
    mean = float(sample.mean())
    return mean / deviation if deviation > 0 else (0.0 if mean == 0 else float(np.copysign(inf, mean)))


def detectable_difference(deviation: float, count: int, *, alpha: float, power: float) -> float:
    """Smallest true mean difference that a one-sided test at ``alpha`` finds with probability ``power``.

    (z(1 - alpha) + z(power)) * deviation / sqrt(count), the normal approximation (Cohen 1988, section 2.4).

    Args:
        deviation: standard deviation of the differences.
        count: independent items.
        alpha: one-sided level.
        power: probability to find it.
    """
    return _reach(alpha, power) * deviation / sqrt(count) if count > 0 else inf


def items_needed(deviation: float, difference: float, *, alpha: float, power: float) -> int | None:
    """Independent items with which a true mean difference is found; None where no number suffices (a difference of 0).

    The inverse of ``detectable_difference``.
    """
    if difference <= 0:
        return None
    return max(2, ceil((_reach(alpha, power) * deviation / difference) ** 2))


def _reach(alpha: float, power: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf(1 - alpha) + normal.inv_cdf(power)


def _finite(values: ArrayLike) -> Floats:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample) or not np.isfinite(sample).all():
        raise ValueError("Differences must be finite numbers, at least one.")
    return sample
