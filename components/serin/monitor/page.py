"""The monitor's own page: the decision first, then each signal against its limit; nothing from outside."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from math import inf
from pathlib import Path

from serin.core.decision import Decision
from serin.core.page import Section, Tile, digest, page, table, tiles, verdict
from serin.core.palette import Tone
from serin.core.pictures import Span, axis_around, intervals
from serin.monitor.config import MonitorPolicy
from serin.monitor.signals import QuestionDrift, Shift, Signals

ADVICE = {
    "none": "Nothing needs to be done.",
    "alert": "A person should look at the endpoint.",
    "reindex": "Run the index stage on today's documents.",
    "retrain": "Run the training pipeline on newer conversations.",
}
TONES = {"none": Tone.GOOD, "alert": Tone.BAD, "reindex": Tone.WARN, "retrain": Tone.WARN}


@dataclass(frozen=True)
class _Signal:
    """A signal against its limit; below it where less is worse."""

    name: str
    value: float
    text: str
    limit: float
    reference: str = ""
    low: float | None = None
    high: float | None = None
    less_is_worse: bool = False


def write_page(path: Path, release_id: str, signals: Signals, decision: Decision, policy: MonitorPolicy) -> None:
    """Write the page."""
    title = f"Traffic of release {release_id[:12]}: {ADVICE[decision.outcome].rstrip('.').lower()}"
    known = list(_signals(signals, policy))
    note = "The dashed line is the policy's limit, the green field where a signal may lie."
    missing = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in signals.missing.items())
    tone = TONES[decision.outcome]
    banner = verdict(tone, f"{decision.outcome.upper()}. {ADVICE[decision.outcome]}", decision.reasons)
    html = page(
        title,
        kind="Monitor",
        sections=[
            Section("Verdict", banner + _tiles(signals), listed=False),
            Section("Signals", _table(known), note),
            Section("What could not be seen", f"<ul>{missing}</ul>" if missing else ""),
        ],
        facts={"Release": digest(release_id, whole=True), "Policy": digest(decision.policy_version, whole=True)},
    )
    path.write_text(html, encoding="utf-8")


def _tiles(signals: Signals) -> str:
    shown = [
        Tile("Requests", f"{signals.num_events:,}", f"{signals.first_time[:16]} to {signals.last_time[:16]}"),
        Tile("Sessions", f"{signals.num_sessions:,}"),
    ]
    if signals.questions:
        before, now = signals.questions.median_words
        shown.append(Tile("Words in a question", f"{now:g}", f"median; {before:g} in the reference"))
    if signals.index:
        expired = signals.index.expired_share
        note = "" if expired is None else f"{expired:.0%} of its dated documents are past their date"
        shown.append(Tile("Age of the index", f"{signals.index.age_days:.1f} days", note))
    return tiles(shown)


def _signals(signals: Signals, policy: MonitorPolicy) -> Iterator[_Signal]:
    errors = signals.errors
    text = f"{errors.estimate:.1%} ({errors.low:.1%} to {errors.high:.1%})"
    limit = policy.max_error_share
    yield _Signal("Failed requests", errors.estimate, text, limit, low=errors.low, high=errors.high)
    times = (
        ("95% answered within", signals.p95_latency_ms, policy.max_p95_latency_ms),
        ("95% first token within", signals.p95_ttft_ms, policy.max_p95_ttft_ms),
    )
    for name, value, most in times:
        if value is not None:
            yield _Signal(name, value, f"{value:,.0f} ms", most)
    shifts = (
        ("Support score", signals.support, policy.max_support_drop, True),
        ("Share of refusals", signals.refusals, policy.max_refusal_rise, False),
        ("Best passage's similarity", signals.retrieval, policy.max_retrieval_drop, True),
    )
    for name, shift, change, less_is_worse in shifts:
        if shift is not None:
            yield _of_shift(name, shift, change, less_is_worse)
    if signals.questions:
        yield from _of_questions(signals.questions, policy)
    if signals.index:
        age = signals.index.age_days
        yield _Signal("Age of the index", age, f"{age:.1f} days", policy.max_index_age_days)


def _of_shift(name: str, shift: Shift, change: float, less_is_worse: bool) -> _Signal:
    limit = shift.reference - change if less_is_worse else shift.reference + change
    text = f"{shift.current:.3f} (p = {shift.p_value:.4f})"
    return _Signal(name, shift.current, text, limit, f"{shift.reference:.3f}", less_is_worse=less_is_worse)


def _of_questions(questions: QuestionDrift, policy: MonitorPolicy) -> Iterator[_Signal]:
    distances = (
        ("Distance to the nearest known question", questions.novelty, questions.novelty_limit),
        ("Distance of the mix of topics", questions.mix_distance, questions.mix_limit),
    )
    for name, value, own in distances:
        yield _Signal(name, value, f"{value:.3f}", own * policy.topic_tolerance, f"{own:.3f}")
    unknown, shift = questions.unknown_word_share, questions.language_shift
    yield _Signal("Unknown content words", unknown, f"{unknown:.1%}", policy.max_unknown_word_share)
    yield _Signal("Language shift", shift, f"{shift:.1%}", policy.max_language_shift)


def _table(signals: list[_Signal]) -> str:
    rows = [[escape(one.name), _picture(one), escape(one.reference) or "–", escape(one.text)] for one in signals]
    return table(["Signal", "Against its limit", "Reference", "Traffic"], rows, widths=["26%", "38%", "14%", "22%"])


def _picture(one: _Signal) -> str:
    low, high = one.value if one.low is None else one.low, one.value if one.high is None else one.high
    beyond = high < one.limit if one.less_is_worse else low > one.limit
    span = Span("", low, one.value, high, Tone.BAD if beyond else Tone.GOOD)
    allowed = (one.limit, inf) if one.less_is_worse else (-inf, one.limit)
    return intervals(one.name, [span], axis_around([low, high, one.limit]), limit=one.limit, allowed=allowed)
