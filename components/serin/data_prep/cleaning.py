"""Clean text: repair wrong decoding, unify characters and white space, fill what templates left open."""

import re
import unicodedata

_LATIN_BYTES = {chr(byte): byte for byte in range(0x80, 0x100)}
_BYTES = _LATIN_BYTES | {
    bytes([byte]).decode("cp1252"): byte for byte in range(0x80, 0x100) if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
}
"""Character to the byte it was misread from, as cp1252 or, where that has no character, as Latin-1."""


def _characters(first: int, last: int) -> str:
    return "[" + "".join(re.escape(character) for character, byte in _BYTES.items() if first <= byte <= last) + "]"


_TRAIL = _characters(0x80, 0xBF)
_SEQUENCE = "|".join(
    [
        _characters(0xC2, 0xDF) + _TRAIL,
        _characters(0xE0, 0xEF) + _TRAIL + "{2}",
        _characters(0xF0, 0xF4) + _TRAIL + "{3}",
    ]
)
_MOJIBAKE = re.compile(f"(?:{_SEQUENCE})+")
_PLAUSIBLE = re.compile("[\u00a0-\u017f\u1e00-\u1eff\u2010-\u2044\u20ac\u2122\u2190-\u22ff\ufeff\U0001f000-\U0001ffff]")
_CLOSING = "»”’…–—™®©"
"""May follow a Swedish or Finnish capital in good text, as in 'HYVÄ»'."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufffd]")
_SPACES = re.compile("[ \t\u00a0\u2000-\u200a\u202f\u205f\u3000]+")
_PLACEHOLDER = re.compile(r"\{\{\s*([^{}\n]{1,80}?)\s*\}\}")


def clean_line(text: str) -> str:
    """A conversation's turn: repaired, NFC, no control characters, single spaces, at most one blank line."""
    lines = [_SPACES.sub(" ", line).strip() for line in _characters_cleaned(text).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def clean_markdown(text: str) -> str:
    """A document: as ``clean_line``, but the indentation that Markdown gives a meaning to stays."""
    lines = []
    for line in _characters_cleaned(text).split("\n"):
        body = line.lstrip(" \t")
        lines.append(line[: len(line) - len(body)] + _SPACES.sub(" ", body).rstrip() if body else "")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n").rstrip()


def repair_mojibake(text: str) -> str:
    """Undo UTF-8 that was read as cp1252 or Latin-1 ('cafÃ©'), up to twice; other text stays as it is."""
    for _ in range(2):
        repaired = _MOJIBAKE.sub(lambda match: _repaired(match.group()), text)
        if repaired == text:
            break
        text = repaired
    return text


def placeholders_as_words(text: str) -> str:
    """Unfilled template fields by their words: 'call {{Support Phone}}' becomes 'call support phone'."""
    return _PLACEHOLDER.sub(lambda match: " ".join(re.split(r"[\s_-]+", match[1])).lower(), text)


def has_placeholder(text: str) -> bool:
    """Whether a template field was left open."""
    return _PLACEHOLDER.search(text) is not None


def _characters_cleaned(text: str) -> str:
    """Repaired, NFC, without control characters; again while one step makes work for another."""
    while True:
        cleaned = repair_mojibake(text).replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n")
        cleaned = _CONTROL.sub("", unicodedata.normalize("NFC", cleaned))
        if cleaned == text:
            return cleaned
        text = cleaned


def _repaired(run: str) -> str:
    try:
        meant = bytes(_BYTES[character] for character in run).decode("utf-8")
    except UnicodeDecodeError:
        return run
    if len(meant) == 1 and (not _PLAUSIBLE.match(meant) or (run[0] in "ÄÅ" and run[1] in _CLOSING)):
        return run
    return meant
