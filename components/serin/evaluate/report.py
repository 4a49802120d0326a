"""The evaluation's report: one HTML file without anything from outside, verdict first."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from serin.core.decision import Decision
from serin.core.statistics import Interval
from serin.core.text import token_f1
from serin.evaluate.charts import Mark, axis_of, interval_chart
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.results import METRICS, Answer, Metric, Results, definition

MAX_EXAMPLE_CHARS = 400
MIN_SLICE, MAX_SLICES = 10, 30
COLOURS = {"candidate": "#0b5cad", "champion": "#a04a00", "baseline": "#5b6470"}
ORDER = ("candidate", "champion", "baseline")

STYLE = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,sans-serif;color:#1b1f24;background:#fff;max-width:62rem;margin:0 auto;padding:1.5rem}
h1{font-size:1.6rem;margin:0 0 .5rem}h2{font-size:1.2rem;margin:2.2rem 0 .6rem}h3{font-size:1rem;margin:1.2rem 0 .3rem}
.verdict{border-left:.5rem solid;padding:.8rem 1rem;background:#f5f7f9}
.pass{border-color:#1a7f37}.fail{border-color:#b42318}
table{border-collapse:collapse;width:100%;font-size:.92rem}caption{text-align:left;color:#4b535d;padding:.2rem 0}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid #dde2e7}
td.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
code{font-family:ui-monospace,monospace;font-size:.9em}svg{max-width:100%;height:auto;display:block}
.example{border:1px solid #dde2e7;border-radius:.3rem;padding:.5rem .8rem;margin:.6rem 0}
.example dt{font-weight:600;margin-top:.3rem}.example dd{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
.note{color:#4b535d}.passed{color:#1a7f37}.failed{color:#b42318;font-weight:600}.skipped{color:#4b535d}
"""


def write_report(
    path: Path,
    results: Results,
    decision: Decision,
    answers: Mapping[str, Sequence[Answer]],
    config: EvaluateConfig,
    dataset_digest: str,
) -> None:
    """Write the report.

    Args:
        path: the HTML file.
        results: what was measured.
        decision: what the gate made of it.
        answers: role to answers, for the examples.
        config: the settings, which the report states.
        dataset_digest: of the dataset, likewise.
    """
    roles = [role for role in ORDER if role in results.values]
    sections = [
        _verdict(results, decision),
        _rules(decision),
        _values(results, roles, config),
        _improvements(results, config),
        _slices(results),
        _languages(results, roles),
        _examples(answers, roles, config),
        _settings(results, config, decision, dataset_digest),
    ]
    title = f"Evaluation of release {results.release_ids['candidate'][:12]}"
    path.write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"{''.join(sections)}</main></body></html>\n",
        encoding="utf-8",
    )


def _verdict(results: Results, decision: Decision) -> str:
    release = escape(results.release_ids["candidate"][:12])
    words = "passes the gate" if decision.outcome == "pass" else "does not pass the gate"
    comparison = results.comparisons.get("baseline", {}).get("token_f1")
    tail = ""
    if comparison:
        value, other = results.values["candidate"]["token_f1"], results.values["baseline"]["token_f1"]
        tail = (
            f"<p>Token F1 on held-out conversations is {value.estimate:.3f}, the base model's {other.estimate:.3f}: "
            f"{_signed(comparison.improvement)}.</p>"
        )
    return (
        f'<h1>Release <code>{release}</code> {words}</h1><div class="verdict {escape(decision.outcome)}">'
        f"<p><strong>{escape(decision.outcome.upper())}.</strong> {escape(decision.reasons[0])}</p>{tail}</div>"
    )


def _rules(decision: Decision) -> str:
    rows = [[_outcome("failed"), escape(fault), "", "", ""] for fault in decision.evidence.get("faults", ())]
    for rule in decision.evidence["rules"]:
        numbers = [_number(rule.get(name)) for name in ("p_adjusted", "effect_size", "detectable_difference")]
        rows.append([_outcome(rule["outcome"]), escape(rule["reason"]), *numbers])
    note = (
        "All of them must hold. p is one-sided and corrected over all claims (Holm); the effect is in standard "
        "deviations of the item differences; the last column is the smallest true difference that so many items would "
        "show, with the power that the policy names."
    )
    head = ["Outcome", "Why", "p", "Effect", "Detectable"]
    return "<h2>The gate's rules</h2>" + _table(head, rows, note, numbers_from=2)


def _outcome(outcome: str) -> str:
    sign = {"passed": "✓", "failed": "✗"}.get(outcome, "–")
    return f'<span class="{escape(outcome)}"><span aria-hidden="true">{sign}</span> {escape(outcome)}</span>'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if abs(value) < 0.1 else f"{value:.2f}"


def _values(results: Results, roles: Sequence[str], config: EvaluateConfig) -> str:
    rows = []
    for metric in METRICS:
        found = [(role, results.values[role][metric.name]) for role in roles if metric.name in results.values[role]]
        if not found:
            continue
        axis = (0.0, 1.0) if metric.unit == "share" else axis_of([interval for _, interval in found])
        marks = [Mark(role, interval, COLOURS[role], f"{interval.estimate:.3f}") for role, interval in found]
        rows.append([_metric_name(metric), interval_chart(f"{metric.label} by release", marks, axis)])
    note = (
        f"Dots are means, bars {config.confidence:.0%} intervals; conversations of one group count as one. "
        "Live retrieval finds today's documents, so its answers may rightly differ from older reference answers."
    )
    return "<h2>What was measured</h2>" + _table(["Metric", "Value"], rows, note)


def _improvements(results: Results, config: EvaluateConfig) -> str:
    parts = [f"<h2>The candidate's improvement, item by item</h2><p class='note'>{config.confidence:.0%} intervals of "
             "the mean difference on the same items; right of the line is better.</p>"]  # fmt: skip
    for role in ("baseline", "champion"):
        if role in results.not_applicable:
            parts.append(f"<h3>Against the {role}</h3><p>Not compared: {escape(results.not_applicable[role])}</p>")
        comparisons = results.comparisons.get(role, {})
        if not comparisons:
            continue
        rows = []
        for name, comparison in comparisons.items():
            interval = comparison.improvement
            clear = "#1a7f37" if interval.low > 0 else "#b42318" if interval.high < 0 else "#5b6470"
            chart = interval_chart(
                f"{definition(name).label}: improvement over the {role}",
                [Mark("", interval, clear, f"{interval.estimate:+.3f}")],
                axis_of([interval], around_zero=True),
                zero_line=True,
            )
            numbers = [str(comparison.won), str(comparison.lost), str(comparison.tied)]
            rows.append([_metric_name(definition(name)), chart, *numbers])
        parts.append(f"<h3>Against the {role}</h3>")
        parts.append(_table(["Metric", "Improvement", "Items won", "Lost", "Tied"], rows, "", numbers_from=2))
    return "".join(parts)


def _slices(results: Results) -> str:
    """Token F1 of every slice with enough items to show an interval: where the candidate wins and where it loses."""
    parts = []
    for role in ("champion", "baseline"):
        found = {
            name: of_one["token_f1"] for name, of_one in results.slices.get(role, {}).items() if "token_f1" in of_one
        }
        shown = {name: one for name, one in found.items() if one.improvement.count >= MIN_SLICE}
        if not shown:
            continue
        marks = []
        for name, one in list(shown.items())[:MAX_SLICES]:
            interval = one.improvement
            clear = "#1a7f37" if interval.low > 0 else "#b42318" if interval.high < 0 else "#5b6470"
            marks.append((name, interval, clear))
        axis = axis_of([interval for _, interval, _ in marks], around_zero=True)
        rows = [
            [
                escape(name),
                interval_chart(
                    f"{name}: token F1, improvement over the {role}",
                    [Mark("", interval, colour, f"{interval.estimate:+.3f}")],
                    axis,
                    zero_line=True,
                ),
                str(interval.count),
            ]
            for name, interval, colour in marks
        ]
        left = len(found) - len(marks)
        note = f"Slices with at least {MIN_SLICE} independent items" + (
            f"; {left} smaller ones are left out." if left else "."
        )
        parts.append(f"<h3>Against the {role}</h3>")
        parts.append(_table(["Slice", "Improvement in token F1", "Items"], rows, note, numbers_from=2))
    return "<h2>By slice</h2>" + "".join(parts) if parts else ""


def _languages(results: Results, roles: Sequence[str]) -> str:
    if len(results.by_language) < 2:
        return ""
    rows = []
    for language, values in results.by_language.items():
        cells = [f"{values[role].estimate:.3f} ({values[role].count})" if role in values else "–" for role in roles]
        rows.append([escape(language), *cells])
    return "<h2>By language</h2>" + _table(
        ["Language", *roles], rows, "Token F1, passages given (independent groups).", numbers_from=1
    )


def _examples(answers: Mapping[str, Sequence[Answer]], roles: Sequence[str], config: EvaluateConfig) -> str:
    against = "champion" if "champion" in roles else "baseline"
    others = {one.id: one for one in answers.get(against, []) if one.source == "given"}
    pairs = [(one, others[one.id]) for one in answers["candidate"] if one.source == "given" and one.id in others]
    gains = {one.id: _gain(one, other) for one, other in pairs}
    ranked = sorted(pairs, key=lambda pair: (gains[pair[0].id], pair[0].id))
    lost = [pair for pair in ranked[: config.num_examples] if gains[pair[0].id] < 0]
    won = [pair for pair in reversed(ranked[-config.num_examples :]) if gains[pair[0].id] > 0]
    parts = [f"<h2>Examples against the {against}</h2>"]
    for title, chosen in (("Lost most", lost), ("Won most", won if config.num_examples else [])):
        parts.append(f"<h3>{title}</h3>")
        parts += [_example(one, other, against) for one, other in chosen] or ["<p>None.</p>"]
    return "".join(parts)


def _example(one: Answer, other: Answer, against: str) -> str:
    entries = [
        ("Question", one.question),
        ("Reference", one.reference),
        (f"Candidate (F1 {token_f1(one.answer, one.reference):.2f})", one.answer or "(empty)"),
        (f"{against.capitalize()} (F1 {token_f1(other.answer, other.reference):.2f})", other.answer or "(empty)"),
    ]
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(_cut(text))}</dd>" for name, text in entries)
    return f'<div class="example"><dl>{items}</dl></div>'


def _settings(results: Results, config: EvaluateConfig, decision: Decision, dataset_digest: str) -> str:
    counts = results.num_items
    rows = [[escape(f"{role} release"), f"<code>{escape(one)}</code>"] for role, one in results.release_ids.items()]
    rows += [
        ["Dataset", f"<code>{escape(dataset_digest)}</code>"],
        ["Answered with given passages", f"{counts.get('given', 0)} conversations"],
        ["Answered with live retrieval", f"{counts.get('retrieved', 0)} conversations"],
        ["Golden questions", str(counts.get("golden", 0))],
        ["Bootstrap", f"BCa, {config.resamples} resamples, seed {config.seed}"],
        ["Gate policy", f"<code>{escape(decision.policy_version)}</code>"],
        *([f"Suite {escape(name)}", f"<code>{escape(digest)}</code>"] for name, digest in results.suites.items()),
        ["Items seen in training", str(len(results.contaminated))],
        *(
            [["Reviewers' agreement", f"Krippendorff's alpha {results.review_agreement:.2f}"]]
            if results.review_agreement is not None
            else []
        ),
    ]
    return "<h2>How it was measured</h2>" + _table(["What", "Value"], rows, "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, numbers_from: int = 99) -> str:
    """A table; cells are HTML already."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{_cells(row, numbers_from)}</tr>" for row in rows)
    note = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{note}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _cells(row: Sequence[str], numbers_from: int) -> str:
    kinds = [' class="number"' if i >= numbers_from else "" for i in range(len(row))]
    return "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True))


def _metric_name(metric: Metric) -> str:
    better = "higher" if metric.higher_is_better else "lower"
    unit = "" if metric.unit == "share" else f", {metric.unit}"
    return f"{escape(metric.label)}<br><span class='note'>{better} is better{unit}</span>"


def _signed(interval: Interval) -> str:
    return f"{interval.estimate:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def _gain(one: Answer, other: Answer) -> float:
    return token_f1(one.answer, one.reference) - token_f1(other.answer, other.reference)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_EXAMPLE_CHARS else text[: MAX_EXAMPLE_CHARS - 1] + "…"
