import numpy as np
import pytest

from serin.evaluate.calibration import accuracy, cohens_kappa, prediction_powered_mean


def test_kappa_by_hand():
    judged, human = [1, 1, 1, 0, 0, -1], [1, 1, 0, 0, 0, 1]
    expected = (3 * 3 + 2 * 3 + 1 * 0) / 36
    assert accuracy(judged, human) == pytest.approx(4 / 6)
    assert cohens_kappa(judged, human) == pytest.approx((4 / 6 - expected) / (1 - expected))
    assert cohens_kappa([1, 1], [1, 1]) is None
    assert (accuracy([], []), cohens_kappa([], [])) == (None, None)


def simulated(generator, labels=60, elsewhere=600):
    """People prefer in 55%; a judge that agrees with them in four of five cases, and is too kind by .15."""
    human = (generator.random(labels + elsewhere) < 0.55).astype(float)
    kind = generator.random(len(human)) < 0.15
    judged = np.where(generator.random(len(human)) < 0.8, human, 1 - human)
    judged = np.where(kind, 1.0, judged)
    return human[:labels], judged[:labels], judged[labels:]


def test_a_judges_bias_is_taken_out_and_its_agreement_makes_the_interval_shorter():
    generator = np.random.default_rng(0)
    hits, widths, alone, raw = 0, [], [], []
    for _ in range(300):
        human, there, elsewhere = simulated(generator)
        found = prediction_powered_mean(human, there, elsewhere, confidence=0.95)
        hits += found.low <= 0.55 <= found.high
        widths.append(found.high - found.low)
        alone.append(2 * 1.96 * np.std(human, ddof=1) / np.sqrt(len(human)))
        raw.append(np.mean(elsewhere))
    assert np.mean(raw) > 0.58, "the judge alone is too kind"
    assert 0.90 <= hits / 300 <= 0.99
    assert np.mean(widths) < 0.95 * np.mean(alone)


def test_without_labels_or_other_items_nothing_is_made_up():
    assert prediction_powered_mean([1.0], [1.0], [0.0, 1.0], confidence=0.95) is None
    alone = prediction_powered_mean([1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [], confidence=0.95)
    assert alone.estimate == pytest.approx(2 / 3)
