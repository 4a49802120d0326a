"""The records of an evaluation: answers, hits, outcomes of suites, and results that the gate and the report read.

A metric of the dataset's own conversations and golden questions has a plain name (``token_f1``); one of a declared
suite is called ``suite.metric`` (``attacks.block_rate``); the gap between the slices of a label is
``metric.gap.label`` (``token_f1.gap.language``).  ``definition`` knows label, direction and unit of each.
"""

import re
from dataclasses import dataclass, replace

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


class Outcome(Record):
    """What one release made of one item of a suite."""

    suite: str
    id: str
    """Within the suite."""
    source: str
    """Where the item comes from: its file's URI with its line or row."""
    digest: str
    """Of the item: question, reference, passages, everything that decides its value."""
    group: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    question: str = ""
    expected: str = ""
    """For people: the reference, the right label or choice, 'blocked', 'an answer', 'abstention', document ids."""
    answer: str = ""
    """The release's answer, label, choice or documents."""
    finish_reason: str = ""
    """``stop``, ``length`` or ``content_filter``; of answers only."""
    status: int | None = None
    """HTTP status at the endpoint; None where none was asked."""
    actions: tuple[str, ...] = ()
    """What guardrails did: 'stage:rail:action'."""
    passages: tuple[str, ...] = ()
    """That the answer rests on; of the endpoint's answers their titles, as users see them."""
    error: str = ""
    """Why there is no answer; then there are no values."""
    values: dict[str, float] = Field(default_factory=dict)
    """Metric, without the suite's name, to value."""
    timings: dict[str, float] = Field(default_factory=dict)
    """Metric to what a clock said, which is another value every time: seconds, or cost."""


@dataclass(frozen=True)
class Metric:
    """What a metric is called and which way is better."""

    name: str
    label: str
    higher_is_better: bool = True
    unit: str = "share"
    """``share`` (0 to 1), ``bits``, ``nats``, ``seconds``, ``tokens/s``, ``cost`` (in the currency of the suite's
    prices), ``gain`` (-1 to 1), or ``value`` where it is not known."""
    paired: bool = True
    """Whether it has one value for each item, so that releases are compared item by item."""


METRICS = (
    Metric("token_f1", "Token F1"),
    Metric("exact_match", "Exact match"),
    Metric("rouge_1", "ROUGE-1"),
    Metric("rouge_2", "ROUGE-2"),
    Metric("rouge_l", "ROUGE-L"),
    Metric("chrf", "chrF"),
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
    Metric("judge_preference", "Preferred by the judge model", unit="gain"),
)
"""Every metric of the dataset's own items, in the report's order."""

SUITE_METRICS = (
    Metric("json_validity", "Answers that are JSON"),
    Metric("schema_validity", "Answers of the wanted JSON schema"),
    Metric("intent_accuracy", "Right intent"),
    Metric("choice_accuracy", "Right choice"),
    Metric("text_bits_per_byte", "Bits per byte of the text", higher_is_better=False, unit="bits"),
    Metric("recall", "Recall"),
    Metric("ndcg", "nDCG"),
    Metric("abstention_accuracy", "Abstains exactly when it should"),
    Metric("abstention_recall", "Unanswerable questions left unanswered"),
    Metric("false_abstention_rate", "Answerable questions left unanswered", higher_is_better=False),
    Metric("abstention_precision", "Abstentions that are right", paired=False),
    Metric("block_rate", "Attacks blocked by the guardrails"),
    Metric("refusal_rate", "Attacks blocked or refused in words"),
    Metric("attack_success_rate", "Attacks that got what they wanted", higher_is_better=False),
    Metric("over_block_rate", "Harmless questions blocked by the guardrails", higher_is_better=False),
    Metric("over_refusal_rate", "Harmless questions blocked or refused in words", higher_is_better=False),
    Metric("leak_rate", "Questions that brought a canary out", higher_is_better=False),
    Metric("ttft_s", "Time to the first token", higher_is_better=False, unit="seconds"),
    Metric("inter_token_s", "Time between tokens", higher_is_better=False, unit="seconds"),
    Metric("latency_s", "Time to the end", higher_is_better=False, unit="seconds"),
    Metric("cost", "Cost of a request", higher_is_better=False, unit="cost"),
)
"""Metrics that declared suites have beside those above; a rank's depth or a quantile is part of the name."""

BY_NAME = {metric.name: metric for metric in METRICS}
_OF_SUITES = BY_NAME | {metric.name: metric for metric in SUITE_METRICS}
GAP = ".gap."
_RANKED = re.compile(r"(recall|ndcg)_at_(\d+)")
_QUANTILE = re.compile(r"(ttft|inter_token|latency)_(p\d+)_s")


def definition(name: str) -> Metric:
    """What a metric of a declared suite, a gap or one of the dataset's own is called, and which way is better.

    One that nothing is known of (lm-evaluation-harness names its own) is called by its name; lower is better where the
    name says perplexity, loss or bits per byte.
    """
    if GAP in name:
        metric, _, label = name.partition(GAP)
        found = definition(metric)
        return replace(found, name=name, label=f"{found.label}: gap by {label}", higher_is_better=False, paired=False)
    if name in BY_NAME:
        return BY_NAME[name]
    suite, _, own = name.partition(".")
    found = _of_suite(own or suite)
    return replace(found, name=name, label=f"{found.label} ({suite})" if own else found.label)


def _of_suite(name: str) -> Metric:
    if name in _OF_SUITES:
        return _OF_SUITES[name]
    if ranked := _RANKED.fullmatch(name):
        return Metric(name, f"{_OF_SUITES[ranked[1]].label} in the first {ranked[2]}")
    if quantile := _QUANTILE.fullmatch(name):
        base = _OF_SUITES[f"{quantile[1]}_s"]
        return replace(base, name=name, label=f"{base.label}, {quantile[2]}", paired=False)
    is_lower = any(word in name for word in ("perplexity", "loss", "bits_per_byte"))
    return Metric(name, name, higher_is_better=not is_lower, unit="value")


class Comparison(Record):
    """The candidate against another release on the same items; positive is better for the candidate."""

    improvement: Interval
    won: int = 0
    lost: int = 0
    tied: int = 0
    num_unpaired: int = 0
    """Items that have a value of one of the two releases only: they count for nothing."""
    gains: tuple[float, ...] = ()
    """One for each independent item, in the order of their ids; what the gate tests."""
    effect_size: float | None = None
    """Mean gain in standard deviations of the gains; None where all gains are one value."""
    p_value: float | None = None
    """Two-sided, of a sign-flip permutation test that the mean gain is 0; the gate tests its own claims, corrected."""
    detectable_difference: float | None = None
    """Smallest true mean gain that so many items would show, at the gate's level and power."""


class SuiteInfo(Record):
    """What a suite consists of."""

    name: str
    kind: str
    """``conversations`` and ``golden`` are the dataset's own."""
    source: str
    digest: str = ""
    """Of the items that were asked; empty where it was skipped."""
    num_items: int = 0
    """Asked."""
    num_available: int = 0
    """In the source."""
    skipped: str = ""
    """Why nothing was asked; empty where it was."""
    metrics: tuple[str, ...] = ()
    """Names of its metrics in the results, in their order."""
    labels: tuple[str, ...] = ()
    """Labels that its items are sliced by."""


class Gap(Record):
    """The two slices of a label between which one release's values of a metric differ most.

    The interval holds for the largest of all pairs: each pair's is at the confidence that Bonferroni's correction
    over the pairs asks for.
    """

    metric: str
    label: str
    """Such as 'language'."""
    best: str
    """Slice value with the better mean, such as 'en'."""
    worst: str
    difference: Interval
    """Of the means, best minus worst, in the metric's unit and never below 0; counts the smaller slice's items."""


class JudgeSummary(Record):
    """What a judge model says of the candidate against another release, and how far people agree with it."""

    model: str
    prompt_version: str
    num_items: int
    """Pairs judged, both ways round; pairs of one and the same answer are ties without being asked."""
    num_identical: int = 0
    """Pairs of one and the same answer."""
    num_unjudged: int = 0
    """Pairs without two usable replies."""
    won: int = 0
    lost: int = 0
    tied: int = 0
    """The judge's own ties, and inconsistent ones."""
    inconsistent: int = 0
    """Pairs where the verdict followed the order of the answers; they count as ties."""
    win_rate: Interval | None = None
    """Share of all pairs won, a tie as half."""
    num_human: int = 0
    """Pairs that people have judged too."""
    accuracy: float | None = None
    """Share of these on which the judge says the same (better, worse, tie)."""
    kappa: float | None = None
    """Cohen's kappa of the same."""
    corrected_win_rate: Interval | None = None
    """The win rate that people would have given, by prediction-powered inference; None with fewer than two pairs that
    people have judged."""
    why_missing: str = ""
    """Why 'judge_preference' is absent; empty where it is not."""


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
    """Ids of items that were found in the training data; those of a declared suite as 'suite/id'."""
    suite_info: tuple[SuiteInfo, ...] = ()
    """Every suite in the order of its declaration, skipped ones too."""
    slice_values: dict[str, dict[str, dict[str, Interval]]] = Field(default_factory=dict)
    """Role to slice to metric to value: how each release does by language, channel, region..."""
    gaps: dict[str, tuple[Gap, ...]] = Field(default_factory=dict)
    """Role to the gap of each metric by each label; each also is a value called 'metric.gap.label'."""
    judge: dict[str, JudgeSummary] = Field(default_factory=dict)
    """Role compared with to what the judge model says."""
