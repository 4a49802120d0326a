"""Texts drawn from the grammars beside this file: ``{slot}`` draws from a slot, ``(a|b)`` one of two alternatives."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml

_SLOT = re.compile(r"\{(\w+)\}")
_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
_MAX_DEPTH = 8


@dataclass(frozen=True)
class Grammar:
    """Templates by group and category, and the slots that they draw from."""

    slots: Mapping[str, Sequence[str]]
    groups: Mapping[str, Mapping[str, Sequence[str]]]
    """group -> category -> templates."""

    @classmethod
    def load(cls, name: str) -> Self:
        """Read ``<name>.yaml`` beside this module."""
        document = yaml.safe_load(Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8"))
        slots = document.pop("slots")
        return cls(slots=slots, groups=document)

    def draw(self, group: str, category: str, rng: random.Random) -> str:
        """One text of a category."""
        return self.expand(rng.choice(self.groups[group][category]), rng)

    def expand(self, template: str, rng: random.Random) -> str:
        """Fill a template; its doubled braces become single ones."""
        text = template.replace("{{", "\x01").replace("}}", "\x02")
        for _ in range(_MAX_DEPTH):
            text = _SLOT.sub(lambda match: self._fill(match[1], rng), text)
            text = _choose(text, rng)
            if not _SLOT.search(text):
                break
        return _tidy(text.replace("\x01", "{").replace("\x02", "}"))

    def _fill(self, slot: str, rng: random.Random) -> str:
        special = {"half1", "half2", "pieces", "code"}
        if slot in special and slot not in self.slots:
            return _payload(slot, self._fill("bad", rng), rng)
        return rng.choice(self.slots[slot])


def gerund(phrase: str) -> str:
    """A phrase that begins with a verb, with that verb's -ing form: "steal a car" gives "stealing a car"."""
    verb, space, rest = phrase.partition(" ")
    if re.search(r"[^aeiou]e$|[ua]e$", verb) and len(verb) > 2:
        verb = verb[:-1]
    elif re.fullmatch(r"[^aeiou]*[aeiou][bdgklmnprt]", verb) and not verb.endswith("k"):
        verb += verb[-1]
    return f"{verb}ing{space}{rest}"


def vary(text: str, rng: random.Random) -> str:
    """The same text as people type it: other case, no closing mark, a typo."""
    draw = rng.random()
    if draw < 0.08:
        text = text.upper()
    elif draw < 0.35:
        text = text.lower()
    elif draw < 0.85:
        text = text[:1].upper() + text[1:]
    if rng.random() < 0.15:
        text = text.rstrip(".?!")
    if rng.random() < 0.12 and len(text) > 12:
        at = rng.randrange(1, len(text) - 2)
        text = rng.choice(
            (text[:at] + text[at + 1 :], text[:at] + text[at + 1] + text[at] + text[at + 2 :], text[:at] + text[at:])
        )
    return text


def _choose(text: str, rng: random.Random) -> str:
    while _CHOICE.search(text):
        text = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), text)
    return text


def _payload(slot: str, hidden: str, rng: random.Random) -> str:
    import base64
    import codecs

    middle = len(hidden) // 2
    if slot == "half1":
        return hidden[:middle]
    if slot == "half2":
        return hidden[middle:]
    if slot == "pieces":
        return " + ".join(f'"{hidden[at : at + 4]}"' for at in range(0, len(hidden), 4))
    raw = hidden.encode()
    return rng.choice((base64.b64encode(raw).decode(), raw.hex(), codecs.encode(hidden, "rot13"), hidden[::-1]))


def _tidy(text: str) -> str:
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" +([,.;?!])", r"\1", text)
    return re.sub(r"([,.;])(?:[,;]|\.(?=[^.]|$))", r"\1", text).strip(" ,;")
