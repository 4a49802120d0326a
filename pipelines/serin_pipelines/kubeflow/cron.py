"""Cron expressions as Kubeflow Pipelines reads them: six fields, seconds first, in UTC.

Its scheduler uses github.com/robfig/cron 1.x: ``*`` and ``?`` are the same, Sunday is 0, and a day must fit both the
day of the month and the day of the week, unless neither is a star, when one of them is enough.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

from serin.core.errors import ConfigError

HORIZON_DAYS = 366 * 5
"""29 February comes within it."""
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


class Field(NamedTuple):
    """One field's name, bounds, and names for its numbers from the lower bound up."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


FIELDS = (
    Field("second", 0, 59),
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of the month", 1, 31),
    Field("month", 1, 12, MONTHS),
    Field("day of the week", 0, 6, DAYS),
)


def next_times(expression: str, count: int = 3, after: datetime | None = None) -> list[datetime]:
    """The next times at which a schedule fires, in UTC.

    Raises:
        ConfigError: the expression has not six fields, a field is wrong, or it never fires.
    """
    texts = expression.split()
    if len(texts) != len(FIELDS):
        raise ConfigError(
            f"Cron {expression!r} has {len(texts)} fields, and Kubeflow wants six, in UTC: second minute hour day "
            "month weekday; '0 0 2 * * *' is every night at two."
        )
    values = [_values(text, field, expression) for text, field in zip(texts, FIELDS, strict=True)]
    start = (after or datetime.now(UTC)).astimezone(UTC)
    found: list[datetime] = []
    for moment in _moments(values, [_star(text) for text in texts], start):
        found.append(moment)
        if len(found) == count:
            return found
    if not found:
        raise ConfigError(f"Cron {expression!r} never fires: no month has such a day.")
    return found


def _moments(values: list[set[int]], stars: list[bool], start: datetime) -> Iterator[datetime]:
    seconds, minutes, hours, days, months, weekdays = values
    for offset in range(HORIZON_DAYS):
        day = start.date() + timedelta(days=offset)
        if day.month not in months or not _fits(day, days, weekdays, stars[3] or stars[5]):
            continue
        for hour in sorted(hours):
            for minute in sorted(minutes):
                for second in sorted(seconds):
                    moment = datetime(day.year, day.month, day.day, hour, minute, second, tzinfo=UTC)
                    if moment > start:
                        yield moment


def _fits(day: date, days: set[int], weekdays: set[int], both: bool) -> bool:
    by_day, by_weekday = day.day in days, day.isoweekday() % 7 in weekdays
    return by_day and by_weekday if both else by_day or by_weekday


def _star(text: str) -> bool:
    return any(part.split("/")[0] in ("*", "?") for part in text.split(","))


def _values(text: str, field: Field, expression: str) -> set[int]:
    try:
        values = {value for part in text.split(",") for value in _range(part, field)}
    except ValueError as error:
        raise ConfigError(
            f"Cron {expression!r}: {text!r} is no {field.name} ({field.low} to {field.high}, '*', ranges 'a-b', "
            "steps '/n', lists 'a,b')."
        ) from error
    return values


def _range(part: str, field: Field) -> range:
    span, slash, step_text = part.partition("/")
    step = int(step_text) if slash else 1
    if span in ("*", "?"):
        low, high = field.low, field.high
    else:
        first, dash, last = span.partition("-")
        low = _number(first, field)
        high = _number(last, field) if dash else (field.high if slash else low)
    if not (field.low <= low <= high <= field.high) or step < 1:
        raise ValueError(part)
    return range(low, high + 1, step)


def _number(text: str, field: Field) -> int:
    name = text.upper()
    if name in field.names:
        return field.low + field.names.index(name)
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)
