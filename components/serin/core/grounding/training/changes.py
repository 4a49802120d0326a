"""Answers made false by one change of a number, a name or a negation: material for training, made from true ones."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = ("number", "name", "negation", "removal")

_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w])")
_SPELT_TEXT = "two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty hundred"
_SPELT = _SPELT_TEXT.split()
_SPELT_NUMBER = re.compile(rf"\b(?:{'|'.join(_SPELT)})\b")
_NAME = re.compile(r"(?<![.!?:\n])(?<=[a-z,;] )[A-Z][\w-]+(?: [A-Z][\w-]+)*")
_FIRST_NAME = re.compile(r"(?:^|(?<=[.!?] ))(?!The\b|It\b|In\b|This\b|Yes\b|I\b)[A-Z]\w+(?: [A-Z]\w+)+")
_AUXILIARY = re.compile(
    r"\b(is|are|was|were|can|could|will|would|should|must|may|might|has|have|had|do|does|did)\b"
    r"(?!\s*(?:not|n't|never))", re.IGNORECASE
)  # fmt: skip
_NEGATION = re.compile(
    r"(?:(?<=\w)n't\b| (?:not|never)\b|\b[Nn]o (?=\w)|\bwithout\b|\b[Nn]either\b|\b[Nn]one\b|(?<=can)not\b)",
    re.IGNORECASE,
)
_REPLACED = {"without": "with", "neither": "both", "none": "all"}


@dataclass(frozen=True)
class Changed:
    """An answer with one place changed."""

    kind: str
    text: str
    start: int
    end: int
    """Characters of the new text that are false; for a removal, of the word after the gap."""


def change(kind: str, answer: str, context: str, names: Sequence[str], rng: random.Random) -> Changed | None:
    """One random change of a kind; None when the answer offers no place for it.

    Args:
        kind: one of ``KINDS``.
        answer: the true answer.
        context: its passages joined, from which other numbers and names may come.
        names: names from elsewhere.
        rng: source of chance.
    """
    return {"number": _number, "name": _name, "negation": _negate, "removal": _affirm}[kind](
        answer, context, names, rng
    )


def names_in(text: str) -> list[str]:
    """Capitalised words and runs of them inside sentences."""
    return [match[0] for match in _NAME.finditer(text)]


def _number(answer: str, context: str, names: Sequence[str], rng: random.Random) -> Changed | None:
    found = [m for m in _NUMBER.finditer(answer) if not _enumerates(answer, m)] + list(_SPELT_NUMBER.finditer(answer))
    if not found:
        return None
    match = rng.choice(found)
    if match[0] in _SPELT:
        return _replaced("number", answer, match, rng.choice([word for word in _SPELT if word != match[0]]))
    others = [m[0] for m in _NUMBER.finditer(context) if m[0] != match[0]]
    if others and rng.random() < 0.35:
        return _replaced("number", answer, match, rng.choice(others))
    return _replaced("number", answer, match, _other_number(match[0], rng))


def _enumerates(answer: str, match: re.Match[str]) -> bool:
    line = answer.rfind("\n", 0, match.start()) + 1
    return not answer[line : match.start()].strip(" -*(") and answer[match.end() : match.end() + 1] in {".", ")"}


def _other_number(number: str, rng: random.Random) -> str:
    plain = number.replace(",", "")
    value = float(plain)
    whole = "." not in plain
    while True:
        way = rng.randrange(4)
        if way == 0:
            new = value + rng.choice([-3, -2, -1, 1, 2, 3, 5, 10])
        elif way == 1:
            new = value * rng.choice([2, 3, 10, 0.5])
        elif way == 2:
            place = rng.choice([at for at, char in enumerate(plain) if char.isdigit()])
            new = float(plain[:place] + str(rng.randrange(10)) + plain[place + 1 :])
        else:
            new = float(rng.randrange(1, 10 ** min(6, len(plain))))
        if new >= 0 and new != value and (not whole or new == int(new)):
            return (f"{int(new):,}" if "," in number else str(int(new))) if whole else f"{new:.2f}".rstrip("0")


def _name(answer: str, context: str, names: Sequence[str], rng: random.Random) -> Changed | None:
    found = list(_NAME.finditer(answer)) + list(_FIRST_NAME.finditer(answer))
    if not found:
        return None
    match = rng.choice(found)
    said = set(re.findall(r"\w+", match[0]))
    pool = names_in(context) if rng.random() < 0.35 else names
    others = [name for name in pool if not said & set(re.findall(r"\w+", name))]
    if not others:
        return None
    new = rng.choice(others)
    words = match[0].split()
    if len(words) > 1 and rng.random() < 0.3:
        new = " ".join([words[0], new.split()[-1]])
    return _replaced("name", answer, match, new)


def _negate(answer: str, context: str, names: Sequence[str], rng: random.Random) -> Changed | None:
    found = list(_AUXILIARY.finditer(answer))
    if not found:
        return None
    match = rng.choice(found)
    word = match[0]
    new = rng.choice([f"{word} not", f"{word} not", f"{word} never", _short(word)])
    return _replaced("negation", answer, match, new)


def _short(word: str) -> str:
    if word.lower() in {"may", "might"}:
        return f"{word} not"
    return {"can": "cannot", "will": "won't"}.get(word, f"{word}n't")


def _affirm(answer: str, context: str, names: Sequence[str], rng: random.Random) -> Changed | None:
    found = list(_NEGATION.finditer(answer))
    if not found:
        return None
    match = rng.choice(found)
    new = _REPLACED.get(match[0].lower(), "")
    text = answer[: match.start()] + new + answer[match.end() :]
    end = re.compile(r"\W*\w+(?:\W+\w+){0,3}").match(text, match.start())
    return Changed("removal", text, match.start(), end.end() if end else len(text))


def _replaced(kind: str, answer: str, match: re.Match[str], new: str) -> Changed:
    return Changed(kind, answer[: match.start()] + new + answer[match.end() :], match.start(), match.start() + len(new))
