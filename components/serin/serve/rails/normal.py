"""Plain readings of a text that was dressed up to slip past a classifier.

A reading undoes look-alike letters, invisible characters, spaced or digit-for-letter spelling, base64, hex, ROT13 and
reversal.  Each is a guess: the original is always judged too, and the highest score counts.
"""

import base64
import binascii
import codecs
import re
import unicodedata

MAX_DECODED = 4
"""Encoded pieces that are opened in one text."""
RESPELT_CHARS = 24
"""Of a word, looked at together."""

_LOOKALIKES = str.maketrans(
    "аеорсухіѕјԁԛԝһӏкмтвнгєзАВЕКМНОРСТУХІЅЈαβεηικνοπρτυχωΑΒΕΖΗΙΚΜΝΟΡΤΥΧɑɡɪıʟɴʀʏʙɢʜᴀᴄᴅᴇᴊᴋᴍᴏᴘᴛᴜᴠᴡᴢꜰꜱ",
    "aeopcyxisjdqwhlkmtbhreзABEKMHOPCTYXISJ".replace("з", "3")
    + "abeniknonptuxwABEZHIKMNOPTYX"
    + "agiilnrybghacdejkmoptuvwzfs",
)
_DIGITS = str.maketrans("013457@$!|+€", "oieastasilte")
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]"
)
_MARKS = re.compile("([A-Za-z\u0400-\u04ff])[\u0300-\u036f\u0489\u20d0-\u20ff]+")
_WORD = re.compile(r"\S+")
_LATIN, _FOREIGN = re.compile("[A-Za-z]"), re.compile("[\u0370-\u04ff]")
_SPACED = re.compile(r"(?<![^\W_])(?:[^\W\d_][ .\-_*/|]){4,}[^\W\d_](?![^\W_])")
_LAST_LETTER, _LAST_DIGIT = re.compile(r".*[A-Za-z]", re.DOTALL), re.compile(r".*[013457@$!|+€]", re.DOTALL)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}[ :]?){8,}")
_STOP = re.compile(r"\b(?:the|and|you|your|all|to|of|is|are|with|that|not|for|what|how|me)\b")


def plain(text: str) -> str:
    """The text without invisible characters, stacked marks and look-alike letters; one case form of each letter."""
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    if text.isascii():
        return text
    text = _MARKS.sub(r"\1", unicodedata.normalize("NFD", text)) if _MARKS.search(text) else text
    text = unicodedata.normalize("NFC", text)
    latin = sum("a" <= letter <= "z" or "A" <= letter <= "Z" for letter in text)
    foreign = sum("\u0370" <= letter <= "\u04ff" for letter in text)
    if foreign == 0 or latin > foreign:
        return text.translate(_LOOKALIKES)
    return _WORD.sub(_one_alphabet, text)


def readings(text: str) -> list[str]:
    """``plain(text)`` first, then other ways to read it, if there are any (seven at most)."""
    first = plain(text)
    found = [first]
    respelt = _WORD.sub(_respell, _SPACED.sub(_join, first))
    if respelt != first:
        found.append(respelt)
    found += _decoded(first)
    turned = _turned(first)
    if turned is not None:
        found.append(turned)
    return found


def _join(match: re.Match[str]) -> str:
    return match[0][0::2]


def _one_alphabet(match: re.Match[str]) -> str:
    mixed = _LATIN.search(match[0]) and _FOREIGN.search(match[0])
    return match[0].translate(_LOOKALIKES) if mixed else match[0]


def _respell(match: re.Match[str]) -> str:
    """A word with digits for letters; a long one in parts, as far as letters and such digits follow."""
    word = match[0]
    letter, digit = _LAST_LETTER.match(word), _LAST_DIGIT.match(word)
    end = min(letter.end(), digit.end(), len(word) - 2) if letter and digit else 0
    parts = [_respelt(word[at : at + RESPELT_CHARS]) for at in range(0, end, RESPELT_CHARS)]
    return "".join([*parts, word[RESPELT_CHARS * len(parts) :]])


def _respelt(part: str) -> str:
    word = part.rstrip(".,;:?!")
    letters = sum(letter.isalpha() for letter in word)
    respelt = word.translate(_DIGITS)
    plausible = 2 * letters >= len(word) and sum(letter.isalpha() for letter in respelt) >= len(word) - 1
    return respelt + part[len(word) :] if plausible else part


def _decoded(text: str) -> list[str]:
    found: list[str] = []
    for match in list(_BASE64.finditer(text))[: 4 * MAX_DECODED]:
        piece = match[0].rstrip("=").replace("-", "+").replace("_", "/")
        try:
            raw = base64.b64decode(piece + "=" * (-len(piece) % 4))
        except (binascii.Error, ValueError):
            continue
        found += _readable(raw)
    for match in list(_HEX.finditer(text))[:MAX_DECODED]:
        found += _readable(bytes.fromhex(re.sub(r"[ :]", "", match[0])))
    return found[:MAX_DECODED]


def _readable(raw: bytes) -> list[str]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return []
    letters = sum(letter.isalpha() or letter in " .,'?!" for letter in text)
    return [plain(text)] if len(text) >= 8 and letters >= 0.85 * len(text) else []


def _turned(text: str) -> str | None:
    sample = text[:2000].lower()
    now = len(_STOP.findall(sample))
    for other in (codecs.encode(text, "rot13"), text[::-1]):
        if len(_STOP.findall(other[:2000].lower())) >= max(2, 2 * now + 1):
            return other
    return None
