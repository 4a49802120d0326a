"""How far a judge model agrees with people, and what people would have said of all that it judged.  Pure."""

from collections import Counter
from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np

from serin.core.statistics import Interval


def accuracy(judged: Sequence[int], human: Sequence[int]) -> float | None:
    """Share of items on which both say the same; None without items."""
    return sum(one == other for one, other in zip(judged, human, strict=True)) / len(judged) if judged else None


def cohens_kappa(judged: Sequence[int], human: Sequence[int]) -> float | None:
    """Agreement beyond that of chance: 1 for full agreement, 0 for that of chance.

    Cohen 1960, doi 10.1177/001316446002000104.  None without items, and where both say one and the same of all items,
    which leaves chance nothing to explain.
    """
    observed = accuracy(judged, human)
    if observed is None:
        return None
    one, other, total = Counter(judged), Counter(human), len(judged)
    expected = sum(one[value] * other[value] for value in one) / total**2
    return (observed - expected) / (1 - expected) if expected < 1 else None


def prediction_powered_mean(
    human: Sequence[float], judged_there: Sequence[float], judged_elsewhere: Sequence[float], *, confidence: float
) -> Interval | None:
    """The mean that people would give, from few of their labels and many of a judge's.

    theta = mean(Y) + lambda * (mean(f, elsewhere) - mean(f, there)), with the lambda of least variance, and a normal
    interval: PPI++ for a mean (Angelopoulos, Duchi and Zrnic 2023, https://arxiv.org/abs/2311.01453, section 6; after
    Angelopoulos et al. 2023, Science 382:669).  A judge that says nothing of people's labels gets lambda 0, and the
    interval is that of the labels alone; its bias is corrected whatever lambda is.

    Args:
        human: Y, people's labels.
        judged_there: f, the judge's of the same items.
        judged_elsewhere: the judge's of items that people have not judged, drawn from the same source.
        confidence: of the interval.

    Returns:
        None with fewer than two labels.
    """
    labels, there = np.asarray(human, dtype=np.float64), np.asarray(judged_there, dtype=np.float64)
    elsewhere = np.asarray(judged_elsewhere, dtype=np.float64)
    if len(labels) < 2:
        return None
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    weight = _weight(labels, there, elsewhere)
    rest = labels - weight * there
    estimate, variance = float(rest.mean()), float(rest.var(ddof=1)) / len(rest)
    if weight:
        estimate += weight * float(elsewhere.mean())
        variance += weight**2 * float(elsewhere.var(ddof=1)) / len(elsewhere)
    half = z * sqrt(variance)
    return Interval(estimate, estimate - half, estimate + half, len(labels) + len(elsewhere))


def _weight(labels: np.ndarray, there: np.ndarray, elsewhere: np.ndarray) -> float:
    """Lambda: the covariance of labels and judge over the judge's variance and the sizes of both samples."""
    if len(elsewhere) < 2:
        return 0.0
    spread = float(np.concatenate([there, elsewhere]).var(ddof=1))
    if spread == 0:
        return 0.0
    shared = float(np.cov(labels, there, ddof=1)[0, 1])
    return float(np.clip(shared / ((1 + len(labels) / len(elsewhere)) * spread), 0.0, 1.0))
