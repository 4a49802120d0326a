"""The records of an evaluation: answers, hits, and results that the gate and the report read."""

from dataclasses import dataclass

from pydantic import Field

from serin.core.records import Record
from serin.core.statistics import Interval


class Answer(Record):
    """One release's answer to one held-out conversation."""

    id: str
    """The conversation's."""
    group: str
    """Conversations of one group are not independent; empty: on its own."""
    language: str
    source: str
    """``given``: the passages came with the conversation; ``retrieved``: from the release's index."""
    question: str
    reference: str
    answer: str
    finish_reason: str
    """``stop`` or ``length``."""
    passages: tuple[str, ...] = ()
    """As the model saw them."""
    retrieval_scores: tuple[float, ...] = ()
    """Cosine similarity of each retrieved passage."""
    answer_bits: float | None = None
    """Bits that the model needs for the reference answer, given the prompt (teacher forced)."""
    answer_loss: float | None = None
    """The same as mean natural-log loss per token."""
    labels: dict[str, str] = Field(default_factory=dict)
    """What the item is sliced by: its language, and what the conversation's metadata says of it."""


class FoundPassages(Record):
    """What the index found for one held-out conversation."""

    id: str
    """The conversation's."""
    texts: tuple[str, ...]
    """Best first."""
    scores: tuple[float, ...]
    """Cosine similarity of each."""


class GoldenResult(Record):
    """What the index found for one golden question."""

    id: str
    question: str
    language: str
    document_ids: tuple[str, ...]
    """The documents that answer it."""
    found_ids: tuple[str, ...]
    """Documents of the hits, best first, one per hit."""


@dataclass(frozen=True)
class Metric:
    """What a metric is called and which way is better."""

    name: str
    label: str
    higher_is_better: bool = True
    unit: str = "share"
    """``share`` (0 to 1), ``bits``, ``nats``, or ``gain`` (-1 to 1)."""


METRICS = (
    Metric("token_f1", "Token F1"),
    Metric("exact_match", "Exact match"),
    Metric("number_accuracy", "Numbers of the reference found"),
    Metric("support_score", "Support by the passages"),
    Metric("empty_share", "Empty answers", higher_is_better=False),
    Metric("truncated_share", "Answers cut at the limit", higher_is_better=False),
    Metric("refusal_accuracy", "Refuses exactly when the reference does"),
    Metric("answer_loss", "Loss on the reference, per token", higher_is_better=False, unit="nats"),
    Metric("bits_per_byte", "Bits per byte of the reference", higher_is_better=False, unit="bits"),
    Metric("retrieved_token_f1", "Token F1 with live retrieval"),
    Metric("retrieved_support_score", "Support by the passages, with live retrieval"),
    Metric("recall_at_5", "Golden recall in the first 5"),
    Metric("recall_at_10", "Golden recall in the first 10"),
    Metric("ndcg_at_10", "Golden nDCG in the first 10"),
    Metric("reciprocal_rank", "Golden mean reciprocal rank"),
    Metric("human_preference", "Preferred by reviewers", unit="gain"),
)
"""Every metric that evaluation can give, in the report's order."""

BY_NAME = {metric.name: metric for metric in METRICS}


class Comparison(Record):
    """The candidate against another release on the same items; positive is better for the candidate."""

    improvement: Interval
    won: int = 0
    lost: int = 0
    tied: int = 0
    gains: tuple[float, ...] = ()
    """One for each independent item, in the order of their ids; what the gate tests."""
    effect_size: float | None = None
    """Mean gain in standard deviations of the gains; None where all gains are one value."""


class Results(Record):
    """All that the gate and the report need."""

    release_ids: dict[str, str]
    """Role (candidate, baseline, champion) to release id."""
    values: dict[str, dict[str, Interval]]
    """Role to metric to value."""
    comparisons: dict[str, dict[str, Comparison]] = Field(default_factory=dict)
    """Baseline or champion to metric to comparison."""
    not_applicable: dict[str, str] = Field(default_factory=dict)
    """Metric, or role compared with, to the reason why it is absent."""
    num_items: dict[str, int] = Field(default_factory=dict)
    """Source (given, retrieved, golden) to items; intervals count independent groups of them."""
    by_language: dict[str, dict[str, Interval]] = Field(default_factory=dict)
    """Language to role to token F1."""
    slices: dict[str, dict[str, dict[str, Comparison]]] = Field(default_factory=dict)
    """Baseline or champion to slice ('language:fr') to metric to comparison."""
    suites: dict[str, str] = Field(default_factory=dict)
    """Suite to the digest of its items; where the releases saw different items, the suite is in ``broken_suites``."""
    broken_suites: dict[str, str] = Field(default_factory=dict)
    """Suite to what is wrong with it."""
    review_agreement: float | None = None
    """Krippendorff's alpha of the reviewers, where two have judged the same items."""
    contaminated: tuple[str, ...] = ()
    """Ids of items that were found in the training data."""
