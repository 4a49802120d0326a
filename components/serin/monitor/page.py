"""The monitor's own page: the decision first, then each signal against its limit; nothing from outside."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from serin.core.decision import Decision
from serin.monitor.signals import Signals

STYLE = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,sans-serif;color:#1b1f24;background:#fff;max-width:56rem;margin:0 auto;padding:1.5rem}
h1{font-size:1.6rem;margin:0 0 .5rem}h2{font-size:1.2rem;margin:2rem 0 .6rem}
.verdict{border-left:.5rem solid #b42318;padding:.8rem 1rem;background:#f5f7f9}.none{border-color:#1a7f37}
table{border-collapse:collapse;width:100%;font-size:.92rem}caption{text-align:left;color:#4b535d}
th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #dde2e7}td{font-variant-numeric:tabular-nums}
code{font-family:ui-monospace,monospace;font-size:.9em}
"""
ADVICE = {
    "none": "Nothing needs to be done.",
    "alert": "A person should look at the endpoint.",
    "reindex": "Run the index stage on today's documents.",
    "retrain": "Run the training pipeline on newer conversations.",
}


def write_page(path: Path, release_id: str, signals: Signals, decision: Decision) -> None:
    """Write the page."""
    title = f"Monitor of release {release_id[:12]}"
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in decision.reasons)
    path.write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
        f'<div class="verdict {escape(decision.outcome)}"><p><strong>{escape(decision.outcome.upper())}.</strong> '
        f"{ADVICE[decision.outcome]}</p><ul>{reasons}</ul></div>"
        f"<h2>Signals</h2>{_table(_rows(signals), _window(signals))}"
        f"<p>Policy <code>{escape(decision.policy_version)}</code>.</p></main></body></html>\n",
        encoding="utf-8",
    )


def _window(signals: Signals) -> str:
    return (
        f"{signals.num_events} requests of {signals.num_sessions} sessions, {signals.first_time or '–'} to "
        f"{signals.last_time or '–'}."
    )


def _rows(signals: Signals) -> list[tuple[str, str, str]]:
    """Signal, reference, traffic."""
    rows = [
        (
            "Failed requests",
            "",
            f"{signals.errors.estimate:.1%} ({signals.errors.low:.1%} to {signals.errors.high:.1%})",
        ),
        ("95% answered within", "", _milliseconds(signals.p95_latency_ms)),
        ("95% first token within", "", _milliseconds(signals.p95_ttft_ms)),
    ]
    names = {"support": "Support score", "refusals": "Share of refusals", "retrieval": "Best passage's similarity"}
    for name, label in names.items():
        if shift := getattr(signals, name):
            rows.append((label, f"{shift.reference:.3f}", f"{shift.current:.3f} (p = {shift.p_value:.4f})"))
    if questions := signals.questions:
        before, now = questions.median_words
        rows += [
            ("Distance to the nearest known question", f"{questions.novelty_limit:.3f}", f"{questions.novelty:.3f}"),
            ("Distance of the mix of topics", f"{questions.mix_limit:.3f}", f"{questions.mix_distance:.3f}"),
            ("Unknown content words", "", f"{questions.unknown_word_share:.1%}"),
            ("Language shift", "", f"{questions.language_shift:.1%}"),
            ("Median words of a question", f"{before:g}", f"{now:g}"),
        ]
    if signals.index:
        rows.append(("Age of the index", "", f"{signals.index.age_days:.1f} days"))
        if signals.index.expired_share is not None:
            rows.append(("Dated documents past their date", "", f"{signals.index.expired_share:.0%}"))
    return rows


def _milliseconds(value: float | None) -> str:
    return "not known" if value is None else f"{value:.0f} ms"


def _table(rows: Sequence[tuple[str, str, str]], caption: str) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Signal", "Reference", "Traffic"))
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
