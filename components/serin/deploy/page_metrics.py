"""The metrics of a rollout on its page: a card of two small charts each, and the table of what is known now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import exp, inf, isfinite, log, log10
from typing import Any

from serin.core.page import badge, table
from serin.core.palette import Tone
from serin.core.pictures import short
from serin.deploy.config import JudgePolicy, MetricPolicy
from serin.deploy.judge_metrics import metrics_of
from serin.deploy.page_charts import Curve, Level, Scale, Zone, chart

TITLES = {
    "errors": "Errors",
    "ttft": "Time to first token",
    "support": "Support score",
    "inter_token": "Time per further token",
    "latency": "Whole latency",
    "tokens": "Tokens per answer",
    "cost": "Cost per answer",
    "guardrail_blocks": "Blocked by a guardrail",
    "guardrail_flags": "Touched by a guardrail",
    "invalid_format": "Invalid format",
    "refusals": "Refusals",
    "cut_short": "Empty or cut short",
    "negative_feedback": "Negative feedback",
}
UNITS = {"ttft": " ms", "inter_token": " ms", "latency": " ms"}
MOST_POINTS = 100
"""Of more looks, a small chart leaves some out."""
UNBOUNDED = 1e20
"""The judge's ratios from here on stand for no bound."""
LEAST_E, MOST_E = 1e-3, 1e15
"""Ends of the widest axis of e-values."""
HEAD = "display:flex;flex-wrap:wrap;gap:.2rem .6rem;justify-content:space-between;align-items:baseline"
Course = Sequence[tuple[float, Mapping[str, Any]]]


@dataclass(frozen=True)
class Measured:
    """One metric over the looks."""

    policy: MetricPolicy
    course: Course
    """Seconds since the start, and what the judge said of it."""
    harmful: bool = False
    """Whether it is among the reasons of a rollback."""

    @property
    def name(self) -> str:
        """As the policy has it."""
        return self.policy.name

    @property
    def title(self) -> str:
        """For people."""
        return TITLES.get(self.name, self.name)

    @property
    def now(self) -> Mapping[str, Any]:
        """What the last look said."""
        return self.course[-1][1]

    @property
    def is_ratio(self) -> bool:
        """Whether releases are compared by a ratio."""
        return self.policy.kind == "log_mean"

    @property
    def factor(self) -> float:
        """From the judge's differences to those that are shown: rates in points of a hundred."""
        return 100.0 if self.policy.kind == "rate" else 1.0

    @property
    def sign(self) -> float:
        """1 where more is worse."""
        return 1.0 if self.policy.better == "lower" else -1.0

    def line(self, name: str) -> float | None:
        """Where ``tolerated`` or ``limit`` lies on the metric's axis."""
        value = self.now.get(name)
        if value is None:
            return None
        return float(value) ** self.sign if self.is_ratio else self.sign * value * self.factor

    def interval(self, values: Mapping[str, Any]) -> tuple[float, float, float] | None:
        """Low end, estimate and high end on the metric's axis; an end that is not known is infinite."""
        estimate = values.get("estimate")
        if estimate is None:
            return None
        lower, upper = values.get("lower"), values.get("upper")
        low = -inf if lower is None else float(lower)
        high = inf if upper is None or (self.is_ratio and upper >= UNBOUNDED) else float(upper)
        if self.is_ratio:
            return max(low, 0.0), min(max(float(estimate), 1e-9), 1e9), high
        return low * self.factor, estimate * self.factor, high * self.factor

    def changed(self, value: float, *, signed: bool = True) -> str:
        """A ratio or a difference as text."""
        if self.is_ratio:
            return "no bound" if value in (0.0, inf) else f"{value:.2f}" if value < 100 else "over 100"
        if not isfinite(value):
            return "no bound"
        digits = 1 if self.factor > 1 else 3
        value = round(value, digits) or 0.0  # no zero has a sign
        return f"{value:{'+' if signed and value else ''}.{digits}f}".replace("-", "−")

    @property
    def unit(self) -> str:
        """After a ratio or a difference."""
        return "×" if self.is_ratio else " points" if self.factor > 1 else ""

    def of_side(self, side: str) -> str:
        """What a release has by itself."""
        value = self.now.get(side)
        if value is None:
            return "–"
        if self.policy.kind == "rate":
            return f"{100 * value:.1f}%"
        return f"{short(value)}{UNITS.get(self.name, '')}" if self.is_ratio else f"{value:.3f}"

    @property
    def matters(self) -> bool:
        """Whether a decision rests on it now: it has a limit, or speaks for harm."""
        return self.now.get("limit") is not None or self.harmful or _pull(self.now) > 0

    @property
    def is_harm(self) -> bool:
        """Whether it rolled back, or would by itself."""
        e_value, threshold = self.now.get("e_value"), self.now.get("e_threshold_alone")
        return self.harmful or (e_value is not None and threshold is not None and e_value >= threshold)


def measured(looks: Course, policies: Sequence[MetricPolicy], reasons: Sequence[str] = ()) -> list[Measured]:
    """The metrics that have values, those that decided first.

    Args:
        looks: seconds since the start, and the metrics of each look.
        policies: the metrics that the judge knows.
        reasons: of a rollback, which name the metrics they rest on.
    """
    declared = {metric.name: metric for metric in policies}
    latest = looks[-1][1] if looks else {}
    found = []
    for name, values in latest.items():
        metric = declared.get(name) or MetricPolicy(name=name, kind=values.get("kind", "bounded_mean"))
        course = [(at, one[name]) for at, one in looks if name in one]
        found.append(Measured(metric, course, harmful=any(reason.startswith(f"{name} is ") for reason in reasons)))
    places = {name: place for place, name in enumerate(declared)}
    return sorted(
        found,
        key=lambda one: (not one.is_harm, not one.matters, -_pull(one.now), places.get(one.name, len(places))),
    )


def card(metric: Measured, x: Scale, *, over: bool) -> str:
    """A metric's change with its band against its limits, and its e-value against its threshold.

    Args:
        metric: with at least one look.
        x: seconds; the same for all cards.
        over: whether the rollout is over.
    """
    tone, word = status(metric, over=over)
    interval = metric.interval(metric.now)
    said = "No value on one side yet." if interval is None else _said(metric, interval)
    compared = "Ratio to the champion, log axis" if metric.is_ratio else "Difference from the champion"
    unit = ", points of 100" if metric.factor > 1 else ""
    course = thinned(metric.course)
    change, evidence = _change_chart(metric, course, x), _harm_chart(metric, course, x)
    return (
        f'<div class="card"><div style="{HEAD}"><h3 style="margin:0">{escape(metric.title)}</h3>'
        f"{badge(tone, word)}</div>"
        f'<p class="note">{said}</p>'
        + (f"<figure><figcaption>{compared}{unit}</figcaption>{change}</figure>" if change else "")
        + (f"<figure><figcaption>e-value, log axis</figcaption>{evidence}</figure>" if evidence else "")
        + "</div>"
    )


def status(metric: Measured, *, over: bool) -> tuple[Tone, str]:
    """What is known of a metric, in a word."""
    if metric.is_harm:
        return Tone.BAD, "worse"
    proven = metric.now.get("proven")
    if proven is not None:
        return (Tone.GOOD, "no harm") if proven else (Tone.WARN, "not proven" if over else "not proven yet")
    return (Tone.PLAIN, "watched") if metric.now.get("e_threshold_alone") else (Tone.PLAIN, "only reported")


def metrics_table(metrics: Sequence[Measured], *, over: bool) -> str:
    """All metrics as they are now."""
    head = ["Metric", "Candidate", "Champion", "Change", "Tolerated", "Limit", "e-value (harm at)", "Sessions", "Known"]
    return table(head, [_row(metric, over=over) for metric in metrics], numbers=range(1, 8)) if metrics else ""


def policy_table(policy: JudgePolicy) -> str:
    """What is asked of each metric."""
    rows = [
        [
            f'{escape(TITLES.get(one.name, one.name))}<span class="note">{escape(one.name)}</span>',
            {"rate": "share of requests", "log_mean": "ratio of geometric means", "bounded_mean": "score"}[one.kind],
            one.better,
            "never rolls back" if one.tolerated is None else f"{one.tolerated:g}",
            "not asked" if one.limit is None else f"{one.limit:g}{', always' if one.required else ''}",
            f"{one.weight:g}",
        ]
        for one in metrics_of(policy)
    ]
    return table(["Metric", "Compared as", "Better", "Tolerated", "Limit", "Weight"], rows, numbers=(5,))


def e_scale(values: Sequence[float], threshold: float) -> Scale:
    """A logarithmic axis that holds e-values and a threshold, in whole powers of ten where it reaches further."""
    least = min([0.1, *(value for value in values if value > 0)])
    most = max([threshold * 5, *(value * 3 for value in values)])
    return Scale(max(LEAST_E, 10.0 ** (log10(least) // 1)), min(MOST_E, most), log=True)


def power(value: float) -> str:
    """An e-value on an axis: a power of ten beyond ten thousand."""
    if value < 1e5:
        return f"{value:g}"
    return "10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in f"{log10(value):.0f}")


def e_text(value: float | None) -> str:
    """An e-value as a figure."""
    if value is None:
        return "–"
    return (
        short(value)
        if 0.01 <= value < 1e6
        else "under 0.01"
        if value < 0.01
        else f"over {power(10 ** (log10(value) // 1))}"
    )


def thinned(course: Course) -> Course:
    """At most ``MOST_POINTS`` looks: of each few the one with the highest e-value, and the last of all."""
    every = -(-len(course) // MOST_POINTS)
    if every <= 1:
        return course
    groups = [course[max(0, end - every) : end] for end in range(len(course), 0, -every)][::-1]
    return [*(max(group, key=_e_of) for group in groups[:-1]), course[-1]]


def _e_of(look: tuple[float, Mapping[str, Any]]) -> float:
    return float(look[1].get("e_value") or 0.0)


def _pull(values: Mapping[str, Any]) -> float:
    """How near a metric is to being harm by itself."""
    e_value, threshold = values.get("e_value"), values.get("e_threshold_alone")
    return 0.0 if not e_value or not threshold or e_value <= 1 else e_value / threshold


def _said(metric: Measured, interval: tuple[float, float, float]) -> str:
    low, estimate, high = interval
    if metric.is_ratio:
        found = f"{metric.changed(estimate)} times the champion’s"
    else:
        found = f"{metric.changed(estimate)}{metric.unit}"
    return f"{found} ({metric.changed(low)} to {metric.changed(high)})"


def _row(metric: Measured, *, over: bool) -> list[str]:
    interval = metric.interval(metric.now)
    e_value, threshold = metric.now.get("e_value"), metric.now.get("e_threshold_alone")
    change = "–"
    if interval is not None:
        low, estimate, high = map(metric.changed, interval)
        change = _two_lines(f"{estimate}{metric.unit}", f"{low} to {high}")
    lines = [metric.line(name) for name in ("tolerated", "limit")]
    sessions = f"{metric.now.get('candidate_sessions', 0)} / {metric.now.get('champion_sessions', 0)}"
    return [
        f'{escape(metric.title)}<span class="note">{escape(metric.name)}</span>',
        metric.of_side("candidate"),
        metric.of_side("champion"),
        change,
        *("–" if line is None else f"{metric.changed(line)}{metric.unit}" for line in lines),
        "–" if threshold is None else _two_lines(e_text(e_value), short(threshold)),
        sessions,
        badge(*status(metric, over=over)),
    ]


def _two_lines(first: str, second: str) -> str:
    return f'<span>{first}<br><span class="note">{second}</span></span>'


def _change_chart(metric: Measured, course: Course, x: Scale) -> str:
    found = [(at, metric.interval(values)) for at, values in course]
    known = [(at, *interval) for at, interval in found if interval is not None]
    if not known:
        return ""
    tolerated, limit = metric.line("tolerated"), metric.line("limit")
    equal = 1.0 if metric.is_ratio else 0.0
    y = _change_scale(metric, [equal, *(line for line in (tolerated, limit) if line is not None)], known)
    worse_up = metric.sign > 0
    levels = [Level(equal, quiet=True)]
    if tolerated is not None:
        levels.append(Level(tolerated, f"tolerated {metric.changed(tolerated, signed=False)}", below=worse_up))
    if limit is not None:
        levels.append(Level(limit, f"limit {metric.changed(limit, signed=False)}", below=not worse_up))
    edge = limit if limit is not None else tolerated
    zones = [] if edge is None else [Zone(low=edge) if worse_up else Zone(high=edge)]
    _, low, estimate, high = known[-1]
    spoken = (
        f"{metric.title}: {metric.changed(estimate)}{metric.unit}, surely from {metric.changed(low)} to "
        f"{metric.changed(high)}" + "".join(f"; {level.name}" for level in levels if level.name)
    )
    curve = Curve([(at, middle) for at, _, middle, _ in known], Tone.CANDIDATE, [(at, a, b) for at, a, _, b in known])
    return chart(
        spoken,
        [curve],
        x,
        y,
        height=110,
        levels=levels,
        zones=zones,
        named=lambda value: _tick(metric, value),
        across=4,
    )


def _tick(metric: Measured, value: float) -> str:
    return f"{short(value)}×" if metric.is_ratio else short(value, signed=bool(value))


def _change_scale(
    metric: Measured, lines: Sequence[float], known: Sequence[tuple[float, float, float, float]]
) -> Scale:
    """Holds the lines, every estimate and the last interval, unless that is far wider than all the rest."""
    bend = log if metric.is_ratio else float
    held = [bend(one) for one in [*lines, *(estimate for _, _, estimate, _ in known)]]
    low, high = min(held), max(held)
    reach = max(high - low, 0.05 if metric.is_ratio else 0.02 * metric.factor)
    _, first, _, last = known[-1]
    ends = [bend(end) for end in (first, last) if isfinite(end) and (end > 0 or not metric.is_ratio)]
    low, high = (
        min([low, *(max(end, low - reach) for end in ends)]),
        max([high, *(min(end, high + reach) for end in ends)]),
    )
    air = 0.12 * max(high - low, reach)
    return Scale(exp(low - air), exp(high + air), log=True) if metric.is_ratio else Scale(low - air, high + air)


def _harm_chart(metric: Measured, course: Course, x: Scale) -> str:
    known = [(at, values["e_value"]) for at, values in course if values.get("e_value") is not None]
    threshold = metric.now.get("e_threshold_alone")
    if not known or not threshold:
        return ""
    y = e_scale([value for _, value in known], threshold)
    spoken = f"e-value of {metric.title}: {e_text(known[-1][1])}; harm by itself at {short(threshold)}"
    levels = [Level(threshold, f"harm by itself at {short(threshold)}")]
    curve = Curve(known, Tone.CANDIDATE)
    return chart(spoken, [curve], x, y, height=64, levels=levels, zones=[Zone(low=threshold)], named=power, across=4)
