"""The learned part of the grounding score: logistic models over features, as arrays in one safetensors file."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from serin.core.errors import InputError
from serin.core.grounding.overlap import OVERLAP_FEATURES, overlap_features
from serin.core.grounding.sites import SITE_FEATURES, Sentence, Site, abbreviations, sentences_of, sites_of
from serin.core.grounding.words import Passage, Word

WEIGHTS = Path(__file__).parent / "weights.safetensors"
KINDS = tuple(SITE_FEATURES)

SHORT_LOG_WORDS = 3.4
"""Middle between short answers, which overlap decides, and long ones, which one false place decides: 30 words."""
SHORT_WIDTH = 0.3
STRANGE_OVERLAP, STRANGE = -5.0, 1.0
"""An answer of any length with less overlap than this is about something else: each logit below counts by that much."""
LOGIT_LIMIT, OVERLAP_LIMIT = 4.0, 10.0
"""Most overlap, and least."""
DOUBT_LIMIT = 6.0


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer read against its passages."""

    words: tuple[Word, ...]
    sentences: tuple[Sentence, ...]
    overlap: tuple[float, ...]
    sites: tuple[Site, ...]


def read_answer(words: Sequence[Word], passages: Sequence[Passage], questions: float) -> Reading:
    """Features of an answer of at least one word; ``questions`` is the share of its sentences that ask."""
    sentences = sentences_of(words, passages)
    told = abbreviations(words)
    sites = tuple(site for sentence in sentences for site in sites_of(sentence, passages, told))
    return Reading(tuple(words), tuple(sentences), overlap_features(words, sentences, passages, questions), sites)


@dataclass(frozen=True)
class Linear:
    """A logistic model over features as they come."""

    weights: np.ndarray
    """(features,)"""
    bias: float

    def logit(self, features: Sequence[float]) -> float:
        """Logit of one row."""
        return float(self.weights @ np.asarray(features)) + self.bias


@dataclass(frozen=True)
class Blend:
    """How an answer's places become one doubt, and doubt and overlap one margin; all learned."""

    overlap_short: float
    overlap_long: float
    """Weight of overlap in short and in long answers."""
    doubt_short: float
    doubt_long: float
    sharpness: float
    """The doubt of several places is the logarithm of their summed powers: with a great one, the worst place's."""
    many: float
    """How far the doubt of n places of one kind is taken back: by this times log n."""
    shift: float
    """Doubt below this counts little."""

    def doubt(self, logits: Sequence[float]) -> float:
        """How likely it is that one of an answer's places of one kind was changed, from 0."""
        powers = [self.sharpness * logit for logit in (-DOUBT_LIMIT, *logits)]
        most = max(powers)
        pooled = (most + math.log(sum(math.exp(power - most) for power in powers))) / self.sharpness
        pooled = min(DOUBT_LIMIT, pooled - self.many * math.log(max(1, len(logits))))
        return math.log1p(math.exp(pooled - self.shift))

    def margin(self, overlap: float, doubt: float, num_words: int) -> float:
        """One number for an answer of so many words, greater for a supported one; ``doubt`` of all kinds together."""
        overlap = max(-OVERLAP_LIMIT, min(LOGIT_LIMIT, overlap))
        short = shortness(num_words)
        by_overlap = self.overlap_short * short + self.overlap_long * (1 - short)
        by_doubt = self.doubt_short * short + self.doubt_long * (1 - short)
        return by_overlap * overlap + STRANGE * min(0.0, overlap - STRANGE_OVERLAP) - by_doubt * doubt


@dataclass(frozen=True)
class GroundingModel:
    """All models of the score."""

    overlap: Linear
    sites: Mapping[str, Linear]
    """For each kind of place, how likely it was changed."""
    blend: Blend
    scale: float
    offset: float
    """The score is the logistic function of ``scale * margin + offset``."""
    thresholds: Mapping[str, float]
    """Logit from which a place of a kind is a mismatch, and under 'unsupported' the score below which an answer is."""

    def place_logits(self, reading: Reading) -> list[float]:
        """For each of the reading's sites, the logit that it was changed."""
        return [self.sites[site.kind].logit(site.features) for site in reading.sites]

    def margin(self, reading: Reading, logits: Sequence[float] | None = None) -> float:
        """The score before it is scaled: overlap in short answers, the worst places in long ones."""
        logits = self.place_logits(reading) if logits is None else logits
        doubt = 0.0
        for kind in KINDS:
            doubt += self.blend.doubt([at for site, at in zip(reading.sites, logits, strict=True) if site.kind == kind])
        return self.blend.margin(self.overlap.logit(reading.overlap), doubt, len(reading.words))

    def score(self, margin: float) -> float:
        """A margin as a score in 0 to 1."""
        return 1 / (1 + math.exp(-(self.scale * margin + self.offset)))

    def save(self, path: Path, about: Mapping[str, str]) -> None:
        """Write the arrays, the names of their features, and what they were trained on."""
        arrays = {"overlap": _row(self.overlap)} | {kind: _row(model) for kind, model in self.sites.items()}
        arrays["scaling"] = np.array([self.scale, self.offset])
        arrays["blend"] = np.array(astuple(self.blend))
        names = {"overlap": OVERLAP_FEATURES, **SITE_FEATURES}
        described = {"features": names, "thresholds": dict(self.thresholds), **about}
        metadata = {"model": json.dumps(described, sort_keys=True)}  # one entry: the order of several would vary
        save_file({name: array.astype(np.float32) for name, array in arrays.items()}, path, metadata=metadata)

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Self:
        """Read what ``save`` wrote.

        Raises:
            InputError: the file was trained on other features.
        """
        with safe_open(path, framework="numpy") as stream:
            arrays = {name: stream.get_tensor(name).astype(np.float64) for name in stream.keys()}  # noqa: SIM118
            described = json.loads((stream.metadata() or {}).get("model", "{}"))
        wanted = {"overlap": list(OVERLAP_FEATURES)} | {kind: list(names) for kind, names in SITE_FEATURES.items()}
        if described.get("features") != wanted:
            raise InputError(f"{path.name} was trained on other features: run python -m serin.core.grounding.training.")
        models = {name: Linear(array[:-1], float(array[-1])) for name, array in arrays.items() if name in wanted}
        scale, offset = (float(value) for value in arrays["scaling"])
        blend = Blend(*(float(value) for value in arrays["blend"]))
        overlap = models.pop("overlap")
        return cls(overlap, models, blend, scale, offset, described["thresholds"])


def shortness(num_words: int) -> float:
    """1 for a short answer, 0 for a long one."""
    return 1 / (1 + math.exp((math.log(num_words) - SHORT_LOG_WORDS) / SHORT_WIDTH))


@cache
def shipped_model() -> GroundingModel:
    """The model that comes with the package, read once."""
    return GroundingModel.load()


def _row(model: Linear) -> np.ndarray:
    return np.append(model.weights, model.bias)
