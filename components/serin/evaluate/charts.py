"""Interval bars as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from serin.core.statistics import Interval

WIDTH, ROW, LABEL, VALUE = 560, 22, 84, 64
"""Pixels: the chart, one bar, the space for names and for values."""


@dataclass(frozen=True)
class Mark:
    """One bar."""

    name: str
    interval: Interval
    colour: str
    value: str
    """Written at the bar's end."""


def axis_of(intervals: Sequence[Interval], *, around_zero: bool = False) -> tuple[float, float]:
    """An axis that holds the intervals and zero, with zero in the middle when asked."""
    reach = max(max(abs(one.low), abs(one.high), abs(one.estimate)) for one in intervals) * 1.1 or 1.0
    return (-reach, reach) if around_zero else (0.0, reach)


def interval_chart(title: str, marks: Sequence[Mark], axis: tuple[float, float], *, zero_line: bool = False) -> str:
    """Bars from low to high with a dot at the estimate.

    Args:
        title: read out by screen readers, with the numbers.
        marks: the bars, top to bottom.
        axis: values at the left and the right edge.
        zero_line: draw a line at zero.
    """
    height = ROW * len(marks) + 4
    spoken = "; ".join(f"{one.name} {one.value} ({one.interval.low:.3f} to {one.interval.high:.3f})" for one in marks)
    parts = [
        f'<svg role="img" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}: {escape(spoken)}</title>'
        f'<rect x="{LABEL}" y="0" width="{WIDTH - LABEL - VALUE}" height="{height}" fill="#f5f7f9"/>'
    ]
    if zero_line:
        x = _x(0.0, axis)
        parts.append(f'<line x1="{x}" x2="{x}" y1="0" y2="{height}" stroke="#1b1f24" stroke-width="1"/>')
    parts += [_bar(mark, 2 + ROW * i + ROW // 2, axis) for i, mark in enumerate(marks)]
    return "".join(parts) + "</svg>"


def _bar(mark: Mark, y: int, axis: tuple[float, float]) -> str:
    low, high, dot = (_x(value, axis) for value in (mark.interval.low, mark.interval.high, mark.interval.estimate))
    return (
        f'<text x="0" y="{y + 4}" font-size="12" fill="#1b1f24">{escape(mark.name)}</text>'
        f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke="{mark.colour}" stroke-width="6" opacity=".45"/>'
        f'<circle cx="{dot}" cy="{y}" r="5" fill="{mark.colour}"/>'
        f'<text x="{WIDTH - VALUE + 8}" y="{y + 4}" font-size="12" fill="#1b1f24">{escape(mark.value)}</text>'
    )


def _x(value: float, axis: tuple[float, float]) -> float:
    share = (value - axis[0]) / (axis[1] - axis[0])
    return round(LABEL + min(1.0, max(0.0, share)) * (WIDTH - LABEL - VALUE), 1)
