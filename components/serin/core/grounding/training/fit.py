"""Fits the grounding score, and evaluates it on answers that it was not fitted on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize

from serin.core.grounding.model import KINDS, GroundingModel, Linear
from serin.core.grounding.training.examples import BEGIN_FILES, Example

NUM_FOLDS = 5
SITE_PENALTY, OVERLAP_PENALTY = 3.3, 10.0
"""Weight of the squared weights against the summed loss of all rows."""
SITE_WEIGHTS = {"mtrag": 2.0, "tc": 0.5, "wow": 0.5, "excerpt": 0.5}
FLAGGED_FRACTION = 0.05
"""Share of MTRAG's true answers that a kind of place may flag where its threshold is chosen."""


def fit(examples: Sequence[Example]) -> GroundingModel:
    """A model of the examples."""
    judged = [one for one in examples if one.kind == "judged"]
    overlap = _logistic(
        np.array([one.reading.overlap for one in judged]), np.array([one.supported for one in judged], float),
        np.ones(len(judged)), OVERLAP_PENALTY, standardise=True,
    )  # fmt: skip
    sites = {kind: _site_model(kind, examples) for kind in KINDS}
    model = GroundingModel(overlap, sites, 1.0, 0.0, {})
    rows = [one for one in examples if one.source != "excerpt" and (one.kind == "judged" or one.source == "mtrag")]
    margins = np.array([model.margin(one.reading) for one in rows])
    supported = np.array([one.supported for one in rows], float)
    scaling = _logistic(margins[:, None], supported, _balanced(rows), 0.1)
    model = replace(model, scale=float(scaling.weights[0]), offset=scaling.bias)
    return replace(model, thresholds=_thresholds(model, examples))


def out_of_fold(examples: Sequence[Example], seed: int = 0) -> list[tuple[Example, float, GroundingModel]]:
    """BEGIN's and MTRAG's examples with their margins by models that did not see their group, and those models."""
    found = []
    for fold in range(NUM_FOLDS):
        model = fit([one for one in examples if _fold(one, seed) != fold])
        found += _margins(model, [one for one in examples if _fold(one, seed) == fold and one.source != "excerpt"])
    return found


def across_files(examples: Sequence[Example]) -> dict[str, list[tuple[Example, float, GroundingModel]]]:
    """Each BEGIN file's judged examples with their margins by a model that did not see the file."""
    found = {}
    for file in BEGIN_FILES:
        model = fit([one for one in examples if one.source != file])
        found[file] = _margins(model, [one for one in examples if one.source == file and one.kind == "judged"])
    return found


def _margins(model: GroundingModel, examples: Sequence[Example]) -> list[tuple[Example, float, GroundingModel]]:
    return [(one, model.margin(one.reading), model) for one in examples]


def _fold(example: Example, seed: int) -> int:
    return int(np.random.default_rng([seed, example.group]).integers(NUM_FOLDS))


def _site_model(kind: str, examples: Sequence[Example]) -> Linear:
    rows: list[tuple[tuple[float, ...], float, float]] = []
    for one in examples:
        weight = SITE_WEIGHTS[one.source]
        if one.kind == "true" or (one.kind == "judged" and one.supported):
            rows += [(site.features, 0.0, weight) for site in one.reading.sites if site.kind == kind]
        rows += [(site.features, 1.0, weight) for site in one.changed if site.kind == kind]
    features, changed, weights = (np.array(column, float) for column in zip(*rows, strict=True))
    return _logistic(features, changed, weights, SITE_PENALTY)


def _thresholds(model: GroundingModel, examples: Sequence[Example]) -> dict[str, float]:
    true = [one for one in examples if one.kind == "true" and one.source == "mtrag"]
    worst: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for one in true:
        logits = model.place_logits(one.reading)
        for kind in KINDS:
            of_kind = [logit for site, logit in zip(one.reading.sites, logits, strict=True) if site.kind == kind]
            worst[kind].append(max(of_kind, default=-10.0))
    found = {kind: max(0.0, float(np.quantile(values, 1 - FLAGGED_FRACTION))) for kind, values in worst.items()}
    judged = [one for one in examples if one.kind == "judged"]
    scores = np.array([model.score(model.margin(one.reading)) for one in judged])
    return found | {"unsupported": _best_cut(scores, np.array([one.supported for one in judged]))}


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
