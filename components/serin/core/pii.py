"""Personal data in text: ordered regular expressions, each with a check that keeps false alarms down.

Used on training data before it is stored and by the endpoint's guardrails, so that both mean the same by it.
Recognised: IBANs (checksum), payment cards (Luhn), e-mail addresses, phone numbers (written as such).  Names and
street addresses are not: they need a model.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

KINDS = ("iban", "card", "email", "phone")


@dataclass(frozen=True)
class PiiMatch:
    """One piece of personal data: ``text[start:end]``."""

    kind: str
    """One of ``KINDS``."""
    start: int
    end: int


def find_pii(text: str) -> list[PiiMatch]:
    """Personal data in a text, in order, without overlaps: an earlier kind wins over a later one."""
    if _HINT.search(text) is None:
        return []
    found: list[PiiMatch] = []
    for kind, (pattern, cut) in _RULES.items():
        for match in pattern.finditer(text):
            span = cut(match.group())
            if span is None:
                continue
            start, end = match.start() + span[0], match.start() + span[1]
            if all(end <= other.start or start >= other.end for other in found):
                found.append(PiiMatch(kind, start, end))
    return sorted(found, key=lambda match: match.start)


def mask_pii(text: str, keep: Collection[str] = ()) -> tuple[str, dict[str, int]]:
    """Replace personal data by its kind, ``<EMAIL>`` and so on.

    Args:
        text: what may hold personal data.
        keep: pieces that are no secret (the company's own address), as ``find_pii`` finds them.

    Returns:
        The masked text, and how often each kind was found.
    """
    parts, last = [], 0
    matches = [match for match in find_pii(text) if text[match.start : match.end] not in keep]
    for match in matches:
        parts += [text[last : match.start], f"<{match.kind.upper()}>"]
        last = match.end
    return "".join([*parts, text[last:]]), dict(Counter(match.kind for match in matches))


Span = tuple[int, int]


def _cut_iban(text: str) -> Span | None:
    """The part of a candidate that is an IBAN of its country's length with a right checksum (ISO 13616)."""
    length = IBAN_LENGTHS.get(text[:2])
    if length is None:
        return None
    end, seen = 0, 0
    while end < len(text) and seen < length:
        seen += text[end].isalnum()
        end += 1
    number = "".join(character for character in text[:end] if character.isalnum())
    if len(number) != length or text[end : end + 1].isalnum():
        return None
    value = int("".join(str(int(character, 36)) for character in number[4:] + number[:4]))
    return (0, end) if value % 97 == 1 else None


def _cut_card(text: str) -> Span | None:
    """The whole candidate if its digits pass the Luhn test (ISO/IEC 7812) and are not all the same."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = [digit if i % 2 == 0 else sum(divmod(2 * digit, 10)) for i, digit in enumerate(reversed(digits))]
    return (0, len(text)) if sum(doubled) % 10 == 0 and len(set(digits)) > 1 else None


def _cut_email(text: str) -> Span | None:
    return (0, len(text)) if ".." not in text else None


def _cut_phone(text: str) -> Span | None:
    """The whole candidate if it has as many digits as a phone number and is no date, amount or IP address."""
    digits = sum(character.isdigit() for character in text.partition("x")[0])
    # Written as one run after 00 it could as well be a padded order number: only a long one is taken.
    least = 12 if text.startswith("00") and text.isdigit() else 8
    return (0, len(text)) if least <= digits <= 15 and not _NO_PHONE.fullmatch(text) else None


_HINT = re.compile(r"[@\d]")
"""Whatever is recognised holds one of these."""
_NO_PHONE = re.compile(r"\d{4}[-./]\d{2}[-./]\d{2}.*|\d{1,3}(\.\d{1,3}){3}|\d{1,3}( \d{3})+")

_RULES: dict[str, tuple[re.Pattern[str], Callable[[str], Span | None]]] = {
    "iban": (re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}"), _cut_iban),
    "card": (
        re.compile(
            r"(?<![\w.-])(?:3[47]\d{2}[ -]?\d{6}[ -]?\d{5}"
            r"|(?:4\d{3}|5[1-5]\d{2}|2[2-7]\d{2}|6(?:011|5\d{2}))[ -]?\d{4}[ -]?\d{4}[ -]?\d{4})(?![\w-]|\.\d)"
        ),
        _cut_card,
    ),
    "email": (
        re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+%'-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61})\.)+[A-Za-z]{2,24}\b"),
        _cut_email,
    ),
    "phone": (
        re.compile(
            # +33 6 12 34 56 78, 0033612345678, +44 (0)20 7946 0958, 001-420-335-7509
            r"(?<![\w.+/-])(?:(?:\+|00)[1-9]\d{0,2}(?:[ .-]?\(?\d{1,5}\)?){2,6}"
            # (555) 123-4567, 555-123-4567, 555.123.4567
            r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}"
            # (07) 5331 0577
            r"|\(0?\d{2,4}\) ?\d{3,4}[ -]\d{3,4}"
            # 06 12 34 56 78, 06.12.34.56.78, 027 896 92 86
            r"|0[1-9](?:[ .-]\d{2}){4}|0\d{1,3}(?:[ ]\d{2,4}){2,4}"
            # 020 7946 0958, 0171 2345678, 089-12345678
            r"|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,5})(?:x\d{1,6})?(?![\w/-]|\.\d)"
        ),
        _cut_phone,
    ),
}
"""Kind to its pattern and its check, in the order in which they claim text."""

IBAN_LENGTHS = {
    **dict.fromkeys(["NO"], 15),
    **dict.fromkeys(["BE"], 16),
    **dict.fromkeys(["DK", "FI", "NL", "FO", "GL"], 18),
    **dict.fromkeys(["MK", "SI"], 19),
    **dict.fromkeys(["AT", "BA", "EE", "KZ", "LT", "LU", "XK"], 20),
    **dict.fromkeys(["CH", "HR", "LI", "LV"], 21),
    **dict.fromkeys(["BG", "DE", "GB", "GE", "IE", "ME", "RS", "BH", "VA"], 22),
    **dict.fromkeys(["AE", "GI", "IL"], 23),
    **dict.fromkeys(["AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"], 24),
    **dict.fromkeys(["PT", "ST"], 25),
    **dict.fromkeys(["IS", "TR"], 26),
    **dict.fromkeys(["FR", "GR", "IT", "MC", "MR", "SM"], 27),
    **dict.fromkeys(["AL", "AZ", "CY", "DO", "GT", "HU", "LB", "PL", "SV"], 28),
    **dict.fromkeys(["BR", "EG", "PS", "QA", "UA"], 29),
    **dict.fromkeys(["JO", "KW", "MU"], 30),
    **dict.fromkeys(["MT", "SC"], 31),
}
"""ISO 13616: characters of an IBAN by country."""
