"""How differently one release treats the slices of a label: languages, channels, regions."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from serin.core.statistics import Interval, bootstrap_means
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.metrics import group_means
from serin.evaluate.results import Gap, definition

Floats = NDArray[np.float64]
MAX_SLICES = 50
"""A label with more values tells items apart, not slices."""


def gaps_of(
    values: Mapping[str, Mapping[str, float]],
    labels: Mapping[str, Mapping[str, str]],
    groups: Mapping[str, str],
    config: EvaluateConfig,
) -> tuple[Gap, ...]:
    """The largest gap of each metric by each label with two slices or more of ``min_slice_items`` items.

    Args:
        values: metric to item to value, of one release.
        labels: item to label to value.
        groups: item to group; items of one group count as one.
        config: interval, seed and the items that a slice needs.
    """
    names = sorted({label for of_item in labels.values() for label in of_item})
    found = []
    for metric, of_items in values.items():
        for label in names:
            slices: dict[str, dict[str, float]] = {}
            for item, value in of_items.items():
                if (name := labels.get(item, {}).get(label)) is not None:
                    slices.setdefault(name, {})[item] = value
            if gap := _largest(metric, label, slices, groups, config):
                found.append(gap)
    return tuple(found)


def _largest(
    metric: str,
    label: str,
    slices: Mapping[str, Mapping[str, float]],
    groups: Mapping[str, str],
    config: EvaluateConfig,
) -> Gap | None:
    """The gap between the best and the worst slice; the interval is Bonferroni's for all pairs (Dunn 1961, JASA 56:52).

    Of two independent samples, by the percentiles of the difference of their bootstrapped means.
    """
    samples = {name: list(group_means(of_items, groups).values()) for name, of_items in sorted(slices.items())}
    samples = {name: sample for name, sample in samples.items() if len(sample) >= config.min_slice_items}
    if not 1 < len(samples) <= MAX_SLICES:
        return None
    sign = 1.0 if definition(metric).higher_is_better else -1.0
    ranked = sorted(samples, key=lambda name: (-sign * float(np.mean(samples[name])), name))
    best, worst = ranked[0], ranked[-1]
    pairs = len(list(combinations(samples, 2)))
    level = (1 - config.confidence) / pairs
    gains = sign * (_means(samples[best], config, 0) - _means(samples[worst], config, 1))
    low, high = np.quantile(gains, [level / 2, 1 - level / 2])
    estimate = sign * (float(np.mean(samples[best])) - float(np.mean(samples[worst])))
    count = min(len(samples[best]), len(samples[worst]))
    interval = Interval(max(0.0, estimate), max(0.0, float(low)), max(0.0, float(high)), count)
    return Gap(metric=metric, label=label, best=best, worst=worst, difference=interval)


def _means(sample: Sequence[float], config: EvaluateConfig, stream: int) -> Floats:
    """Bootstrapped means; the two slices of a pair draw from streams of their own, or they would move together."""
    return bootstrap_means(
        np.asarray(sample, dtype=np.float64), resamples=config.resamples, seed=config.seed * 2 + stream + 1
    )
