"""Fitting the two linear steps of ``rails.twostep`` over what MiniLM's layers give."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy.optimize import minimize

from serin.core.transformer import Array
from serin.serve.rails import minilm, twostep

logger = logging.getLogger(__name__)

SPLIT = 2 * minilm.WIDTH
"""The first step's share of ``features``; the rest is the second's."""
MAX_ITERATIONS = 300
LEAST_EXCESS = 0.1
"""For a clean long text that is suspected as a whole: nothing that is taken off for length keeps it."""


@dataclass(frozen=True)
class Settings:
    """How strongly each step's weights may grow, and where its threshold lies."""

    first: float
    """Inverse strength of the penalty on the squared weights of standardised features, as in scikit-learn's C."""
    last: float
    gate_quantile: float
    """Share of each calibration set that the first step stops."""
    quantile: float
    """Share of each calibration set of turns that stays under the threshold."""
    long_quantile: float
    """The same for each set of long texts, by what is taken off for length."""


def features(rows: Sequence[Sequence[int]]) -> Array:
    """(rows, 768 + 2304): the first step's view of rows of word pieces, then the second's."""
    first = np.stack([minilm.pool(hidden) for hidden in minilm.attended(rows)])
    return np.concatenate([first, minilm.pooled(rows, twostep.LAST)], axis=1)


def fit_steps(seen: Array, labels: Array, settings: Settings, counts: Array | None = None) -> dict[str, Array]:
    """Weights of both steps, thresholds not yet set; ``counts`` (rows,) says how often each row counts."""
    first_w, first_b = fit(seen[:, :SPLIT], labels, settings.first, counts)
    last_w, last_b = fit(seen[:, SPLIT:], labels, settings.last, counts)
    return {"first.w": first_w, "first.b": first_b, "last.w": last_w, "last.b": last_b}


def fit(seen: Array, labels: Array, strength: float, counts: Array | None = None) -> tuple[Array, Array]:
    """Logistic regression with a penalty: (features,) weights and (1,) intercept for features as they are."""
    counts = np.ones(len(labels), dtype=np.float32) if counts is None else counts.astype(np.float32)
    mean = np.average(seen, axis=0, weights=counts)
    deviation = np.sqrt(np.average((seen - mean) ** 2, axis=0, weights=counts)) + 1e-6
    inputs = ((seen - mean) / deviation).astype(np.float32)
    signs = np.where(labels > 0.5, 1, -1).astype(np.float32)

    def loss(weights: Array) -> tuple[float, Array]:
        margins = signs * (inputs @ weights[:-1].astype(np.float32) + np.float32(weights[-1]))
        slopes = -signs * counts / (1 + np.exp(np.minimum(margins, 60)))
        value = float((counts * np.logaddexp(0, -margins)).sum(dtype=np.float64)) * strength
        gradient = np.append(slopes @ inputs, slopes.sum(dtype=np.float64)).astype(np.float64) * strength
        gradient[:-1] += weights[:-1]
        return value + 0.5 * float(weights[:-1] @ weights[:-1]), gradient

    found = minimize(
        loss, np.zeros(inputs.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS}
    ).x
    weights = found[:-1] / deviation
    return weights.astype(np.float32), np.array([found[-1] - mean @ weights], dtype=np.float32)


def read(texts: Iterable[str]) -> list[twostep.Reading]:
    """What the first step sees of each text; keeps what the second has seen once."""
    return [twostep.read(text) for text in texts]


def calibrate(
    weights: dict[str, Array],
    turns: Sequence[Sequence[twostep.Reading]],
    long_texts: Sequence[Sequence[twostep.Reading]],
    settings: Settings,
) -> None:
    """Set the gate and the threshold by clean turns, then by clean long texts what length takes off.

    Args:
        weights: changed in place.
        turns: sets of turns; each set keeps its share under both.
        long_texts: sets of texts that are longer than a window; each keeps its share under the threshold.
        settings: the shares.
    """
    weights["length"] = np.zeros(1, dtype=np.float32)
    first = [np.array([twostep.judge_first(one, weights) for one in texts]) for texts in turns]
    weights["first.b"] = weights["first.b"] - _highest(first, settings.gate_quantile, "gate")
    weights["last.b"] = weights["last.b"] - _highest(
        [logits(texts, weights) for texts in turns], settings.quantile, "threshold"
    )
    needed = [
        logits(texts, weights) / np.maximum(LEAST_EXCESS, [twostep.excess(one, weights) for one in texts])
        for texts in long_texts
    ]
    weights["length"][0] = max(0.0, _highest(needed, settings.long_quantile, "length"))


def offset(scores: Sequence[Array], quantile: float) -> Array:
    """(1,): the logit that becomes a score of 0.5, so that each calibration set has at most 1 - quantile above it."""
    return np.array([_highest(scores, quantile, "threshold")], dtype=np.float64)


def logits(texts: Iterable[twostep.Reading], weights: dict[str, Array]) -> Array:
    """(texts,): what ``rails.twostep`` gives."""
    return np.array([twostep.judge(one, weights) for one in texts])


def save(weights: dict[str, Array], path: Path) -> None:
    """Write the weights as float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(weights[name], dtype=np.float32) for name in sorted(weights)}, path)


def _highest(scores: Sequence[Array], quantile: float, name: str) -> np.float32:
    found = [float(np.quantile(one, quantile)) for one in scores]
    logger.info("%s: logits at quantile %s, by calibration set: %s", name, quantile, np.round(found, 2))
    return np.float32(max(found))
