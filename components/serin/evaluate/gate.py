"""The gate: an evaluation's results in, pass or fail with reasons out.  Pure."""

from math import isfinite
from typing import Any

from serin.core.decision import Decision
from serin.core.statistics import Interval
from serin.evaluate.config import GatePolicy, Rule
from serin.evaluate.results import BY_NAME, Results

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
TRUST = {"superiority": "better than", "non_inferiority": "no worse than"}


def decide(results: Results, policy: GatePolicy) -> Decision:
    """Judge a candidate by every rule of a policy.

    A metric that is missing, rests on too few items or is not a number fails its rule; a comparison with the
    champion is passed over, with its reason, when there is none or the candidate is the champion.  A policy of which
    nothing could be judged fails.

    Returns:
        ``pass`` or ``fail``; failures come first among the reasons, and the evidence holds each rule's numbers.
    """
    judged = [(rule, *_judge(rule, results)) for rule in policy.rules]
    outcomes = [outcome for _, outcome, _ in judged]
    passes = FAILED not in outcomes and PASSED in outcomes
    order = {FAILED: 0, PASSED: 1, SKIPPED: 2}
    reasons = [reason for _, outcome, reason in sorted(judged, key=lambda item: order[item[1]])]
    if PASSED not in outcomes and FAILED not in outcomes:
        reasons.insert(0, "No rule of the gate could be judged, and a gate that judges nothing does not pass.")
    return Decision(
        outcome="pass" if passes else "fail",
        reasons=tuple(reasons),
        evidence={"rules": [_evidence(rule, outcome, reason, results) for rule, outcome, reason in judged]},
        policy_version=policy.version,
    )


def _judge(rule: Rule, results: Results) -> tuple[str, str]:
    name = _name(rule.metric)
    if excuse := _excuse(rule, results):
        return SKIPPED, f"{name} was not judged{f' against the {rule.against}' if rule.against else ''}: {excuse}"
    interval = _observed(rule, results)
    if interval is None:
        against = f" against the {rule.against}" if rule.against else ""
        why = results.not_applicable.get(rule.metric, "")
        return FAILED, f"{name}{against} is missing from the evaluation, and a missing metric fails. {why}".strip()
    if interval.count < rule.min_items:
        return FAILED, (
            f"{name} rests on {interval.count} independent items and the rule needs {rule.min_items}: "
            f"add at least {rule.min_items - interval.count} more."
        )
    if not all(isfinite(value) for value in (interval.estimate, interval.low, interval.high)):
        return FAILED, f"{name} is not a number: look into the evaluation's answers."
    return _limit(rule, name, interval) if rule.against is None else _compare(rule, name, interval, results)


def _excuse(rule: Rule, results: Results) -> str | None:
    if rule.against == "champion" and "champion" in results.not_applicable:
        return results.not_applicable["champion"]
    return results.not_applicable.get(rule.metric) if rule.optional else None


def _observed(rule: Rule, results: Results) -> Interval | None:
    if rule.against is None:
        return results.values.get("candidate", {}).get(rule.metric)
    comparison = results.comparisons.get(rule.against, {}).get(rule.metric)
    return comparison.improvement if comparison else None


def _limit(rule: Rule, name: str, interval: Interval) -> tuple[str, str]:
    assert rule.limit is not None  # the rule's own validation
    holds = interval.estimate >= rule.limit if rule.kind == "floor" else interval.estimate <= rule.limit
    word = "at least" if rule.kind == "floor" else "at most"
    text = f"{name} is {interval.estimate:.3f} on {interval.count} items; {word} {rule.limit:.3f} is required."
    return (PASSED if holds else FAILED), text


def _compare(rule: Rule, name: str, interval: Interval, results: Results) -> tuple[str, str]:
    threshold = rule.margin if rule.kind == "superiority" else -rule.margin
    holds = interval.low > threshold
    value = results.values.get("candidate", {}).get(rule.metric)
    level = f" of {value.estimate:.3f}" if value else ""
    text = (
        f"{name}{level} is {abs(interval.estimate):.3f} {'better' if interval.estimate >= 0 else 'worse'} than the "
        f"{rule.against}'s (interval {interval.low:+.3f} to {interval.high:+.3f}, {interval.count} items); "
        f"its lower end must be above {threshold:+.3f} to call it {TRUST[rule.kind]} the {rule.against}."
    )
    return (PASSED if holds else FAILED), text


def _evidence(rule: Rule, outcome: str, reason: str, results: Results) -> dict[str, Any]:
    interval = None if _excuse(rule, results) else _observed(rule, results)
    numbers = {key: value if isfinite(value) else None for key, value in interval.dump().items()} if interval else None
    return {**rule.dump(), "outcome": outcome, "reason": reason, "observed": numbers}


def _name(metric: str) -> str:
    return BY_NAME[metric].label if metric in BY_NAME else repr(metric)
