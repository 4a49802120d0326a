"""Fits the grounding score, and evaluates it on answers that it was not fitted on."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize

from serin.core.grounding.model import KINDS, GroundingModel, Linear
from serin.core.grounding.training.examples import BEGIN_FILES, Example
from serin.core.grounding.training.places import fit_places

NUM_FOLDS, INNER_FOLDS = 5, 4
THRESHOLD_SEED, OVERLAP_SEED = 1_000, 2_000
"""Of the inner foldings."""
OVERLAP_PENALTY = 10.0
"""Weight of the squared weights against the summed loss of all rows."""
FLAGGED_FRACTION = 0.05
"""Share of MTRAG's true answers that a kind of place may flag where its threshold is chosen."""

Scored = tuple[Example, float, GroundingModel]


def fit(examples: Sequence[Example]) -> GroundingModel:
    """A model of the examples; its scale and thresholds come from models that did not see the answers they score."""
    held: list[Scored] = []
    for fold in range(INNER_FOLDS):
        model = _unscaled([one for one in examples if _fold(one, THRESHOLD_SEED, INNER_FOLDS) != fold])
        inside = [one for one in examples if _fold(one, THRESHOLD_SEED, INNER_FOLDS) == fold and _is_ranked(one)]
        held += _margins(model, [one for one in inside if one.judged])
    margins = np.array([margin for _, margin, _ in held])
    supported = np.array([one.supported for one, _, _ in held], float)
    scaling = _logistic(margins[:, None], supported, _balanced([one for one, _, _ in held]), 0.1)
    model = replace(_unscaled(examples), scale=float(scaling.weights[0]), offset=scaling.bias)
    return replace(model, thresholds=_thresholds(model, held))


def out_of_fold(examples: Sequence[Example], seed: int = 0) -> list[Scored]:
    """BEGIN's and MTRAG's examples with their margins by models that did not see their group, and those models."""
    found = []
    for fold in range(NUM_FOLDS):
        model = fit([one for one in examples if _fold(one, seed) != fold])
        found += _margins(model, [one for one in examples if _fold(one, seed) == fold and one.source != "excerpt"])
    return found


def across_files(examples: Sequence[Example]) -> dict[str, list[Scored]]:
    """Each BEGIN file's judged examples with their margins by a model that did not see the file."""
    found = {}
    for file in BEGIN_FILES:
        model = fit([one for one in examples if one.source != file])
        found[file] = _margins(model, [one for one in examples if one.source == file and one.kind == "judged"])
    return found


def _margins(model: GroundingModel, examples: Sequence[Example]) -> list[Scored]:
    """Of an answer that claims nothing infinite: it scores 1."""
    return [(one, model.margin(one.judged) if one.judged else math.inf, model) for one in examples]


def _fold(example: Example, seed: int, folds: int = NUM_FOLDS) -> int:
    return int(np.random.default_rng([seed, example.group]).integers(folds))


def _is_ranked(one: Example) -> bool:
    return one.source == "mtrag" or one.kind == "judged"


def _unscaled(examples: Sequence[Example]) -> GroundingModel:
    """Overlap, then places and what weighs both, beside what overlap says of answers that it was not fitted on."""
    held = np.zeros(len(examples))
    for fold in range(INNER_FOLDS):
        inside = np.array([_fold(one, OVERLAP_SEED, INNER_FOLDS) == fold for one in examples])
        overlap = _overlap([one for one, left_out in zip(examples, inside, strict=True) if not left_out])
        for at in np.flatnonzero(inside).tolist():
            held[at] = overlap.logit(examples[at].reading.overlap)
    sites, blend = fit_places(examples, held)
    return GroundingModel(_overlap(examples), sites, blend, 1.0, 0.0, {})


def _overlap(examples: Sequence[Example]) -> Linear:
    judged = [one for one in examples if one.kind == "judged"]
    return _logistic(
        np.array([one.reading.overlap for one in judged]), np.array([one.supported for one in judged], float),
        np.ones(len(judged)), OVERLAP_PENALTY, standardise=True,
    )  # fmt: skip


def _thresholds(scaled: GroundingModel, held: Sequence[Scored]) -> dict[str, float]:
    worst: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for one, _, model in held:
        if one.kind == "true" and one.judged:
            logits = list(zip(model.place_logits(one.judged), one.judged.sites, strict=True))
            for kind in KINDS:
                worst[kind].append(max((logit for logit, site in logits if site.kind == kind), default=-10.0))
    found = {kind: max(0.0, float(np.quantile(values, 1 - FLAGGED_FRACTION))) for kind, values in worst.items()}
    judged = [(one, margin) for one, margin, _ in held if one.kind == "judged"]
    scores = np.array([scaled.score(margin) for _, margin in judged])
    return found | {"unsupported": _best_cut(scores, np.array([one.supported for one, _ in judged]))}


def _best_cut(scores: np.ndarray, supported: np.ndarray) -> float:
    """The score that parts both best: the sum of both shares that are right is greatest."""
    cuts = np.linspace(0.02, 0.98, 97)
    right = [(scores[supported] >= cut).mean() + (scores[~supported] < cut).mean() for cut in cuts]
    return round(float(cuts[int(np.argmax(right))]), 2)


def _balanced(rows: Sequence[Example]) -> np.ndarray:
    """Weights under which BEGIN and MTRAG count alike, and in each both labels."""
    keys = [(one.source == "mtrag", one.supported) for one in rows]
    return np.array([len(rows) / 4 / keys.count(key) for key in keys])


def _logistic(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray, penalty: float, standardise: bool = False
) -> Linear:
    """Weighted logistic regression with squared weights penalised, the bias aside."""
    mean = features.mean(0) if standardise else np.zeros(features.shape[1])
    spread = features.std(0) if standardise else np.ones(features.shape[1])
    rows, signs = (features - mean) / np.where(spread > 1e-9, spread, 1.0), 2 * labels - 1

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (rows @ values[:-1] + values[-1])
        slope = -signs * weights / (1 + np.exp(np.clip(margins, -60, 60)))
        total = float(weights @ np.logaddexp(0, -margins)) + penalty / 2 * float(values[:-1] @ values[:-1])
        return total, np.append(rows.T @ slope + penalty * values[:-1], slope.sum())

    best = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 2000}).x
    scaled = best[:-1] / np.where(spread > 1e-9, spread, 1.0)
    return Linear(scaled, float(best[-1] - scaled @ mean))
