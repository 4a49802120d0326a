"""Pictures for pages: intervals, courses over time and timelines, as inline SVG and HTML.

Places across are per cent of the width, so a picture fits any column while its text and its marks keep their size.
Each picture has a title that says in words and figures what is drawn: screen readers read it, and it shows on hover.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10

from serin.core.palette import Tone

ROW = 20
"""Height of one interval, pixels."""
AXIS = 16
"""Height of an axis' names, pixels."""
TOP = 14
"""Room above a chart's highest value, pixels."""
SHAPES = {
    Tone.CHAMPION: "M-6 0 0-6 6 0 0 6Z",
    Tone.BASELINE: "M-4.5-4.5H4.5V4.5H-4.5Z",
}
CIRCLE = "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0Z"
Points = Sequence[tuple[float, float]]
Axis = tuple[float, float]


@dataclass(frozen=True)
class Span:
    """An estimate with its interval."""

    name: str
    low: float
    estimate: float
    high: float
    tone: Tone = Tone.INK


@dataclass(frozen=True)
class Line:
    """A course over time or steps."""

    name: str
    points: Points
    tone: Tone = Tone.INK
    band: Sequence[tuple[float, float, float]] = ()
    """Place, low end, high end: an interval around the line."""
    dotted: bool = False
    """Marks the points instead of joining them."""


@dataclass(frozen=True)
class Guide:
    """A line across a chart: a limit (``y``) or an event (``x``)."""

    value: float
    name: str
    across: bool = True
    """Horizontal at a ``y`` value; else vertical at an ``x`` value."""


@dataclass(frozen=True)
class Step:
    """A moment in a timeline."""

    name: str
    when: str = ""
    html: str = ""
    tone: Tone = Tone.PLAIN


def axis_around(values: Sequence[float], *, include: Sequence[float] = (0.0,)) -> Axis:
    """An axis that holds the values and what is included, with a little air, rounded outwards to two digits."""
    finite = [value for value in [*values, *include] if isfinite(value)]
    low, high = min(finite), max(finite)
    air = (high - low) * 0.08 or max(abs(high), 0.02) * 0.5
    step = 10.0 ** (floor(log10(high - low + 2 * air)) - 1)
    down = low - air if low != 0 or high == 0 else 0.0
    return floor(down / step) * step, -floor(-(high + air) / step) * step


def intervals(
    title: str,
    spans: Sequence[Span],
    axis: Axis,
    *,
    zero: bool = False,
    limit: float | None = None,
    allowed: Axis | None = None,
    show_axis: bool = True,
) -> str:
    """Intervals below each other on one axis: a bar from low to high, a mark at the estimate.

    Args:
        title: what is drawn; the figures are added to it.
        spans: top to bottom.
        axis: values at the left and the right edge; what lies beyond is cut off there.
        zero: draw a line at zero.
        limit: draw a dashed line there (a margin, a floor).
        allowed: shade from one value to the other, where the intervals should be (infinite ends reach the edge).
        show_axis: name the ends of the axis, zero and the limit below.
    """
    body = ROW * len(spans)
    spoken = "; ".join(f"{one.name} {one.estimate:.3g} ({one.low:.3g} to {one.high:.3g})".strip() for one in spans)
    parts = [f'<rect class="field" width="100%" height="{body}" rx="3"/>']
    if allowed:
        left, right = (_place(value, axis) for value in allowed)
        parts.append(f'<rect class="allowed" x="{left}%" width="{round(right - left, 2)}%" height="{body}"/>')
    if zero and axis[0] <= 0 <= axis[1]:
        parts.append(_upright("zero", 0.0, axis, body))
    if limit is not None:
        parts.append(_upright("limit", limit, axis, body))
    parts += [_span(one, axis, ROW * i + ROW // 2) for i, one in enumerate(spans)]
    names = _axis_names(axis, zero, limit, body + AXIS - 4) if show_axis else ""
    limited = "" if limit is None else f"; limit {limit:.3g}"
    return _svg(f"{title}: {spoken}{limited}", body + (AXIS if show_axis else 0), "".join(parts) + names)


def legend(names: Mapping[str, Tone]) -> str:
    """What the marks of a picture stand for."""
    items = "".join(
        f'<li class="tone-{tone}"><svg width="12" height="12" aria-hidden="true" focusable="false">'
        f'<path class="mark" transform="translate(6 6)" d="{SHAPES.get(tone, CIRCLE)}"/></svg>{escape(name)}</li>'
        for name, tone in names.items()
    )
    return f'<ul class="legend">{items}</ul>'


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    guides: Sequence[Guide] = (),
    x_name: str = "",
    unit: str = "",
    height: int = 220,
    include: Sequence[float] = (),
    x_axis: Axis | None = None,
    x_names: tuple[str, str] | None = None,
) -> str:
    """Lines with bands around them, in a figure with a caption and a legend.

    Args:
        title: the caption; what the lines end with is read out after it.
        lines: with at least one point together.
        guides: limits and events.
        x_name: below the right end: what the places are (``steps``, ``s``).
        unit: after the values on the left.
        height: pixels.
        include: values that the upright axis must hold (0 for shares).
        x_axis: places at the left and the right edge; None: where the lines begin and end.
        x_names: what the ends of the lower axis are called, instead of their values.
    """
    across = [x for one in lines for x, _ in one.points] + [x for one in lines for x, _, _ in one.band]
    across += [one.value for one in guides if not one.across]
    values = [y for one in lines for _, y in one.points] + [y for one in lines for _, *ends in one.band for y in ends]
    values += [one.value for one in guides if one.across]
    x_axis = x_axis or (min(across), max(across))
    y_axis = axis_around(values, include=include or values[:1])
    drawn, values_named = _grid(y_axis, height, unit)
    drawn += "".join(_course(one, x_axis, y_axis, height) for one in lines)
    drawn += values_named + "".join(_guide(one, x_axis, y_axis, height) for one in guides)
    ends = x_names or (short(x_axis[0]), f"{short(x_axis[1])} {x_name}".strip())
    drawn += f'<text x="0" y="{TOP + height + 14}">{escape(ends[0])}</text>'
    drawn += f'<text x="100%" y="{TOP + height + 14}" text-anchor="end">{escape(ends[1])}</text>'
    spoken = "; ".join(f"{one.name} ends at {short(one.points[-1][1])}{unit}" for one in lines if one.points)
    names = legend({one.name: one.tone for one in lines}) if len(lines) > 1 else ""
    picture = _svg(f"{title}: {spoken}", TOP + height + 18, drawn)
    return f"<figure><figcaption>{escape(title)}</figcaption>{names}{picture}</figure>"


def timeline(steps: Sequence[Step]) -> str:
    """Moments in order, each with a dot in its colour."""
    items = "".join(
        f'<li><span class="dot tone-{one.tone}" aria-hidden="true"></span><strong>{escape(one.name)}</strong>'
        f"{f'<span class=when>{escape(one.when)}</span>' if one.when else ''}{one.html}</li>"
        for one in steps
    )
    return f'<ol class="timeline">{items}</ol>'


def _svg(title: str, height: int, inside: str) -> str:
    return f'<svg role="img" width="100%" height="{height}"><title>{escape(title)}</title>{inside}</svg>'


def _place(value: float, axis: Axis) -> float:
    """Per cent from the left edge."""
    if not isfinite(value):
        return 100.0 if value > 0 else 0.0
    return round(100 * min(1.0, max(0.0, (value - axis[0]) / (axis[1] - axis[0] or 1.0))), 2)


def _upright(name: str, value: float, axis: Axis, height: int) -> str:
    place = _place(value, axis)
    return f'<line class="{name}" x1="{place}%" x2="{place}%" y1="0" y2="{height}"/>'


def _span(one: Span, axis: Axis, middle: int) -> str:
    low, high, place = (_place(value, axis) for value in (one.low, one.high, one.estimate))
    return (
        f'<g class="tone-{one.tone}"><line class="span" x1="{low}%" x2="{high}%" y1="{middle}" y2="{middle}"/>'
        f"{_mark(one.tone, place, middle)}</g>"
    )


def _axis_names(axis: Axis, zero: bool, limit: float | None, y: int) -> str:
    """The ends, and between them zero or the limit where there is room."""
    signed = axis[0] < 0
    named = [(limit, short(limit, signed=signed and limit != 0))] if limit is not None else []
    named += [(0.0, "0")] if zero and limit != 0 else []
    middle: list[tuple[float, str]] = []
    for value, text in named:
        place = _place(value, axis)
        if 16 <= place <= 84 and all(abs(place - other) >= 14 for other, _ in middle):
            middle.append((place, text))
    ends = (
        (0.0, short(axis[0], signed=signed and axis[0] != 0), "start"),
        (100.0, short(axis[1], signed=signed), "end"),
    )
    shown = [*ends, *((place, text, "middle") for place, text in middle)]
    return "".join(f'<text x="{x}%" y="{y}" text-anchor="{anchor}">{text}</text>' for x, text, anchor in shown)


def _ticks(axis: Axis, most: int) -> list[float]:
    """At most so many round values inside an axis, and a third of that at least."""
    reach = axis[1] - axis[0]
    base = 10.0 ** floor(log10(reach))
    step = next(base * part for part in (0.2, 0.25, 0.5, 1.0, 2.0, 2.5, 5.0) if reach / (base * part) <= most)
    first = ceil(axis[0] / step - 1e-9)
    return [number * step for number in range(first, floor(axis[1] / step + 1e-9) + 1)]


def _grid(axis: Axis, height: int, unit: str) -> tuple[str, str]:
    """Lines, which go below the courses, and their values, which go above them."""
    places = [(value, _down(value, axis, height)) for value in _ticks(axis, max(2, height // 40))]
    lines = "".join(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>' for _, y in places)
    return lines, "".join(f'<text x="2" y="{y - 3:.1f}">{short(value)}{escape(unit)}</text>' for value, y in places)


def _down(value: float, axis: Axis, height: int) -> float:
    """Pixels from the top, below the room for the highest value's name."""
    return round(TOP + height * (1 - _place(value, axis) / 100), 1)


def _guide(one: Guide, x_axis: Axis, y_axis: Axis, height: int) -> str:
    if one.across:
        y = _down(one.value, y_axis, height)
        text = f'<text x="100%" y="{y - 4:.1f}" text-anchor="end">{escape(one.name)}</text>'
        return f'<line class="limit" x1="0" x2="100%" y1="{y}" y2="{y}"/>{text}'
    x = _place(one.value, x_axis)
    anchor, shift = ("end", -4) if x > 70 else ("start", 4)
    text = f'<text x="{x}%" y="11" dx="{shift}" text-anchor="{anchor}">{escape(one.name)}</text>'
    return f'<line class="limit" x1="{x}%" x2="{x}%" y1="0" y2="{TOP + height}"/>{text}'


def _course(one: Line, x_axis: Axis, y_axis: Axis, height: int) -> str:
    """A band and a line, in a picture of 1000 units that is stretched to the width; marks are not stretched."""

    def at(x: float, y: float) -> str:
        return f"{_place(x, x_axis) * 10:.5g},{_down(y, y_axis, height)}"

    stretched = ""
    if one.band:
        upper, lower = [at(x, high) for x, _, high in one.band], [at(x, low) for x, low, _ in reversed(one.band)]
        stretched += f'<polygon class="band" points="{" ".join([*upper, *lower])}"/>'
    dotted = one.dotted or len(one.points) == 1
    if not dotted:
        stretched += f'<polyline class="curve" points="{" ".join(at(x, y) for x, y in one.points)}"/>'
    marks = "".join(_mark(one.tone, _place(x, x_axis), _down(y, y_axis, height)) for x, y in one.points if dotted)
    whole = TOP + height
    return (
        f'<g class="tone-{one.tone}"><svg width="100%" height="{whole}" viewBox="0 0 1000 {whole}" '
        f'preserveAspectRatio="none">{stretched}</svg>{marks}</g>'
    )


def _mark(tone: Tone, place: float, y: float) -> str:
    return f'<svg x="{place}%" y="{y}"><path class="mark" d="{SHAPES.get(tone, CIRCLE)}"/></svg>'


def short(value: float, *, signed: bool = False) -> str:
    """A figure for people: three digits, thousands apart, no exponent, a true minus sign."""
    digits = 2 - floor(log10(abs(value))) if value and isfinite(value) else 0
    text = f"{value:{'+' if signed else ''},.{min(max(digits, 0), 9)}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−")
