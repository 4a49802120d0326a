"""Where the candidate wins and loses: the gate's metrics by each label, and the widest gaps between slices."""

from collections.abc import Mapping
from html import escape

from serin.core.decision import Decision
from serin.core.page import Section, fold, table
from serin.core.pictures import axis_around, intervals, legend
from serin.core.statistics import Interval
from serin.evaluate.report_words import ORDER, TONES, figure, metric_name, numbers, span_of, tone_of, with_interval
from serin.evaluate.results import Gap, Results, definition

MIN_SLICE, MAX_SLICES, MAX_SLICED = 10, 40, 6
"""Items that a slice needs to be drawn, slices drawn for a metric, and metrics that are drawn by slice."""


def slices_section(results: Results, decision: Decision) -> Section:
    """Where the candidate wins and loses: the metrics of the gate, and token F1, by each label."""
    ruled = [rule["metric"] for rule in decision.evidence["rules"]]
    known = {name for by_name in results.slices.values() for found in by_name.values() for name in found}
    names = [name for name in dict.fromkeys(["token_f1", *ruled, *sorted(known)]) if name in known][:MAX_SLICED]
    tables = [(name, _slices(name, results)) for name in names]
    shown = [(definition(name).label, made) for name, made in tables if made]
    parts = [f"<h3>{escape(label)}</h3>{made}" for label, made in shown[:1]]
    parts += [fold(label, made) for label, made in shown[1:]]
    html = "".join(parts) + _languages(results) + _gaps(results)
    return Section("By slice", html, f"Slices with at least {MIN_SLICE} independent items.")


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


def _gaps(results: Results) -> str:
    """Between which two slices of a label a metric differs most, for each release."""
    roles = [role for role in ORDER if results.gaps.get(role)]
    found: dict[tuple[str, str], dict[str, Gap]] = {}
    for role in roles:
        for gap in results.gaps[role]:
            found.setdefault((gap.metric, gap.label), {})[role] = gap
    if not found:
        return ""
    rows = [
        [f"{metric_name(metric)}<span class=note>by {escape(label)}</span>", _gap(metric, of_role), _ends(of_role)]
        for (metric, label), of_role in found.items()
    ]
    caption = "The two slices that differ most; the interval holds for the largest of all pairs (Bonferroni)."
    shown = legend({role: TONES[role] for role in roles})
    drawn = table(["Metric", "Gap", "Best and worst"], rows, caption=caption, widths=["28%", "42%", "30%"])
    return f"<h3>Gaps between slices</h3>{shown}{drawn}"


def _gap(metric: str, of_role: Mapping[str, Gap]) -> str:
    gaps = {role: gap.difference for role, gap in of_role.items()}
    axis = axis_around(numbers(list(gaps.values())))
    spans = [span_of(gap, TONES[role], role) for role, gap in gaps.items()]
    unit = definition(metric).unit
    items = "".join(f'<li class="tone-{TONES[role]}">{figure(gap.estimate, unit)}</li>' for role, gap in gaps.items())
    picture = intervals(f"{definition(metric).label}: gap between slices", spans, axis, zero=True)
    return f'<div class="plot"><ul>{items}</ul>{picture}</div>'


def _ends(of_role: Mapping[str, Gap]) -> str:
    lines = (f"{role}: {gap.best} over {gap.worst}" for role, gap in of_role.items())
    return f'<span class="note">{"<br>".join(map(escape, lines))}</span>'
