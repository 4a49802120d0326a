"""The gate: an evaluation's results in, pass or fail with reasons out.  Pure.

Every comparing rule claims something about mean differences on the same items.  Its p-value is a sign-flip test's; the
claims of all rules together are corrected by Holm's method, so that a gate that compares many metrics does not find a
better one by luck; and the interval's end must keep to the margin too.  ``no_regression`` asks the opposite question
(is it surely worse?), and has a correction of its own over everything that it looks at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any

import numpy as np

from serin.core.decision import Decision
from serin.core.paired import detectable_difference, holm, items_needed, sign_flip_test
from serin.core.statistics import Interval
from serin.evaluate.config import GatePolicy, Rule
from serin.evaluate.results import Comparison, Results, definition

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
TRUST = {"superiority": "better than", "non_inferiority": "no worse than"}
SHOWN_IDS = 3


@dataclass(frozen=True)
class Claim:
    """What a comparing rule says about one set of items."""

    key: str
    slice: str
    """Empty: all items."""
    comparison: Comparison | None
    p_value: float | None
    """One-sided; None where it could not be tested."""

    @property
    def count(self) -> int:
        """Independent items."""
        return self.comparison.improvement.count if self.comparison else 0

    @property
    def deviation(self) -> float:
        """Of the gains."""
        gains = self.comparison.gains if self.comparison else ()
        return float(np.std(gains, ddof=1)) if len(gains) > 1 else 0.0


@dataclass(frozen=True)
class Judged:
    """What became of a rule."""

    outcome: str
    reason: str
    claims: tuple[Claim, ...] = ()


def decide(results: Results, policy: GatePolicy) -> Decision:
    """Judge a candidate by every rule of a policy.

    A metric that is missing, rests on too few items or is not a number fails its rule, and so do items that changed,
    that a release has not answered or that were found in the training data.  A comparison with the champion is passed
    over, with its reason, when there is none or the candidate is the champion.  A policy of which nothing could be
    judged fails.

    Returns:
        ``pass`` or ``fail``; failures come first among the reasons, and the evidence holds each rule's numbers.
    """
    claims = {number: _claims(number, rule, results) for number, rule in enumerate(policy.rules)}
    adjusted = _adjusted(claims, policy)
    judged = [
        (rule, _judge(rule, claims[number], adjusted, results, policy)) for number, rule in enumerate(policy.rules)
    ]
    outcomes = [one.outcome for _, one in judged]
    faults = _faults(results, policy)
    passes = not faults and FAILED not in outcomes and PASSED in outcomes
    order = {FAILED: 0, PASSED: 1, SKIPPED: 2}
    reasons = [*faults, *(one.reason for _, one in sorted(judged, key=lambda item: order[item[1].outcome]))]
    if PASSED not in outcomes and FAILED not in outcomes:
        reasons.insert(0, "No rule of the gate could be judged, and a gate that judges nothing does not pass.")
    return Decision(
        outcome="pass" if passes else "fail",
        reasons=tuple(reasons),
        evidence={
            "rules": [_evidence(rule, one, adjusted, results, policy) for rule, one in judged],
            "faults": faults,
            "suites": results.suites,
        },
        policy_version=policy.version,
    )


def _faults(results: Results, policy: GatePolicy) -> list[str]:
    """What makes the whole evaluation unfit, whatever the numbers."""
    faults = [f"Suite {name!r} cannot be compared: {why}" for name, why in sorted(results.broken_suites.items())]
    for name, digest in sorted(policy.suites.items()):
        found = results.suites.get(name)
        if found is None:
            faults.append(f"Suite {name!r} is missing from the evaluation, and the policy asks for it.")
        elif not found.startswith(digest):
            faults.append(
                f"Suite {name!r} has changed: its items' digest is {found[:12]} and the policy's {digest[:12]}. "
                "Restore the items, or approve them by a new policy."
            )
    if results.contaminated and policy.contaminated == "fail":
        named = ", ".join(results.contaminated[:SHOWN_IDS])
        more = "" if len(results.contaminated) <= SHOWN_IDS else " and others"
        faults.append(
            f"{len(results.contaminated)} items were seen in training ({named}{more}), so they measure memory: take "
            "them out of the training data or of the suite."
        )
    return faults


def _claims(number: int, rule: Rule, results: Results) -> list[Claim]:
    if rule.against is None or _excuse(rule, results):
        return []
    if not rule.slices:
        comparison = results.comparisons.get(rule.against, {}).get(rule.metric)
        return [Claim(f"{number}:", "", comparison, _p_value(rule, comparison))]
    found = results.slices.get(rule.against, {})
    claims = []
    for name in _slices(rule.slices, found):
        comparison = found.get(name, {}).get(rule.metric)
        if name in rule.slices or (comparison and comparison.improvement.count >= rule.min_items):
            claims.append(Claim(f"{number}:{name}", name, comparison, _p_value(rule, comparison)))
    return claims


def _slices(patterns: Sequence[str], found: dict[str, Any]) -> list[str]:
    names: dict[str, None] = {}
    for pattern in patterns:
        if pattern.endswith(":*"):
            names |= dict.fromkeys(sorted(name for name in found if name.startswith(pattern[:-1])))
        else:
            names[pattern] = None
    return list(names)


def _p_value(rule: Rule, comparison: Comparison | None) -> float | None:
    if comparison is None or not comparison.gains or not np.isfinite(comparison.gains).all():
        return None
    if rule.kind == "no_regression":
        return sign_flip_test([-gain for gain in comparison.gains], null=rule.margin)
    return sign_flip_test(comparison.gains, null=rule.margin if rule.kind == "superiority" else -rule.margin)


def _adjusted(claims: dict[int, list[Claim]], policy: GatePolicy) -> dict[str, float]:
    """Holm's correction within each of the two questions that comparing rules ask."""
    harms = {number for number, rule in enumerate(policy.rules) if rule.kind == "no_regression"}
    adjusted: dict[str, float] = {}
    for family in (harms, set(claims) - harms):
        known = {one.key: one.p_value for number in family for one in claims[number] if one.p_value is not None}
        adjusted |= holm(known)
    return adjusted


def _judge(rule: Rule, claims: list[Claim], adjusted: dict[str, float], results: Results, policy: GatePolicy) -> Judged:
    name = _name(rule.metric)
    if excuse := _excuse(rule, results):
        against = f" against the {rule.against}" if rule.against else ""
        return Judged(SKIPPED, f"{name} was not judged{against}: {excuse}")
    if rule.against is None:
        interval = results.values.get("candidate", {}).get(rule.metric)
        problem = _unfit(rule, name, interval, results)
        return Judged(FAILED, problem) if problem or interval is None else _limit(rule, name, interval)
    if not claims:
        what = ", ".join(rule.slices)
        return Judged(SKIPPED, f"{name} was not judged by {what}: no slice has {rule.min_items} independent items.")
    each = [_claimed(rule, name, claim, adjusted, results, policy) for claim in claims]
    failed = [reason for outcome, reason in each if outcome == FAILED]
    if failed or len(each) == 1:
        return Judged(FAILED if failed else PASSED, " ".join(failed or [each[0][1]]), tuple(claims))
    worst = min(claims, key=lambda claim: claim.comparison.improvement.estimate if claim.comparison else 0.0)
    assert worst.comparison is not None  # claims that hold were compared
    return Judged(
        PASSED,
        f"{name} holds against the {rule.against} in all {len(each)} slices ({', '.join(rule.slices)}); the least gain "
        f"is {worst.comparison.improvement.estimate:+.3f}, in {worst.slice}.",
        tuple(claims),
    )


def _claimed(
    rule: Rule, name: str, claim: Claim, adjusted: dict[str, float], results: Results, policy: GatePolicy
) -> tuple[str, str]:
    where = f"{name} in {claim.slice}" if claim.slice else name
    interval = claim.comparison.improvement if claim.comparison else None
    if problem := _unfit(rule, where, interval, results):
        return FAILED, problem
    p_value = adjusted.get(claim.key)
    if interval is None or p_value is None:
        return FAILED, f"{where} has no values by item, without which nothing can be tested: evaluate again."
    if rule.kind == "no_regression":
        return _regression(rule, where, interval, p_value, policy)
    return _compare(rule, where, claim, interval, p_value, results, policy)


def _excuse(rule: Rule, results: Results) -> str | None:
    if rule.against == "champion" and "champion" in results.not_applicable:
        return results.not_applicable["champion"]
    return _why_absent(rule.metric, results) if rule.optional else None


def _why_absent(metric: str, results: Results) -> str | None:
    """Why a metric, or its suite, is not there, where the evaluation says so."""
    suite = metric.partition(".")[0] if "." in metric else metric
    return results.not_applicable.get(metric) or results.not_applicable.get(suite)


def _unfit(rule: Rule, name: str, interval: Interval | None, results: Results) -> str:
    """Why a rule cannot be judged, which fails it; empty where it can."""
    if interval is None:
        against = f" against the {rule.against}" if rule.against else ""
        why = _why_absent(rule.metric, results) or ""
        return f"{name}{against} is missing from the evaluation, and a missing metric fails. {why}".strip()
    if interval.count < rule.min_items:
        return (
            f"{name} rests on {interval.count} independent items and the rule needs {rule.min_items}: "
            f"add at least {rule.min_items - interval.count} more."
        )
    if not all(isfinite(value) for value in (interval.estimate, interval.low, interval.high)):
        return f"{name} is not a number: look into the evaluation's answers."
    return ""


def _limit(rule: Rule, name: str, interval: Interval) -> Judged:
    assert rule.limit is not None  # the rule's own validation
    at_least = rule.kind == "floor"
    value = (interval.low if at_least else interval.high) if rule.surely else interval.estimate
    holds = value >= rule.limit if at_least else value <= rule.limit
    word = "at least" if at_least else "at most"
    surely = f" (interval {interval.low:.3f} to {interval.high:.3f})" if rule.surely else ""
    required = f"surely {word}" if rule.surely else word
    text = (
        f"{name} is {interval.estimate:.3f}{surely} on {interval.count} items; {required} {rule.limit:.3f} is required."
    )
    return Judged(PASSED, text) if holds else Judged(FAILED, text + _more_for_limit(rule, interval))


def _more_for_limit(rule: Rule, interval: Interval) -> str:
    """How many items would tell, where the estimate keeps to the limit and its interval does not: an interval's width
    goes with the root of the items."""
    assert rule.limit is not None  # the rule's own validation
    at_least = rule.kind == "floor"
    distance = interval.estimate - rule.limit if at_least else rule.limit - interval.estimate
    reach = interval.estimate - interval.low if at_least else interval.high - interval.estimate
    if not rule.surely or distance <= 0 or reach <= distance:
        return ""
    return f" These items leave it open: about {ceil(interval.count * (reach / distance) ** 2)} would tell."


def _compare(
    rule: Rule, name: str, claim: Claim, interval: Interval, p_value: float, results: Results, policy: GatePolicy
) -> tuple[str, str]:
    threshold = rule.margin if rule.kind == "superiority" else -rule.margin
    holds = interval.low > threshold and p_value <= policy.alpha
    value = results.values.get("candidate", {}).get(rule.metric) if not claim.slice else None
    level = f" of {value.estimate:.3f}" if value else ""
    text = (
        f"{name}{level} is {abs(interval.estimate):.3f} {'better' if interval.estimate >= 0 else 'worse'} than the "
        f"{rule.against}'s (interval {interval.low:+.3f} to {interval.high:+.3f}, {interval.count} items, corrected p "
        f"{p_value:.4f}); its lower end must be above {threshold:+.3f}, and p at most {policy.alpha:g}, to call it "
        f"{TRUST[rule.kind]} the {rule.against}."
    )
    if holds:
        return PASSED, text
    return FAILED, f"{text}{_more_items(rule, claim, interval, threshold, policy)}"


def _more_items(rule: Rule, claim: Claim, interval: Interval, threshold: float, policy: GatePolicy) -> str:
    """What it would take to tell, where the items leave it open."""
    if interval.high <= threshold:
        return ""
    true_gain = max(interval.estimate, 0.0) if rule.kind == "non_inferiority" else interval.estimate
    needed = items_needed(claim.deviation, true_gain - threshold, alpha=policy.alpha, power=policy.power)
    if needed is None or needed <= claim.count:
        return ""
    return f" These items leave it open: about {needed} would tell (power {policy.power:.0%})."


def _regression(rule: Rule, name: str, interval: Interval, p_value: float, policy: GatePolicy) -> tuple[str, str]:
    worse = p_value <= policy.alpha and interval.high < -rule.margin
    text = (
        f"{name} is {'surely' if worse else 'not surely'} worse than the {rule.against}'s by more than "
        f"{rule.margin:.3f}: {interval.estimate:+.3f} (interval {interval.low:+.3f} to {interval.high:+.3f}, "
        f"{interval.count} items, corrected p {p_value:.4f})."
    )
    return (FAILED if worse else PASSED), text


def _evidence(
    rule: Rule, judged: Judged, adjusted: dict[str, float], results: Results, policy: GatePolicy
) -> dict[str, Any]:
    values = {**rule.dump(), "outcome": judged.outcome, "reason": judged.reason, "observed": None}
    if rule.against is None and judged.outcome != SKIPPED:
        interval = results.values.get("candidate", {}).get(rule.metric)
        return {**values, "observed": _plain(interval)}
    claims = [_numbers(claim, adjusted, policy) for claim in judged.claims]
    if len(claims) == 1 and not rule.slices:
        return {**values, **claims[0]}
    return {**values, "slices_judged": claims} if rule.slices else values


def _numbers(claim: Claim, adjusted: dict[str, float], policy: GatePolicy) -> dict[str, Any]:
    interval = claim.comparison.improvement if claim.comparison else None
    detectable = detectable_difference(claim.deviation, claim.count, alpha=policy.alpha, power=policy.power)
    return {
        "observed": _plain(interval),
        "p_value": claim.p_value,
        "p_adjusted": adjusted.get(claim.key),
        "effect_size": claim.comparison.effect_size if claim.comparison else None,
        "detectable_difference": detectable if isfinite(detectable) else None,
        **({"slice": claim.slice} if claim.slice else {}),
    }


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    if interval is None:
        return None
    return {key: value if isfinite(value) else None for key, value in interval.dump().items()}


def _name(metric: str) -> str:
    found = definition(metric)
    return repr(metric) if found.unit == "value" else found.label
