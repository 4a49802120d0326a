import itertools
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from serin.core.paired import detectable_difference, effect_size, holm, items_needed, sign_flip_test


def test_the_sign_flip_test_agrees_with_scipys_permutation_test():
    differences = np.random.default_rng(2).normal(0.1, 0.5, 40)
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", alternative="greater", n_resamples=20_000, rng=1
    ).pvalue
    assert sign_flip_test(differences, permutations=19_999) == pytest.approx(theirs, abs=0.01)


def test_small_samples_give_the_exact_value():
    # of 8 sign patterns only the observed one reaches the sum: p is 1/8 in the limit
    assert sign_flip_test([1.0, 2.0, 4.0]) == pytest.approx(1 / 8, abs=0.02)


def test_the_test_errs_as_often_as_its_level_says_also_on_skewed_differences():
    generator = np.random.default_rng(5)
    for draw in (lambda: generator.normal(0, 1, 60), lambda: generator.choice([-1, 0, 1], 200, p=[0.05, 0.9, 0.05])):
        wrong = sum(sign_flip_test(draw(), permutations=499, seed=i) <= 0.05 for i in range(400))
        assert wrong / 400 <= 0.08


def test_equal_answers_are_never_called_better():
    assert sign_flip_test([0.0] * 50) == 1.0


def test_the_margin_moves_what_is_asked():
    gains = np.random.default_rng(0).normal(0.0, 0.1, 100)
    assert sign_flip_test(gains, null=-0.05) < 0.01
    assert sign_flip_test(gains, null=0.05) > 0.99


def test_holm_gives_the_textbook_example():
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_value_keeps_their_order_and_stays_within_one(p_values):
    adjusted = holm(p_values)
    assert all(p_values[name] <= adjusted[name] <= 1 for name in p_values)
    ranked = sorted(p_values, key=p_values.__getitem__)
    assert all(adjusted[a] <= adjusted[b] for a, b in itertools.pairwise(ranked))


def test_effect_sizes_are_in_standard_deviations():
    assert effect_size([1.0, 2.0, 3.0]) == pytest.approx(2.0)
    assert effect_size([0.0, 0.0]) == 0.0
    assert effect_size([0.5, 0.5]) == inf


def test_items_needed_is_the_inverse_of_the_detectable_difference():
    reach = detectable_difference(0.4, 500, alpha=0.025, power=0.8)
    assert reach == pytest.approx(2.8016 * 0.4 / 500**0.5, rel=1e-3)
    assert items_needed(0.4, reach, alpha=0.025, power=0.8) == pytest.approx(500, abs=1)
    assert items_needed(0.4, 0.0, alpha=0.025, power=0.8) is None
    assert detectable_difference(0.4, 0, alpha=0.025, power=0.8) == inf


@pytest.mark.parametrize("values", [[], [0.1, float("nan")], [[0.1]]])
def test_what_is_no_list_of_finite_numbers_is_refused(values):
    with pytest.raises(ValueError, match="finite"):
        sign_flip_test(values)
