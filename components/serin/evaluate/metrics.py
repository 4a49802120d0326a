"""From answers to numbers: each item's values, their means with intervals, and paired comparisons."""

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np

from serin.core.paired import detectable_difference, effect_size, sign_flip_test
from serin.core.reference import Reference
from serin.core.statistics import Interval, bootstrap_mean
from serin.core.text import exact_match, is_refusal, numbers, support_score, token_f1
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.results import Answer, Comparison, GoldenResult, definition
from serin.evaluate.retrieval import ndcg, recall, reciprocal_rank
from serin.evaluate.similarity import chrf, rouge_l, rouge_n

ItemValues = dict[str, dict[str, float]]
"""Metric to item id to value; an item to which a metric does not apply is absent."""

WITH_RETRIEVAL = ("token_f1", "support_score")
"""Repeated for live retrieval; the reference's figures may have changed since, so they are not compared there."""


def item_values(answers: Sequence[Answer], golden: Sequence[GoldenResult]) -> ItemValues:
    """Every metric of every item of one release."""
    values: ItemValues = {}
    for answer in answers:
        for name, value in _of_answer(answer).items():
            if answer.source == "given":
                values.setdefault(name, {})[answer.id] = value
            elif name in WITH_RETRIEVAL:
                values.setdefault(f"retrieved_{name}", {})[answer.id] = value
    for result in golden:
        for name, value in _of_golden(result).items():
            values.setdefault(name, {})[result.id] = value
    return values


def summarise(values: Mapping[str, float], groups: Mapping[str, str], config: EvaluateConfig) -> Interval | None:
    """Mean of one metric with its interval, one value for each group; None below two groups."""
    means = list(group_means(values, groups).values())
    if len(means) < 2:
        return None
    return bootstrap_mean(means, confidence=config.confidence, resamples=config.resamples, seed=config.seed)


def compare(
    metric: str,
    candidate: Mapping[str, float],
    other: Mapping[str, float],
    groups: Mapping[str, str],
    config: EvaluateConfig,
    *,
    higher_is_better: bool | None = None,
) -> Comparison | None:
    """The candidate against another release on the items that both have; positive is better.

    Args:
        metric: its name.
        candidate: item to value.
        other: the same of the other release.
        groups: item to group; items of one group count as one.
        config: interval and seed.
        higher_is_better: None: as the gate's ``lower_is_better``, else the metric's definition, says.
    """
    if higher_is_better is None:
        higher_is_better = definition(metric).higher_is_better and metric not in config.gate.lower_is_better
    sign = 1.0 if higher_is_better else -1.0
    gains = {item: sign * (candidate[item] - other[item]) for item in candidate if item in other}
    improvement = summarise(gains, groups, config)
    if improvement is None:
        return None
    signs = np.sign(list(gains.values()))
    by_group = group_means(gains, groups)
    independent = tuple(by_group[group] for group in sorted(by_group))
    effect = effect_size(independent)
    level, deviation = config.gate, float(np.std(independent, ddof=1))
    detectable = detectable_difference(deviation, len(independent), alpha=level.alpha, power=level.power)
    return Comparison(
        num_unpaired=len(candidate.keys() ^ other.keys()),
        gains=independent,
        effect_size=effect if isfinite(effect) else None,
        p_value=sign_flip_test(independent, alternative="two-sided"),
        detectable_difference=detectable,
        improvement=improvement,
        won=int((signs > 0).sum()),
        lost=int((signs < 0).sum()),
        tied=int((signs == 0).sum()),
    )


def slices_of(labels: Mapping[str, Mapping[str, str]], *, max_values: int = 50) -> dict[str, set[str]]:
    """Slice ('language:fr') to its items; a label with one value, or with too many, makes no slices.

    Args:
        labels: item to label to value.
        max_values: more values than this tell items apart, not slices.
    """
    members: dict[str, dict[str, set[str]]] = {}
    for item, of_item in labels.items():
        for label, value in of_item.items():
            members.setdefault(label, {}).setdefault(value, set()).add(item)
    return {
        f"{label}:{value}": items
        for label, by_value in sorted(members.items())
        if 1 < len(by_value) <= max_values
        for value, items in sorted(by_value.items())
    }


def refusal_matrix(answers: Sequence[Answer]) -> list[list[int]]:
    """Counts of answers, (reference answers or refuses, release answers or refuses), of the passages given."""
    matrix = [[0, 0], [0, 0]]
    for answer in answers:
        if answer.source == "given":
            matrix[is_refusal(answer.reference)][is_refusal(answer.answer)] += 1
    return matrix


def reference_of(release_id: str, answers: Sequence[Answer]) -> Reference:
    """What monitoring will compare the release's traffic with: live retrieval where it was tried."""
    source = "retrieved" if any(answer.source == "retrieved" for answer in answers) else "given"
    chosen = [answer for answer in answers if answer.source == source]
    return Reference(
        release_id=release_id,
        source=source,
        support_scores=tuple(support_score(one.answer, one.passages) for one in chosen if one.passages),
        refused=tuple(is_refusal(one.answer) for one in chosen),
        top_scores=tuple(max(one.retrieval_scores, default=0.0) for one in chosen) if source == "retrieved" else (),
    )


def _of_answer(answer: Answer) -> dict[str, float]:
    values = {
        **likeness(answer.answer, [answer.reference]),
        "empty_share": float(not answer.answer),
        "truncated_share": float(answer.finish_reason == "length"),
        "refusal_accuracy": float(is_refusal(answer.answer) == is_refusal(answer.reference)),
    }
    if wanted := set(numbers(answer.reference)):
        values["number_accuracy"] = len(wanted & set(numbers(answer.answer))) / len(wanted)
    if answer.passages:
        values["support_score"] = support_score(answer.answer, answer.passages)
    if answer.answer_loss is not None and answer.answer_bits is not None:
        values["answer_loss"] = answer.answer_loss
        values["bits_per_byte"] = answer.answer_bits / max(1, len(answer.reference.encode()))
    return values


def likeness(answer: str, references: Sequence[str]) -> dict[str, float]:
    """How alike an answer is to the reference that it is most like, by each measure."""
    measures = {
        "token_f1": token_f1,
        "exact_match": lambda one, other: float(exact_match(one, other)),
        "rouge_1": lambda one, other: rouge_n(one, other, 1),
        "rouge_2": lambda one, other: rouge_n(one, other, 2),
        "rouge_l": rouge_l,
        "chrf": chrf,
    }
    return {name: max(measure(answer, reference) for reference in references) for name, measure in measures.items()}


def _of_golden(result: GoldenResult) -> dict[str, float]:
    return {
        "recall_at_5": recall(result, 5),
        "recall_at_10": recall(result, 10),
        "ndcg_at_10": ndcg(result, 10),
        "reciprocal_rank": reciprocal_rank(result),
    }


def group_means(values: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, float]:
    """Group to the mean of its items, an item without a group being one of its own."""
    members: dict[str, list[float]] = {}
    for item, value in values.items():
        members.setdefault(groups.get(item) or item, []).append(value)
    return {group: float(np.mean(of_one)) for group, of_one in members.items()}
