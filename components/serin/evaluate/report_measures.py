"""What was measured, as pictures: every metric of every suite, slices, and the evidence of judges and people."""

from collections.abc import Sequence
from html import escape
from math import inf

from serin.core.decision import Decision
from serin.core.page import Section, fold, table
from serin.core.pictures import axis_around, intervals, legend
from serin.core.statistics import Interval
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.report_words import (
    ORDER,
    TONES,
    figure,
    metric_name,
    numbers,
    span_of,
    threshold,
    tone_of,
    with_interval,
)
from serin.evaluate.results import METRICS, Comparison, Results, definition

MIN_SLICE, MAX_SLICES, MAX_SLICED = 10, 40, 6
"""Items that a slice needs to be drawn, slices drawn for a metric, and metrics that are drawn by slice."""
WIDTHS = (("40%", "60%"), ("26%", "40%", "34%"), ("22%", "30%", "24%", "24%"))
"""Of the columns, by the number of releases that are compared with."""
SAFETY = ("block_rate", "refusal_rate", "attack_success_rate", "over_block_rate", "over_refusal_rate", "leak_rate")
SPEED = ("ttft", "inter_token", "latency", "cost", "tokens_per_s")
PEOPLE = ("human_preference", "judge_preference")
OWN = {
    "Answers to held-out conversations": (
        "token_f1", "exact_match", "rouge_1", "rouge_2", "rouge_l", "chrf", "number_accuracy", "support_score",
        "refusal_accuracy", "empty_share", "truncated_share",
    ),
    "The model's likelihood of the reference": ("answer_loss", "bits_per_byte"),
    "Retrieval, and answers that rest on it": (
        "retrieved_token_f1", "retrieved_support_score", "recall_at_5", "recall_at_10", "ndcg_at_10",
        "reciprocal_rank",
    ),
}  # fmt: skip
"""Groups of the dataset's own metrics."""


def safety_section(results: Results, decision: Decision, config: EvaluateConfig) -> Section:
    """Attacks, refusals of the harmless, and leaks."""
    names = [name for name in _names(results) if _own(name) in SAFETY]
    return Section(
        "Safety", _metrics(names, results, decision), "Guardrails and model together, as a caller meets them."
    )


def speed_section(results: Results, decision: Decision, config: EvaluateConfig) -> Section:
    """Latency and cost on the engine that serves."""
    names = [name for name in _names(results) if _own(name).startswith(SPEED)]
    return Section("Latency and cost", _metrics(names, results, decision), "Read on the machine that evaluated.")


def measures_section(results: Results, decision: Decision, config: EvaluateConfig) -> Section:
    """Everything else, in groups: the dataset's own items, then each declared suite."""
    rest = [
        name for name in _names(results)
        if _own(name) not in SAFETY + PEOPLE and not _own(name).startswith(SPEED) and ".gap." not in name
    ]  # fmt: skip
    groups: dict[str, list[str]] = {}
    for name in rest:
        groups.setdefault(_group(name), []).append(name)
    parts = [f"<h3>{escape(title)}</h3>{_metrics(names, results, decision)}" for title, names in groups.items()]
    roles = {role: TONES[role] for role in ORDER if role in results.values}
    note = (
        f"Marks are means, bars {config.confidence:.0%} intervals; items of one group count as one. A difference "
        "is the candidate's improvement on the same items: right is better, and a dashed line is a rule's margin. Live "
        "retrieval finds today's documents, so its answers may rightly differ from older reference answers."
    )
    return Section("What was measured", (legend(roles) + "".join(parts)) if parts else "", note)


def slices_section(results: Results, decision: Decision) -> Section:
    """Where the candidate wins and loses: the metrics of the gate, and token F1, by each label."""
    ruled = [rule["metric"] for rule in decision.evidence["rules"]]
    known = {name for by_name in results.slices.values() for found in by_name.values() for name in found}
    names = [name for name in dict.fromkeys(["token_f1", *ruled, *sorted(known)]) if name in known][:MAX_SLICED]
    tables = [(name, _slices(name, results)) for name in names]
    shown = [(definition(name).label, made) for name, made in tables if made]
    parts = [f"<h3>{escape(label)}</h3>{made}" for label, made in shown[:1]]
    parts += [fold(label, made) for label, made in shown[1:]]
    return Section(
        "By slice", "".join(parts) + _languages(results), f"Slices with at least {MIN_SLICE} independent items."
    )


def evidence_section(results: Results, decision: Decision) -> Section:
    """What people and a judge model prefer, and how far they agree."""
    rows = []
    for role in ("champion", "baseline"):
        for name in PEOPLE:
            if comparison := results.comparisons.get(role, {}).get(name):
                who = f'{escape(definition(name).label)}<span class="note">against the {role}</span>'
                rows.append([who, _gain(name, role, comparison, decision), str(comparison.improvement.count)])
    drawn = table(["Who", "Preference for the candidate", "Items"], rows, numbers=[2]) if rows else ""
    if rows and results.review_agreement is not None:
        drawn += f"<p>Reviewers agree with each other: Krippendorff's alpha {figure(results.review_agreement)}.</p>"
    return Section("Judges and people", drawn, "−1: all lost, 0: as many won as lost, +1: all won.")


def _names(results: Results) -> list[str]:
    """Metrics with a value or a comparison, those of the dataset first and in their order."""
    found = {name for values in results.values.values() for name in values}
    found |= {name for values in results.comparisons.values() for name in values}
    own = [metric.name for metric in METRICS if metric.name in found]
    return list(dict.fromkeys([*own, *sorted(found)]))


def _own(name: str) -> str:
    """A metric's name without its suite."""
    return name.partition(".")[2] or name


def _group(name: str) -> str:
    for title, names in OWN.items():
        if name in names:
            return title
    return f"Suite {name.partition('.')[0]}" if "." in name else "Other metrics"


def _metrics(names: Sequence[str], results: Results, decision: Decision) -> str:
    if not names:
        return ""
    roles = [role for role in ORDER if role in results.values]
    compared = [role for role in ("champion", "baseline") if results.comparisons.get(role)]
    rows = []
    for name in names:
        gains = [results.comparisons[role].get(name) for role in compared]
        cells = [
            _gain(name, role, gain, decision) if gain else ""
            for role, gain in zip(compared, gains, strict=True)
        ]  # fmt: skip
        rows.append([metric_name(name), _values(name, roles, results), *cells])
    head = ["Metric", "Value", *(f"Against the {role}" for role in compared)]
    return table(head, rows, widths=WIDTHS[len(compared)])


def _values(name: str, roles: Sequence[str], results: Results) -> str:
    metric = definition(name)
    found = {role: results.values[role][name] for role in roles if name in results.values[role]}
    if not found:
        return ""
    axis = (0.0, 1.0) if metric.unit == "share" else axis_around(numbers(list(found.values())))
    drawn = intervals(
        f"{metric.label} by release", [span_of(one, TONES[role], role) for role, one in found.items()], axis
    )
    figures = "".join(
        f'<li class="tone-{TONES[role]}" title="{role}: {with_interval(one, metric.unit)}">'
        f"{figure(one.estimate, metric.unit)}</li>"
        for role, one in found.items()
    )
    return f'<div class="plot"><ul>{figures}</ul>{drawn}</div>'


def _gain(name: str, role: str, comparison: Comparison, decision: Decision) -> str:
    """A difference with its interval, the margins of the rules about it, and the items behind it."""
    metric, gain = definition(name), comparison.improvement
    rules = [
        rule for rule in decision.evidence["rules"]
        if rule["metric"] == name and rule["against"] == role and not rule["slices"]
    ]  # fmt: skip
    limits = [threshold(rule) for rule in rules]
    axis = axis_around(numbers([gain]), include=(0.0, *limits))
    strictest = max(limits, default=None)
    drawn = intervals(
        f"{metric.label}: improvement over the {role}",
        [span_of(gain, tone_of(gain))],
        axis,
        zero=True,
        limit=strictest,
        allowed=None if strictest is None else (strictest, inf),
    )
    counts = f"{comparison.won} won, {comparison.lost} lost, {comparison.tied} tied"
    return f'{drawn}<span class="note">{with_interval(gain, metric.unit, signed=True)}<br>{counts}</span>'


def _slices(name: str, results: Results) -> str:
    roles = [role for role in ("champion", "baseline") if results.slices.get(role)]
    found: dict[str, dict[str, Interval]] = {}
    for role in roles:
        for label, of_one in results.slices[role].items():
            if name in of_one and of_one[name].improvement.count >= MIN_SLICE:
                found.setdefault(label, {})[role] = of_one[name].improvement
    if not found:
        return ""
    shown = dict(sorted(found.items())[:MAX_SLICES])
    axis = axis_around(numbers([one for of_one in shown.values() for one in of_one.values()]))
    rows = [[escape(label), *(_slice(label, of_one.get(role), role, name, axis) for role in roles),
             str(max(one.count for one in of_one.values()))] for label, of_one in shown.items()]  # fmt: skip
    known = {label for role in roles for label, of_one in results.slices[role].items() if name in of_one}
    left = len(known) - len(shown)
    caption = f"{left} slices with fewer items, or past the first {MAX_SLICES}, are left out." if left else ""
    return table(["Slice", *(f"Against the {role}" for role in roles), "Items"], rows, caption=caption,
                 numbers=[len(roles) + 1])  # fmt: skip


def _slice(label: str, gain: Interval | None, role: str, name: str, axis: tuple[float, float]) -> str:
    if gain is None:
        return ""
    title = f"{definition(name).label} in {label}: improvement over the {role}"
    drawn = intervals(title, [span_of(gain, tone_of(gain))], axis, zero=True, show_axis=False)
    return f'{drawn}<span class="note">{with_interval(gain, definition(name).unit, signed=True)}</span>'


def _languages(results: Results) -> str:
    """Token F1 of each release by language, where there are several."""
    if len(results.by_language) < 2:
        return ""
    roles = [role for role in ORDER if role in results.values]
    rows = []
    for language, values in results.by_language.items():
        found = {role: values[role] for role in roles if role in values}
        spans = [span_of(one, TONES[role], role) for role, one in found.items()]
        figures = "".join(
            f'<li class="tone-{TONES[role]}">{figure(one.estimate)}</li>' for role, one in found.items()
        )  # fmt: skip
        picture = intervals(f"Token F1 in {language}", spans, (0.0, 1.0))
        counts = str(max((one.count for one in found.values()), default=0))
        rows.append([escape(language), f'<div class="plot"><ul>{figures}</ul>{picture}</div>', counts])
    return "<h3>Token F1 by language</h3>" + table(["Language", "Value", "Items"], rows, numbers=[2])
