import numpy as np
import pytest

from serin.evaluate.config import EvaluateConfig
from serin.evaluate.gaps import gaps_of

CONFIG = EvaluateConfig(resamples=2000, suites=())
NAMES = ("en", "fr", "de", "es")


def drawn(generator, shift=0.0, number=60):
    """Values and labels of four languages, of which French is worse by a shift."""
    values, labels = {}, {}
    for language in NAMES:
        for i in range(number):
            values[f"{language}{i}"] = float(generator.normal(0.7 - shift * (language == "fr"), 0.2))
            labels[f"{language}{i}"] = {"language": language}
    return values, labels


def test_the_largest_gap_names_both_slices_and_its_interval_holds_for_the_largest_of_all_pairs():
    values, labels = drawn(np.random.default_rng(0), shift=0.3)
    (gap,) = gaps_of({"token_f1": values}, labels, {}, CONFIG)
    assert (gap.metric, gap.label, gap.worst) == ("token_f1", "language", "fr")
    assert 0.2 < gap.difference.low < 0.3 < gap.difference.high < 0.5
    generator = np.random.default_rng(1)
    false = 0
    for _ in range(200):
        values, labels = drawn(generator)
        (gap,) = gaps_of({"token_f1": values}, labels, {}, CONFIG)
        false += gap.difference.low > 0
    assert false / 200 <= 0.06, "a gap is found by chance in at most about 5%"


def test_where_less_is_better_the_best_slice_has_the_lower_mean():
    values = {f"{name}{i}": float(name == "fr") + i / 100 for name in ("en", "fr") for i in range(12)}
    labels = {item: {"language": item[:2]} for item in values}
    (gap,) = gaps_of({"s.leak_rate": values}, labels, {}, CONFIG)
    assert (gap.best, gap.worst, gap.difference.estimate) == ("en", "fr", pytest.approx(1.0))


def test_small_slices_and_items_of_one_group_make_no_gap():
    values, labels = drawn(np.random.default_rng(0), number=9)
    assert gaps_of({"token_f1": values}, labels, {}, CONFIG) == ()
    values, labels = drawn(np.random.default_rng(0), number=12)
    assert gaps_of({"token_f1": values}, labels, dict.fromkeys(values, "one"), CONFIG) == ()
