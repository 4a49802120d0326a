"""Texts as the grounding score reads them: words with their stem and kind, numbers by value, where each stands.

English and French are known by their stop words, negations and number words; other languages word by word.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from serin.core import text as lexical

Kind = Literal["word", "name", "stop", "self", "chat", "number", "negation"]
"""``name`` is a capitalised word inside a sentence or an identifier with digits; ``self`` speaks of the one who
writes; ``chat`` is what conversation adds ("yes", "well")."""

CACHED_PASSAGES = 256
PASSAGE_CHARS_LIMIT = 20_000
"""What is read of one passage; passages of an index are far shorter."""

_TOKEN = re.compile(
    r"(?P<number>(?<!\w)[1-9]\d{0,2}(?:[ \u00a0\u2009\u202f]\d{3})++(?!\w)|(?<!\w)\d++(?:[.,']\d++)*+(?!\w))"
    r"|(?P<money>[$€£¥₹])|(?P<word>[^\W_]+)|(?P<end>(?<!\W\w)[.!?]+(?=[\s\"')\]]|$)|\n+)"
)
_CONTRACTED = re.compile(r"\b(?:(ca|wo|sha) ?n't|(can)not)\b|n't\b", re.IGNORECASE)
_FULL = {"ca": "can not", "wo": "will not", "sha": "shall not", "can": "can not"}
_GLUED = re.compile(
    r"(?<=[a-z]{2})(?=[A-Z][a-z]{2})|(?<=[A-Z]{2})(?=[A-Z][a-z]{3})|(?<=\d)(?=[A-Z]{2})"
    r"|(?<=\d{2})(?=[A-Z][a-z])|(?<=[a-z]{3})(?=\d{2})"
)
"""Where a page's cells or headings ran together when its markup was dropped: 'DepartmentRate', '94280Sacramento'."""
_ENUMERATION = re.compile(r"(?m)^[ \t>*#(-]*\d{1,2}[.)](?=\s)")
_NOT_ONLY = re.compile(r"\bnot (?=only\b|just\b|necessarily\b)", re.IGNORECASE)
_MEASURED = re.compile(r"(\d+)([^\W\d_]{2,})")
_ORDINAL = re.compile(r"(\d+)(?:st|nd|rd|th|e|er|ère|eme|ème|s)$")

_ENGLISH_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
_FRENCH_NUMBERS = (
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept dix-huit "
    "dix-neuf vingt"
)
_ENGLISH_TENS, _FRENCH_TENS = "thirty forty fifty sixty seventy eighty ninety", "trente quarante cinquante soixante"
_NUMBER_WORDS = (
    {word: str(value) for value, word in enumerate(_ENGLISH_NUMBERS.split())}
    | {word: str(value) for value, word in enumerate(_FRENCH_NUMBERS.split())}
    | {word: str(10 * (3 + place)) for place, word in enumerate(_ENGLISH_TENS.split())}
    | {word: str(10 * (3 + place)) for place, word in enumerate(_FRENCH_TENS.split())}
    | {"hundred": "100", "thousand": "1000", "million": "1000000", "billion": "1000000000"}
    | {"cent": "100", "mille": "1000", "once": "1", "twice": "2", "thrice": "3", "dozen": "12"}
)
_VAGUE_NUMBERS = frozenset({"one", "un", "six", "once", "cent"})
"""Words that are more often no number: they match one, and are never held to be one."""

_NEGATIONS_TEXT = (
    "not no never none neither nor nobody nothing nowhere without hardly unable cannot nt pas jamais aucun aucune "
    "sans ni rien personne"
)
NEGATIONS = frozenset(_NEGATIONS_TEXT.split())
_CURRENCIES = frozenset("$€£¥₹")
_SELF_TEXT = "i me my mine myself we our ours us im ive je j me moi mon ma mes nous notre nos"
_SELF = frozenset(_SELF_TEXT.split())
_CHAT_TEXT = (
    "yes yeah yea yep no nope oh ah ok okay well sure right true indeed agree lol haha wow hi hello thanks thank "
    "please sorry know did oui non merci bonjour"
)
_CHAT = frozenset(_CHAT_TEXT.split())
_EXTRA_STOPS_TEXT = (
    "being because while who whom whose why yet still only even ever both each every many much most other others "
    "same own over under again further once here now until during before between through against since although "
    "though however therefore also either whether upon within there's must shall let"
)
_EXTRA_STOPS = frozenset(_EXTRA_STOPS_TEXT.split())
_STOPS = lexical.STOP_WORDS | _EXTRA_STOPS


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a text."""

    text: str
    """As written."""
    stem: str
    """What is compared: a stem without case and accents, or a number's value."""
    kind: Kind
    sentence: int
    money: bool = False
    """Whether a number has a currency's sign beside it."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage with the places of its words."""

    stems: tuple[str, ...]
    sentences: tuple[int, ...]
    """Sentence number of each word."""
    negations: tuple[int, ...]
    """How many negations stand before each place, and in all: one longer than ``stems``."""
    places: dict[str, tuple[int, ...]]
    numbers: dict[int, str]
    """Number at each place that holds one."""
    names: dict[int, str]
    """Name at each place that holds one."""
    beginnings: frozenset[str]
    """First five letters of the longer stems."""
    bridged: frozenset[tuple[str, str]]
    """Words on both sides of a negation."""


def read(text: str) -> list[Word]:
    """The words of a text in order."""
    return [Word(*token) for token in _tokens(text)]


@lru_cache(maxsize=CACHED_PASSAGES)
def passage_of(text: str) -> Passage:
    """A passage, read once and remembered."""
    places: dict[str, list[int]] = {}
    stems: list[str] = []
    sentences: list[int] = []
    negations = [0]
    marked: dict[str, dict[int, str]] = {"number": {}, "name": {}}
    for place, (_, stem, kind, sentence, _) in enumerate(_tokens(text)):
        stems.append(stem)
        sentences.append(sentence)
        places.setdefault(stem, []).append(place)
        negations.append(negations[-1] + (kind == "negation"))
        if kind in marked:
            marked[kind][place] = stem
    return Passage(
        stems=tuple(stems),
        sentences=tuple(sentences),
        negations=tuple(negations),
        places={stem: tuple(found) for stem, found in places.items()},
        numbers=marked["number"],
        names=marked["name"],
        beginnings=frozenset(stem[:5] for stem in places if len(stem) >= 5),
        bridged=frozenset(
            (stems[at - 1], stems[at + 1]) for at in range(1, len(stems) - 1) if negations[at + 1] > negations[at]
        ),
    )


_Token = tuple[str, str, Kind, int, bool]


def _tokens(text: str) -> list[_Token]:
    """The fields of ``Word`` for each word: plain tuples, because passages are long."""
    plain = unicodedata.normalize("NFKC", text[:PASSAGE_CHARS_LIMIT].translate(lexical.PLAIN))
    if "n't" in plain or "annot" in plain:
        plain = _CONTRACTED.sub(lambda match: _FULL.get((match[1] or match[2] or "").lower(), " not"), plain)
    plain = _NOT_ONLY.sub("", _ENUMERATION.sub("", plain))
    found: list[_Token] = []
    sentence, opening = 0, True
    for match in _TOKEN.finditer(plain):
        group, token = match.lastgroup, match[0]
        if group == "word":
            for written, stem, kind, is_name in _parts(token):
                found.append((written, stem, "name" if is_name and not opening else kind, sentence, False))
            opening = False
        elif group == "end":
            sentence, opening = sentence + 1, True
        elif group == "number":
            money = plain[max(0, match.start() - 2) : match.start()].strip()[-1:] in _CURRENCIES
            found += [(token, value, "number", sentence, money) for value in _number_values(token)]
            opening = False
        elif found and found[-1][2] == "number" and not plain[match.end() : match.end() + 2].strip()[:1].isdigit():
            found[-1] = (*found[-1][:4], True)  # the sign after "89 €"
    return found


@lru_cache(maxsize=20_000)
def _parts(token: str) -> tuple[tuple[str, str, Kind, bool], ...]:
    """Word, stem, kind, and whether it is a name unless it opens a sentence; of each word that ran together."""
    pieces = [token] if token.islower() and token.isalpha() else _GLUED.split(token)
    found: list[tuple[str, str, Kind, bool]] = []
    for piece in pieces:
        measured = _MEASURED.fullmatch(piece)
        if measured and not _ORDINAL.match(piece.lower()):
            found += [(measured[1], value, "number", False) for value in _number_values(measured[1])]
            piece = measured[2]
        elif piece.isdigit():
            found += [(piece, value, "number", False) for value in _number_values(piece)]
            continue
        stem, kind = _known(piece.casefold())
        found.append((piece, stem, kind, kind == "word" and (piece[0].isupper() or not piece.isalpha())))
    return tuple(found)


def _known(word: str) -> tuple[str, Kind]:
    if word in NEGATIONS:
        return word, "negation"
    if word in _NUMBER_WORDS:
        return _NUMBER_WORDS[word], "stop" if word in _VAGUE_NUMBERS else "number"
    if ordinal := _ORDINAL.match(word):
        return lexical._canonical(ordinal[1]), "number"
    if word in _SELF:
        return word, "self"
    if word in _CHAT:
        return word, "chat"
    if word in _STOPS or len(word) == 1:
        return word, "stop"
    return _stem(word), "word"


@lru_cache(maxsize=5_000)
def _number_values(token: str) -> tuple[str, ...]:
    return tuple(lexical._values(token))


def _stem(word: str) -> str:
    """A word without accents and common endings; never shorter than three letters."""
    if not word.isascii():
        word = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
    for ending, least in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= least:
            word = word[: len(word) - len(ending)]
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouls":
        word = word[:-1]
    if len(word) > 3 and word[-1] in "eyi":
        word = word[:-1]
    return word


_ENDINGS = (
    ("iments", 4), ("ement", 4), ("ations", 4), ("ation", 4), ("ings", 3), ("ing", 3), ("iers", 3), ("ies", 3),
    ("ied", 3), ("ers", 4), ("er", 4), ("ors", 4), ("or", 4), ("est", 4), ("ed", 3), ("ly", 4), ("sses", 2), ("es", 3),
    ("'s", 2), ("s", 3),
)  # fmt: skip
