"""What was measured, as pictures: every metric of every suite, in its group."""

from collections.abc import Sequence
from html import escape
from math import inf

from serin.core.decision import Decision
from serin.core.page import Section, fold, table
from serin.core.palette import Tone
from serin.core.pictures import axis_around, intervals, legend
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


def safety_section(results: Results, decision: Decision, failures: str) -> Section:
    """Attacks, refusals of the harmless, and leaks; below them the items that went wrong (HTML)."""
    names = [name for name in _names(results) if _own(name) in SAFETY]
    html = _metrics(names, results, decision) + failures
    return Section("Safety", html, "Guardrails and model together, as a caller meets them.")


def speed_section(results: Results, decision: Decision) -> Section:
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
    parts = [
        f"<h3>{escape(title)}</h3>{_about(title, results)}{_folded(title, names, results, decision)}"
        for title, names in groups.items()
    ]
    roles = {role: TONES[role] for role in ORDER if role in results.values}
    note = (
        f"Marks are means, bars {config.confidence:.0%} intervals; items of one group count as one. A difference "
        "is the candidate's improvement on the same items: right is better, and a dashed line is a rule's margin. Live "
        "retrieval finds today's documents, so its answers may rightly differ from older reference answers."
    )
    return Section("What was measured", (legend(roles) + "".join(parts)) if parts else "", note)


def _names(results: Results) -> list[str]:
    """Metrics with a value or a comparison, those of the dataset first and in their order."""
    found = {name for values in results.values.values() for name in values}
    found |= {name for values in results.comparisons.values() for name in values}
    own = [metric.name for metric in METRICS]
    listed = [name for info in results.suite_info for name in info.metrics]
    return [name for name in dict.fromkeys([*own, *listed, *sorted(found)]) if name in found]


def _about(title: str, results: Results) -> str:
    """Where a declared suite's items come from."""
    info = next((one for one in results.suite_info if _title(one.name) == title), None)
    if info is None:
        return ""
    items = f"{info.num_items} of {info.num_available} items" if info.num_available else f"{info.num_items} items"
    return f'<p class="note">{escape(info.kind)}, {items} of {escape(info.source)}</p>'


def _folded(title: str, names: Sequence[str], results: Results, decision: Decision) -> str:
    """A suite's metrics, folded into a line where no rule asks about them and nothing got surely worse."""
    drawn = _metrics(names, results, decision)
    if title in OWN:
        return drawn
    known = [found[name].improvement for found in results.comparisons.values() for name in names if name in found]
    tones = [tone_of(gain) for gain in known]
    better, worse = tones.count(Tone.GOOD), tones.count(Tone.BAD)
    ruled = any(rule["metric"] in names for rule in decision.evidence["rules"])
    count = "1 metric" if len(names) == 1 else f"{len(names)} metrics"
    text = f"{count}; of {len(known)} comparisons {better} surely better, {worse} surely worse"
    return fold(text, drawn, is_open=ruled or worse > 0)


def _own(name: str) -> str:
    """A metric's name without its suite."""
    return name.partition(".")[2] or name


def _group(name: str) -> str:
    for title, names in OWN.items():
        if name in names:
            return title
    return _title(name.partition(".")[0]) if "." in name else "Other metrics"


def _title(suite: str) -> str:
    return f"Suite {suite}"


def _metrics(names: Sequence[str], results: Results, decision: Decision) -> str:
    if not names:
        return ""
    roles = [role for role in ORDER if role in results.values]
    compared = [role for role in ("champion", "baseline") if results.comparisons.get(role)]
    rows = []
    for name in names:
        gains = [results.comparisons[role].get(name) for role in compared]
        cells = [
            gain_cell(name, role, gain, decision) if gain else ""
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


def gain_cell(name: str, role: str, comparison: Comparison, decision: Decision) -> str:
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
