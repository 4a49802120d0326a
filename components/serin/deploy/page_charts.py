"""Charts of a rollout over time: scales (also logarithmic), curves with bands, limits, and marks that do not collide.

As in ``serin.core.pictures``, places across are per cent of the width and places down are pixels, so that a chart fits
any column and its text keeps its size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import pairwise
from math import ceil, floor, inf, isfinite, log10

from serin.core.palette import Tone
from serin.core.pictures import short

TOP, AXIS = 16, 18
"""Room above the highest value, and for the lower axis' names: pixels."""
LANE, CHAR = 15, 6.1
"""Height of a row of marks, and width of a letter: pixels."""
MOST_LANES = 14
NEXT_TO_VALUES = 44
"""Where there is room beside the names of values at the left edge, pixels."""
NAMED_LEVEL = 40.0
"""A line across that is shorter, in per cent of the width, has no room for its name."""
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
TIME_STEPS = tuple(
    unit * count
    for unit, counts in (
        (1.0, (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30)),
        (MINUTE, (1, 2, 5, 10, 15, 30)),
        (HOUR, (1, 2, 3, 6, 12)),
        (DAY, (1, 2, 5, 10, 20, 50, 100, 200, 500)),
    )
    for count in counts
)
"""Seconds between two names of a time axis."""


@dataclass(frozen=True)
class Scale:
    """From values to places: 0 at the low end, 1 at the high end; what lies beyond is cut off there."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Between 0 and 1; infinite values are at the ends."""
        if value == -inf or (self.log and value <= 0):
            return 0.0
        if not isfinite(value):
            return 1.0
        low, reach = self._begin_and_reach
        return min(1.0, max(0.0, ((log10(value) if self.log else value) - low) / reach))

    @cached_property
    def _begin_and_reach(self) -> tuple[float, float]:
        low, high = (log10(self.low), log10(self.high)) if self.log else (self.low, self.high)
        return low, high - low or 1.0

    def ticks(self, most: int = 5) -> list[float]:
        """At most so many round values, evenly spread; powers of ten on a long logarithmic scale."""
        if self.log and self.high / self.low >= 50:
            first, last = ceil(log10(self.low) - 1e-9), floor(log10(self.high) + 1e-9)
            every = max(1, ceil((last - first + 1) / most))
            return [10.0**power for power in range(first, last + 1) if power % every == 0]
        if self.log and self.high / self.low >= 4:
            powers = range(floor(log10(self.low)), ceil(log10(self.high)))
            rounds = [part * 10.0**power for power in powers for part in (1.0, 2.0, 5.0)]
            return [value for value in rounds if self.low <= value <= self.high]
        base = 10.0 ** (floor(log10(self.high - self.low)) - 1)
        parts = (1, 2, 2.5, 5, 10, 20, 25, 50, 100)
        step = next(base * part for part in parts if (self.high - self.low) / (base * part) < most)
        first = ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Curve:
    """A course over seconds; a value that is not known is left out by whoever makes it."""

    points: Sequence[tuple[float, float]]
    tone: Tone = Tone.INK
    band: Sequence[tuple[float, float, float]] = ()
    """Place, low end, high end."""
    stepped: bool = False
    """Keeps each value until the next."""


@dataclass(frozen=True)
class Level:
    """A line across that means something."""

    value: float
    name: str = ""
    below: bool = False
    """Names it below the line."""
    quiet: bool = False
    """A thin line: where both are equal."""
    begin: float | None = None
    """Seconds from which it holds; None: all along."""
    end: float | None = None


@dataclass(frozen=True)
class Zone:
    """A shaded part of a chart, between values or times; an end that is None is the chart's."""

    low: float | None = None
    high: float | None = None
    tone: Tone = Tone.BAD
    begin: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Mark:
    """Something that happened."""

    at_s: float
    name: str
    tone: Tone = Tone.PLAIN


def time_scale(begin_s: float, end_s: float) -> Scale:
    """A scale of seconds that is never empty."""
    return Scale(begin_s, end_s if end_s > begin_s else begin_s + 1.0)


def chart(
    spoken: str,
    curves: Sequence[Curve],
    x: Scale,
    y: Scale,
    *,
    height: int,
    levels: Sequence[Level] = (),
    zones: Sequence[Zone] = (),
    named: Callable[[float], str] = short,
    across: int = 6,
) -> str:
    """A chart as SVG.

    Args:
        spoken: what is drawn, in words and figures.
        curves: drawn in order.
        x: seconds.
        y: values.
        height: of the part with the curves, pixels.
        levels: lines across.
        zones: shaded, below everything.
        named: a value of the upright axis as text.
        across: at most so many names on the time axis.
    """
    frame = Frame(x, y, height, TOP)
    return _svg(spoken, TOP + height + AXIS, frame.draw(curves, levels, zones, named, across))


def marked_chart(
    spoken: str,
    curves: Sequence[Curve],
    x: Scale,
    y: Scale,
    marks: Sequence[Mark],
    *,
    height: int,
    width: int,
    levels: Sequence[Level] = (),
    zones: Sequence[Zone] = (),
    named: Callable[[float], str] = short,
) -> str:
    """A chart with named marks above it, on rows of their own so that no two names meet.

    Args:
        spoken: what is drawn, in words and figures.
        curves: drawn in order.
        x: seconds.
        y: values.
        marks: those that no row is left for are drawn without a name.
        height: of the part with the curves, pixels.
        width: the narrowest that it will be drawn at, pixels.
        levels: lines across.
        zones: shaded, below everything.
        named: a value of the upright axis as text.
    """
    placed = placed_marks(marks, x, width)
    top = 2 * TOP + LANE * (1 + max((lane for _, lane, _ in placed), default=-1))
    frame = Frame(x, y, height, top)
    stems = "".join(_stem(mark, x, top, lane, height) for mark, lane, _ in placed)
    flags = "".join(_flag(mark, x, top, lane, to_left) for mark, lane, to_left in placed if lane >= 0)
    drawn = frame.draw(curves, levels, zones, named, max(4, width // 90))
    return _svg(spoken, top + height + AXIS, stems + drawn + flags)


@dataclass(frozen=True)
class Box:
    """A part of a chart: per cent across, pixels down."""

    left: float
    right: float
    top: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        """Whether they share a place."""
        return (
            self.left <= other.right
            and other.left <= self.right
            and self.top <= other.bottom
            and other.top <= self.bottom
        )


@dataclass(frozen=True)
class Frame:
    """Where things are drawn."""

    x: Scale
    y: Scale
    height: int
    top: int

    def across(self, seconds: float) -> float:
        """Per cent from the left."""
        return round(100 * self.x.place(seconds), 2)

    def down(self, value: float) -> float:
        """Pixels from the top."""
        return round(self.top + self.height * (1 - self.y.place(value)), 1)

    def draw(
        self,
        curves: Sequence[Curve],
        levels: Sequence[Level],
        zones: Sequence[Zone],
        named: Callable[[float], str],
        across: int,
    ) -> str:
        """Zones, grid, curves, levels and names, from the back to the front."""
        ticks = [(value, self.down(value)) for value in self.y.ticks(max(2, min(5, self.height // 26)))]
        drawn = "".join(map(self._zone, zones))
        drawn += "".join(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>' for _, y in ticks)
        drawn += "".join(map(self._curve, curves))
        drawn += "".join(map(self._level, levels)) + self._level_names(levels, curves)
        struck = [self.down(level.value) for level in levels if not level.quiet]
        free = [(value, y) for value, y in ticks if not any(y - 13 < other < y - 1 for other in struck)]
        drawn += "".join(f'<text x="2" y="{y - 3:.1f}">{escape(named(value))}</text>' for value, y in free)
        return drawn + self._times(across)

    def _zone(self, zone: Zone) -> str:
        left, right = self._reach(zone.begin, zone.end)
        upper = self.down(self.y.high if zone.high is None else zone.high)
        lower = self.down(self.y.low if zone.low is None else zone.low)
        place = f'x="{left}%" width="{right - left:.4g}%" y="{upper}" height="{lower - upper:.4g}"'
        return f'<g class="tone-{zone.tone}"><rect class="band" {place}/></g>'

    def _level(self, level: Level) -> str:
        y, (left, right) = self.down(level.value), self._reach(level.begin, level.end)
        return f'<line class="{"zero" if level.quiet else "limit"}" x1="{left}%" x2="{right}%" y1="{y}" y2="{y}"/>'

    def _level_names(self, levels: Sequence[Level], curves: Sequence[Curve]) -> str:
        """Each where the fewest curves, lines and other names run through it."""
        drawn, taken = "", list[Box]()
        lines = [Box(0, 100, y, y) for y in (self.down(level.value) for level in levels)]
        courses = [box for curve in curves for box in self._boxes(curve)]
        for level in levels:
            left, right = self._reach(level.begin, level.end)
            if not level.name or right - left < NAMED_LEVEL:
                continue
            y = self.down(level.value)
            rows = [(y + 1.5, y + 15), (y - 15, y - 1.5)][:: 1 if level.below else -1]
            columns = [(right - NAMED_LEVEL, right), (left, left + NAMED_LEVEL)]
            boxes = [Box(*column, *row) for row in rows for column in columns]
            costs = [
                sum(map(box.meets, courses)) + 20 * sum(map(box.meets, lines)) + 100 * sum(map(box.meets, taken))
                for box in boxes
            ]
            box = boxes[costs.index(min(costs))]
            taken.append(box)
            beside = f'dx="{6 if left else NEXT_TO_VALUES}"'
            place = f'x="{right}%" text-anchor="end"' if box.right == right else f'x="{left}%" {beside}'
            drawn += f'<text {place} y="{box.top + (11.5 if box.top > y else 11):.1f}">{escape(level.name)}</text>'
        return drawn

    def _boxes(self, curve: Curve) -> list["Box"]:
        """What its pieces run through."""
        places = [(self.across(x), self.down(y)) for x, y in curve.points]
        return [Box(x1, x2, min(y1, y2), max(y1, y2)) for (x1, y1), (x2, y2) in pairwise([*places[:1], *places])]

    def _reach(self, begin: float | None, end: float | None) -> tuple[float, float]:
        return 0.0 if begin is None else self.across(begin), 100.0 if end is None else self.across(end)

    def _curve(self, curve: Curve) -> str:
        """In a picture of 1000 units that is stretched to the width; a lone point is a mark, which is not."""
        inside = ""
        if len(curve.band) > 1:
            upper = [self._at(x, high) for x, _, high in curve.band]
            lower = [self._at(x, low) for x, low, _ in reversed(curve.band)]
            inside += f'<polygon class="band" points="{" ".join([*upper, *lower])}"/>'
        points = _stepped(curve.points) if curve.stepped else curve.points
        if len(points) > 1:
            inside += f'<polyline class="curve" points="{" ".join(self._at(x, y) for x, y in points)}"/>'
        whole = self.top + self.height
        stretched = (
            f'<svg width="100%" height="{whole}" viewBox="0 0 1000 {whole}" preserveAspectRatio="none">{inside}</svg>'
        )
        return f'<g class="tone-{curve.tone}">{stretched if inside else ""}{self._last(curve)}</g>'

    def _last(self, curve: Curve) -> str:
        """A dot where the course stands, and the interval of a lone point."""
        if not curve.points:
            return ""
        (x, y), drawn = curve.points[-1], ""
        if len(curve.band) == 1:
            _, low, high = curve.band[0]
            ends = f'y1="{self.down(low)}" y2="{self.down(high)}"'
            drawn = f'<line class="span" x1="{self.across(x)}%" x2="{self.across(x)}%" {ends}/>'
        return f'{drawn}<circle class="mark" cx="{self.across(x)}%" cy="{self.down(y)}" r="4"/>'

    def _at(self, x: float, y: float) -> str:
        return f"{self.x.place(x) * 1000:.4g},{self.down(y):g}"

    def _times(self, across: int) -> str:
        y = self.top + self.height + 14
        drawn = ""
        for seconds, text in time_names(self.x, across):
            place = self.across(seconds)
            anchor = "start" if place < 6 else "end" if place > 94 else "middle"
            drawn += f'<text x="{place}%" y="{y}" text-anchor="{anchor}">{text}</text>'
        return drawn


def time_names(x: Scale, most: int) -> list[tuple[float, str]]:
    """Round times on a scale of seconds, each with its unit."""
    reach = x.high - x.low
    step = next((one for one in TIME_STEPS if reach / one <= most - 0.5), TIME_STEPS[-1])
    first = ceil(x.low / step - 1e-9)
    return [(n * step, duration(n * step)) for n in range(first, floor(x.high / step + 1e-9) + 1)]


def duration(seconds: float) -> str:
    """A time for people: '40 s', '2 min', '1 h 30 min', '3 d'; two units at most."""
    if seconds < MINUTE:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    units = ((DAY, "d", HOUR, "h"), (HOUR, "h", MINUTE, "min"), (MINUTE, "min", 1.0, "s"))
    unit, name, smaller, lesser = next(one for one in units if whole >= one[0])
    rest = int(whole % unit // smaller)
    return f"{int(whole // unit)} {name}" + (f" {rest} {lesser}" if rest else "")


def rough(seconds: float) -> str:
    """A time in one unit: '6.9 min'."""
    unit, name = next(
        ((unit, name) for unit, name in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")) if seconds >= 1.5 * unit), (1.0, "s")
    )
    value = seconds / unit
    return f"{value:.{1 if value < 10 and unit > 1 else 0}f} {name}"


def _stepped(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    stairs = list(points[:1])
    for (_, before), (x, y) in pairwise(points):
        stairs += [(x, before), (x, y)]
    return stairs


def placed_marks(marks: Sequence[Mark], x: Scale, width: int) -> list[tuple[Mark, int, bool]]:
    """Each mark with its row (from below; -1 where none is left) and whether its name stands left of it.

    Names that stand right are placed from the right to the left and the others the other way round, each above all
    that it would meet: so no stem goes through a name of its own side.
    """
    spans = []
    for mark in marks:
        at, reach = x.place(mark.at_s) * width, len(mark.name) * CHAR + 12
        to_left = at + reach > width
        spans.append((mark, at - reach if to_left else at, at if to_left else at + reach, to_left))
    right = [span for span in reversed(spans) if not span[3]]
    left = [span for span in spans if span[3]]
    placed: list[tuple[Mark, int, bool]] = []
    taken: list[tuple[float, float, int]] = []
    for mark, begin, end, to_left in [*right, *left]:
        lane = 1 + max((row for low, high, row in taken if low < end and begin < high), default=-1)
        if lane < MOST_LANES:
            taken.append((begin, end, lane))
        placed.append((mark, lane if lane < MOST_LANES else -1, to_left))
    return placed


def _stem(mark: Mark, x: Scale, top: int, lane: int, height: int) -> str:
    place, begin = round(100 * x.place(mark.at_s), 2), top - TOP - 4 - LANE * max(lane, 0)
    return f'<line class="grid" x1="{place}%" x2="{place}%" y1="{begin}" y2="{top + height}"/>'


def _flag(mark: Mark, x: Scale, top: int, lane: int, to_left: bool) -> str:
    place, y = round(100 * x.place(mark.at_s), 2), top - TOP - 4 - LANE * lane
    anchor, shift = ("end", -7) if to_left else ("start", 7)
    dot = f'<circle class="mark" cx="{place}%" cy="{y - 4}" r="4.5"/>'
    text = f'<text x="{place}%" y="{y}" dx="{shift}" text-anchor="{anchor}">{escape(mark.name)}</text>'
    return f'<g class="tone-{mark.tone}">{dot}</g>{text}'


def _svg(spoken: str, height: int, inside: str) -> str:
    return f'<svg role="img" width="100%" height="{height}"><title>{escape(spoken)}</title>{inside}</svg>'
