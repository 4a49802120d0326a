"""Fits the models of places and what weighs places and overlap: each place by itself, and answers against answers.

A place is changed or not; and beside that, a supported answer's margin should be greater than another's of the same
set, whichever two they are.  So what is unusual, yet stands in true answers too, counts for less than what only changes
bring, and a place counts only as far as it helps beside overlap.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from serin.core.grounding.model import (
    DOUBT_LIMIT,
    KINDS,
    LOGIT_LIMIT,
    OVERLAP_LIMIT,
    STRANGE,
    STRANGE_OVERLAP,
    Blend,
    Linear,
    shortness,
)
from serin.core.grounding.training.examples import Example

PENALTY, BLEND_PENALTY = 3.3, 20.0
"""Weight of the squared weights, and of the blend's way from where it begins, against the summed loss of all rows."""
PLACE_WEIGHTS = {"mtrag": 2.0, "tc": 0.5, "wow": 0.5, "excerpt": 0.5}
RANKING = 4_000.0
"""Weight of the mean loss over pairs of answers, one of them supported."""
RANKED = {"tc": 1.0, "wow": 1.0, "mtrag": 1.0, "excerpt": 0.5}
"""The sets in each of which answers are ranked, with their weights."""
BEGINNING = Blend(0.3, 0.05, 0.5, 1.0, 2.0, 0.5, 0.0)
_NUM_POSITIVE = 5
"""The first values of a blend are positive: their logarithms are learned."""


@dataclass(frozen=True)
class _Answers:
    """Answers with all their places."""

    overlap: Tensor
    """(answers,)"""
    short: Tensor
    """(answers,)"""
    features: Mapping[str, Tensor]
    """Of each kind (places, features)."""
    owner: Mapping[str, Tensor]
    """Of each kind (places,): whose they are."""
    log_places: Mapping[str, Tensor]
    """Of each kind (answers,): logarithm of how many places, 0 for none."""
    pairs: tuple[tuple[Tensor, Tensor, float], ...]
    """Of each set the supported answers, the others, and a weight."""


def fit_places(examples: Sequence[Example], overlap: np.ndarray) -> tuple[dict[str, Linear], Blend]:
    """The models of all kinds of places, and the blend.

    Args:
        examples: all that is fitted on.
        overlap: (examples,), the logit of overlap for each, by models that were not fitted on it.
    """
    places = {kind: _places(kind, examples) for kind in KINDS}
    answers = _answers(examples, overlap)
    sizes = [features.shape[1] + 1 for features, _, _ in places.values()]
    begun = torch.tensor(_values(BEGINNING))

    def loss(values: np.ndarray, ranking: float) -> tuple[float, np.ndarray]:
        variables = torch.tensor(values, requires_grad=True)
        *weights, blend = torch.split(variables, [*sizes, len(begun)])
        total = BLEND_PENALTY / 2 * ((blend - begun) ** 2).sum()
        for weight, (features, changed, counts) in zip(weights, places.values(), strict=True):
            logits = features @ weight[:-1] + weight[-1]
            each = binary_cross_entropy_with_logits(logits, changed, reduction="none")
            total = total + (counts * each).sum() + PENALTY / 2 * (weight[:-1] ** 2).sum()
        if ranking:
            margins = _margins(answers, weights, blend)
            for true, other, share in answers.pairs:
                total = total + ranking * share * softplus(margins[other][:, None] - margins[true][None]).mean()
        (slope,) = torch.autograd.grad(total, variables)
        return float(total.detach()), slope.numpy()

    best = np.append(np.zeros(sum(sizes)), begun.numpy())
    for ranking in (0.0, RANKING):  # ranking has poor minima: it begins from what places say by themselves
        best = minimize(loss, best, (ranking,), jac=True, method="L-BFGS-B", options={"maxiter": 250}).x
    *weights, blend = np.split(best, np.cumsum(sizes))
    models = {kind: Linear(weight[:-1], float(weight[-1])) for kind, weight in zip(KINDS, weights, strict=True)}
    return models, Blend(*np.exp(blend[:_NUM_POSITIVE]).tolist(), *blend[_NUM_POSITIVE:].tolist())


def _values(blend: Blend) -> list[float]:
    values = [
        blend.overlap_short, blend.overlap_long, blend.doubt_short, blend.doubt_long, blend.sharpness,
    ]  # fmt: skip
    return [*map(math.log, values), blend.many, blend.shift]


def _places(kind: str, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Features (places, features) of one kind's places in true answers and at changes; whether changed; weights."""
    rows: list[tuple[tuple[float, ...], float, float]] = []
    for one in examples:
        weight = PLACE_WEIGHTS[one.source]
        if one.kind == "true" or (one.kind == "judged" and one.supported):
            rows += [(site.features, 0.0, weight) for site in one.reading.sites if site.kind == kind]
        rows += [(site.features, 1.0, weight) for site in one.changed if site.kind == kind]
    features, changed, weights = (torch.tensor(np.array(column, float)) for column in zip(*rows, strict=True))
    return features, changed, weights


def _answers(examples: Sequence[Example], overlap: np.ndarray) -> _Answers:
    """Those that are ranked: judged ones, and true and changed ones of MTRAG and of excerpts."""
    chosen = [at for at, one in enumerate(examples) if one.kind == "judged" or one.source in ("mtrag", "excerpt")]
    found = [examples[at] for at in chosen]
    features, owner, log_places = {}, {}, {}
    for kind in KINDS:
        own = [(site.features, at) for at, one in enumerate(found) for site in one.reading.sites if site.kind == kind]
        features[kind] = torch.tensor(np.array([row for row, _ in own], float))
        owner[kind] = torch.tensor([at for _, at in own])
        log_places[kind] = torch.bincount(owner[kind], minlength=len(found)).clamp(min=1).double().log()
    pairs = []
    for source, weight in RANKED.items():
        of_source = np.array([one.source == source for one in found])
        true = np.array([one.supported for one in found])
        if (of_source & true).any() and (of_source & ~true).any():
            pairs.append((_where(of_source & true), _where(of_source & ~true), weight))
    short = torch.tensor([shortness(len(one.reading.words)) for one in found], dtype=torch.float64)
    limited = torch.tensor(np.clip(overlap[chosen], -OVERLAP_LIMIT, LOGIT_LIMIT))
    return _Answers(limited, short, features, owner, log_places, tuple(pairs))


def _where(chosen: np.ndarray) -> Tensor:
    return torch.from_numpy(np.flatnonzero(chosen))


def _margins(answers: _Answers, weights: Sequence[Tensor], blend: Tensor) -> Tensor:
    """(answers,): ``Blend.margin`` of each."""
    overlap_short, overlap_long, doubt_short, doubt_long, sharpness = blend[:_NUM_POSITIVE].exp()
    many, shift = blend[_NUM_POSITIVE:]
    doubt = torch.zeros_like(answers.overlap)
    for kind, weight in zip(KINDS, weights, strict=True):
        powers = (answers.features[kind] @ weight[:-1] + weight[-1]) * sharpness
        owner, least = answers.owner[kind], -DOUBT_LIMIT * sharpness
        most = least.detach().expand(len(doubt)).scatter_reduce(0, owner, powers.detach(), "amax")
        total = (least - most).exp().index_add(0, owner, (powers - most[owner]).exp())
        pooled = (most + total.log()) / sharpness - many * answers.log_places[kind]
        doubt = doubt + softplus(pooled.clamp(max=DOUBT_LIMIT) - shift)
    short = answers.short
    by_overlap = overlap_short * short + overlap_long * (1 - short)
    strange = STRANGE * (answers.overlap - STRANGE_OVERLAP).clamp(max=0)
    return by_overlap * answers.overlap + strange - (doubt_short * short + doubt_long * (1 - short)) * doubt
