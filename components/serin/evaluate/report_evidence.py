"""What people and a judge model prefer, and how far they agree with each other."""

from collections.abc import Mapping
from html import escape

from serin.core.decision import Decision
from serin.core.page import Section, facts_list, table
from serin.core.palette import Tone
from serin.core.pictures import intervals
from serin.core.statistics import Interval
from serin.evaluate.report_measures import PEOPLE, gain_cell
from serin.evaluate.report_words import figure, span_of, with_interval
from serin.evaluate.results import JudgeSummary, Results, definition


def evidence_section(results: Results, decision: Decision) -> Section:
    """What people and a judge model prefer, and how far they agree."""
    rows = []
    for role in ("champion", "baseline"):
        for name in PEOPLE:
            if comparison := results.comparisons.get(role, {}).get(name):
                who = f'{escape(definition(name).label)}<span class="note">against the {role}</span>'
                rows.append([who, gain_cell(name, role, comparison, decision), str(comparison.improvement.count)])
    drawn = table(["Who", "Preference for the candidate", "Items"], rows, numbers=[2]) if rows else ""
    if rows and results.review_agreement is not None:
        drawn += f"<p>Reviewers agree with each other: Krippendorff's alpha {figure(results.review_agreement)}.</p>"
    judged = "".join(_judge(role, one) for role, one in results.judge.items())
    return Section("Judges and people", drawn + judged, "−1: all lost, 0: as many won as lost, +1: all won.")


def _judge(role: str, summary: JudgeSummary) -> str:
    """What a judge model says against one release, and how far people agree with it."""
    head = f"<h3>The judge model against the {escape(role)}</h3>"
    if summary.why_missing:
        return f"{head}<p>{escape(summary.why_missing)}</p>"
    rates: Mapping[str, Interval | None] = {
        "as judged": summary.win_rate,
        "corrected by people": summary.corrected_win_rate,
    }
    known = {name: rate for name, rate in rates.items() if rate is not None}
    names = "".join(f"<li>{name} {figure(rate.estimate)}</li>" for name, rate in known.items())
    spans = [span_of(rate, Tone.CANDIDATE, name) for name, rate in known.items()]
    drawn = intervals(f"Share of pairs won against the {role}", spans, (0.0, 1.0), limit=0.5) if spans else ""
    picture = f'<div class="plot"><ul>{names}</ul>{drawn}</div>' if drawn else ""
    return head + picture + facts_list({name: escape(text) for name, text in _said(summary).items()})


def _said(summary: JudgeSummary) -> dict[str, str]:
    agreement = "not known: people have judged none of these pairs"
    if summary.accuracy is not None:
        kappa = "" if summary.kappa is None else f", kappa {figure(summary.kappa)}"
        agreement = f"{summary.accuracy:.0%} of {summary.num_human} pairs{kappa}"
    corrected = summary.corrected_win_rate
    return {
        "Model": summary.model,
        "Prompt": summary.prompt_version,
        "Pairs": f"{summary.won} won, {summary.lost} lost, {summary.tied} tied of {summary.num_items}",
        "Verdicts that followed the order": f"{summary.inconsistent}, counted as ties",
        "Same answer in both": str(summary.num_identical),
        "Not judged": str(summary.num_unjudged),
        "Agreement with people": agreement,
        **({"Win rate corrected by people": with_interval(corrected)} if corrected else {}),
    }
