"""How the report writes figures, metrics and rules, and which colour they have."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from serin.core.palette import Tone
from serin.core.pictures import Span, short
from serin.core.statistics import Interval
from serin.evaluate.results import definition

ORDER = ("candidate", "champion", "baseline")
TONES = {"candidate": Tone.CANDIDATE, "champion": Tone.CHAMPION, "baseline": Tone.BASELINE}
OUTCOMES = {"passed": Tone.GOOD, "failed": Tone.BAD, "skipped": Tone.PLAIN}
WORDS = {"passed": "holds", "failed": "fails", "skipped": "not judged"}
COMPARED = {"superiority": "better than", "non_inferiority": "no worse than", "no_regression": "not surely worse than"}
LIMITS = {"floor": "at least", "ceiling": "at most"}
UNITS = {"seconds": "seconds", "bits": "bits", "nats": "nats", "tokens/s": "tokens/s"}


def metric_name(name: str) -> str:
    """A metric for the first column: its label, which way is better, and its unit (HTML)."""
    metric = definition(name)
    unit = f", in {UNITS[metric.unit]}" if metric.unit in UNITS else ""
    better = "higher" if metric.higher_is_better else "lower"
    return f'{escape(metric.label)}<span class="note">{better} is better{unit}</span>'


def figure(value: float, unit: str = "share", *, signed: bool = False) -> str:
    """A figure in its unit: shares with three decimals, the rest with three digits."""
    signed = signed and value != 0
    if unit in ("share", "gain"):
        return f"{value:{'+' if signed else ''}.3f}".replace("-", "−")
    return f"{short(value, signed=signed)}{' s' if unit == 'seconds' else ''}"


def with_interval(interval: Interval, unit: str = "share", *, signed: bool = False) -> str:
    """An estimate and the ends of its interval."""
    low, high = (figure(value, unit, signed=signed) for value in (interval.low, interval.high))
    return f"{figure(interval.estimate, unit, signed=signed)} ({low} to {high})"


def rule_words(rule: Mapping[str, Any]) -> str:
    """What a rule asks, in words (HTML): the metric, and below it the condition."""
    label, where = definition(rule["metric"]).label, f" in {', '.join(rule['slices'])}" if rule["slices"] else ""
    if rule["kind"] in LIMITS:
        surely = "surely " if rule["surely"] else ""
        asked = f"{surely}{LIMITS[rule['kind']]} {short(rule['limit'])}"
    else:
        margin = rule["margin"]
        close = f" by more than {short(margin)}" if margin else ""
        asked = f"{COMPARED[rule['kind']]} the {rule['against']}{close}"
    return f'{escape(label)}<span class="note">{escape(asked + where)}</span>'


def threshold(rule: Mapping[str, Any]) -> float:
    """Where the line of a comparing rule stands on the axis of improvements."""
    return float(rule["margin"]) if rule["kind"] == "superiority" else -float(rule["margin"])


def span_of(interval: Interval, tone: Tone, name: str = "") -> Span:
    """An interval as a picture's span."""
    return Span(name, interval.low, interval.estimate, interval.high, tone)


def tone_of(interval: Interval) -> Tone:
    """Whether an improvement is surely one, surely a loss, or open."""
    return Tone.GOOD if interval.low > 0 else Tone.BAD if interval.high < 0 else Tone.PLAIN


def numbers(intervals: Sequence[Interval]) -> list[float]:
    """All ends and estimates: what an axis must hold."""
    return [value for one in intervals for value in (one.low, one.estimate, one.high)]
