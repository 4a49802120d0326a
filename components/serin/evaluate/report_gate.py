"""The report's first part: the verdict, the figures that matter most, and each rule of the gate with its picture."""

from collections.abc import Mapping
from html import escape
from math import inf
from typing import Any

from serin.core.decision import Decision
from serin.core.page import Section, Tile, badge, fold, table, tiles, verdict
from serin.core.palette import Tone
from serin.core.pictures import Axis, axis_around, intervals
from serin.core.statistics import Interval
from serin.evaluate.report_words import (
    OUTCOMES,
    WORDS,
    figure,
    numbers,
    rule_words,
    span_of,
    threshold,
    tone_of,
    with_interval,
)
from serin.evaluate.results import Results, definition

MOST_TILES = 6
HEADLINES = (
    "token_f1", "human_preference", "judge_preference", "attack_success_rate", "block_rate", "leak_rate",
    "over_refusal_rate", "latency_p95_s", "latency_s", "ttft_p95_s", "cost", "recall_at_5", "number_accuracy",
)  # fmt: skip
"""Metrics worth a large figure, of whatever suite; the first that are there are shown."""


def verdict_section(results: Results, decision: Decision) -> Section:
    """The outcome in a sentence, and a few large figures."""
    passed = decision.outcome == "pass"
    words = "Passes the gate" if passed else "Does not pass the gate"
    banner = verdict(Tone.GOOD if passed else Tone.BAD, words, decision.reasons)
    return Section("Verdict", banner + tiles(_tiles(results, decision)), listed=False)


def gate_section(results: Results, decision: Decision) -> Section:
    """Every rule: what it asks, where the interval lies, what became of it."""
    evidence = decision.evidence
    faults = "".join(f"<li>{escape(fault)}</li>" for fault in evidence.get("faults", ()))
    above = f'<div class="verdict soft-bad"><ul>{faults}</ul></div>' if faults else ""
    rows = [[rule_words(rule), _picture(rule), _judged(rule)] for rule in evidence["rules"]]
    note = "All of them must hold: the interval must lie in the green field. Right is better for the candidate."
    terms = fold(
        "What p, effect and detectable mean",
        "<p>p is one-sided and corrected over all claims (Holm); effect is the mean difference in standard deviations "
        "of the item differences; detectable is the smallest true difference that so many items would show, with the "
        "power that the policy names.</p>",
    )
    rules = table(["Rule", "Observed", "Outcome"], rows, widths=["24%", "40%", "36%"])
    return Section("The gate's rules", above + rules + terms, note)


def _tiles(results: Results, decision: Decision) -> list[Tile]:
    rules = [rule["outcome"] for rule in decision.evidence["rules"]]
    judged = [outcome for outcome in rules if outcome != "skipped"]
    held = judged.count("passed")
    skipped = len(rules) - len(judged)
    made = [
        Tile(
            "Rules that hold",
            f"{held} of {len(judged)}",
            f"{skipped} not judged" if skipped else "",
            Tone.GOOD if held == len(judged) > 0 else Tone.BAD,
        )
    ]
    values = results.values.get("candidate", {})
    for headline in HEADLINES:
        found = [name for name in values if name == headline or name.endswith(f".{headline}")]
        made += [_tile(name, values[name], results) for name in sorted(found, key=len)[:1]]
    return made[:MOST_TILES]


def _tile(name: str, value: Interval, results: Results) -> Tile:
    metric = definition(name)
    for role in ("champion", "baseline"):
        if comparison := results.comparisons.get(role, {}).get(name):
            gain = comparison.improvement
            tone = tone_of(gain)
            word = "better" if gain.estimate >= 0 else "worse"
            sure = "" if tone != Tone.PLAIN else ", not surely"
            note = f"{figure(abs(gain.estimate), metric.unit)} {word} than the {role}{sure}"
            return Tile(metric.label, figure(value.estimate, metric.unit), note, Tone.INK)
    return Tile(metric.label, figure(value.estimate, metric.unit))


def _judged(rule: Mapping[str, Any]) -> str:
    terms = {"p": "p_adjusted", "effect": "effect_size", "detectable": "detectable_difference"}
    said = " · ".join(f"{name} {_small(rule[key])}" for name, key in terms.items() if rule.get(key) is not None)
    line = f'<p class="note">{said}</p>' if said else ""
    why = fold("Why", f"<p>{escape(rule['reason'])}</p>", is_open=rule["outcome"] == "failed")
    return badge(OUTCOMES[rule["outcome"]], WORDS[rule["outcome"]]) + line + why


def _small(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.2f}"


def _picture(rule: Mapping[str, Any]) -> str:
    unit, tone = definition(rule["metric"]).unit, OUTCOMES[rule["outcome"]]
    if rule.get("slices_judged"):
        found = {one["slice"]: _interval(one) for one in rule["slices_judged"] if one["observed"]}
    else:
        found = {"": _interval(rule)} if rule["observed"] else {}
    if not found:
        return '<span class="note">not observed</span>'
    title = f"{definition(rule['metric']).label}, {rule['kind'].replace('_', ' ')}"
    spans = [span_of(one, tone, name) for name, one in found.items()]
    if rule["against"] is None:
        low, high = numbers(list(found.values())), rule["limit"]
        axis = (0.0, 1.0) if unit == "share" else axis_around([*low, high])
        allowed: Axis = (rule["limit"], inf) if rule["kind"] == "floor" else (-inf, rule["limit"])
        drawn = intervals(title, spans, axis, limit=rule["limit"], allowed=allowed)
    else:
        limit = threshold(rule)
        axis = axis_around(numbers(list(found.values())), include=(0.0, limit))
        drawn = intervals(title, spans, axis, zero=True, limit=limit, allowed=(limit, inf))
    signed = rule["against"] is not None
    said = [f"{f'{name}: ' if name else ''}{with_interval(one, unit, signed=signed)}" for name, one in found.items()]
    if len(said) == 1:
        return f'{drawn}<span class="note">{escape(said[0])}, {next(iter(found.values())).count} items</span>'
    names = "".join(f"<li>{escape(name)}</li>" for name in found)
    return f'<div class="plot"><ul>{names}</ul>{drawn}</div>'


def _interval(evidence: Mapping[str, Any]) -> Interval:
    observed = evidence["observed"]
    estimate, low, high = (
        float("nan") if observed[name] is None else observed[name] for name in ("estimate", "low", "high")
    )
    return Interval(estimate, low, high, observed["count"])
