"""The sample documents as passages: a title, a lead and fields whose values can be set back in time."""

import csv
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path

DOCUMENTS = Path(__file__).with_name("documents")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July",
    "August", "September", "October", "November", "December",
)  # fmt: skip
HOURS = {"Opens": (7, 12), "Closes": (3, 10)}
CHOICES = ("Delivery", "Range", "Address")
"""Fields that take the value of another document when they are set back in time."""


@dataclass(frozen=True)
class Passage:
    """One document: what retrieval returns for it is ``text``."""

    id: str
    """Path below the source, as data preparation names documents."""
    title: str
    lead: tuple[str, ...]
    fields: dict[str, str]

    @property
    def folder(self) -> str:
        """The folder or file that holds it and others of its kind."""
        path, _, row = self.id.partition("#")
        return path if row else path.rpartition("/")[0]

    @property
    def area(self) -> str:
        """The part of the source that it belongs to: catalogue, stores, promotions..."""
        return re.split("[/#]", self.id)[1]

    @cached_property
    def text(self) -> str:
        """The document's Markdown."""
        facts = " ".join(f"{name}: {value}." for name, value in self.fields.items())
        return "\n\n".join([f"# {self.title}", *self.lead, *([facts] if facts else [])])

    @cached_property
    def subject(self) -> str:
        """What a customer calls it."""
        name = re.sub(r"^(Returns of |Retours : |Fauvette )", "", self.title)
        if name != self.title:
            return name
        if self.id.startswith("documents/policies/delivery/"):
            return name.removesuffix(" delivery").lower()
        return name[0].lower() + name[1:] if self.id.startswith("documents/fr/") else name


def load_passages(folder: Path = DOCUMENTS) -> list[Passage]:
    """Every document below a folder, in the order of their ids."""
    found = [
        _parse(f"documents/{path.relative_to(folder).as_posix()}{row}", text)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for row, text in _texts(path)
    ]
    return sorted(found, key=lambda passage: passage.id)


class Past:
    """Sets passages back in time: the same fields with values that held on another day.

    Args:
        passages: all documents; words (colours, streets) are taken from them.
    """

    def __init__(self, passages: list[Passage]) -> None:
        values: dict[str, set[str]] = {}
        for passage in passages:
            for name, value in passage.fields.items():
                values.setdefault(name, set()).update(value.split(", ") if name == "Colours" else [value])
        self._values = {name: sorted(found) for name, found in values.items()}

    def of(self, passage: Passage, rng: random.Random) -> Passage:
        """A version of the passage with other values."""
        fields = {name: self._value(name, value, rng) for name, value in passage.fields.items()}
        if "Starts" in fields:
            start = date(2025, 1, 1) + timedelta(days=rng.randrange(330))
            fields |= {"Starts": _day(start), "Ends": _day(start + timedelta(days=rng.randint(4, 34)))}
        return replace(passage, fields=fields)

    def _value(self, name: str, value: str, rng: random.Random) -> str:
        if name == "SKU":
            return value
        if name == "Stock":
            return str(0 if rng.random() < 0.1 else rng.randint(1, 99))
        if name == "Closed on":
            return rng.choice(WEEKDAYS)
        if name == "Colours":
            return ", ".join(rng.sample(self._values[name], rng.choice((2, 2, 3))))
        if name in CHOICES:
            value = rng.choice(self._values[name])
        low, high = HOURS.get(name, (0, 0))
        return _plural(re.sub(r"\d+", lambda match: str(_number(int(match[0]), low, high, rng)), value))


def _number(value: int, low: int, high: int, rng: random.Random) -> int:
    if high:
        return rng.randint(low, high)
    return rng.randint(max(1, value // 2), max(value + 3, value * 8 // 5))


def _plural(value: str) -> str:
    value = re.sub(r"\b1 (year|day|hour|litre|jour)s\b", r"1 \1", value)
    return re.sub(r"\b([02-9]|\d\d+) (year|day|hour|litre|jour)\b", r"\1 \2s", value)


def _day(day: date) -> str:
    return f"{day.day} {MONTHS[day.month - 1]}"


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """The documents of a file as Markdown, each with the part of its id that follows the path."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        title, blocks = re.findall(r"<h1>(.*?)</h1>", text)[0], re.findall(r"<p>(.*?)</p>", text)
        yield "", "\n\n".join([f"# {title}", *blocks])
    elif path.suffix == ".md":
        yield "", text.strip()
    else:
        rows = map(json.loads, text.splitlines()) if path.suffix == ".jsonl" else csv.DictReader(text.splitlines(True))
        yield from ((f"#{row['id']}", row["text"]) for row in rows)


def _parse(passage_id: str, text: str) -> Passage:
    title, *blocks = text.split("\n\n")
    facts = blocks[-1] if re.match(r"\w[\w' ]{1,24}: ", blocks[-1]) else ""
    pairs = (fact.split(": ", 1) for fact in facts.removesuffix(".").split(". ")) if facts else ()
    return Passage(passage_id, title.removeprefix("# "), tuple(blocks[:-1] if facts else blocks), dict(pairs))
