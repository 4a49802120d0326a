"""The colours of every page that people read, light and dark, and the pairs in which they meet.

Every pair keeps to WCAG 2.2 AA: 4.5:1 for text, 3:1 for what pictures are drawn with.  Colour never stands alone:
outcomes have a sign beside it, and releases a shape of their own.
"""

from enum import StrEnum


class Tone(StrEnum):
    """What a colour says; the value is its name in the stylesheet (``tone-good``)."""

    GOOD = "good"
    BAD = "bad"
    WARN = "warn"
    PLAIN = "muted"
    INK = "ink"
    CANDIDATE = "candidate"
    CHAMPION = "champion"
    BASELINE = "baseline"


COLOURS: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#14171c"),
    "raised": ("#f5f6f8", "#1d2229"),
    "line": ("#d8dde3", "#363e49"),
    "ink": ("#171a1f", "#e9ecf0"),
    "muted": ("#545d69", "#a6b0bb"),
    "brand": ("#f2b90c", "#f2b90c"),
    "candidate": ("#0b5cad", "#6cb2ff"),
    "champion": ("#9a4a00", "#f2a65a"),
    "baseline": ("#5d6671", "#9aa5b1"),
    "good": ("#19752f", "#57c77a"),
    "bad": ("#b0211a", "#ff8f85"),
    "warn": ("#825500", "#e6b84d"),
    "good-soft": ("#e7f4ea", "#17301f"),
    "bad-soft": ("#fcecea", "#3b1d1b"),
    "warn-soft": ("#fdf3d7", "#352b12"),
    "muted-soft": ("#eceff2", "#262d36"),
    "marked": ("#fff0b8", "#4a3d0c"),
}
"""Name in the stylesheet to its value on light and on dark paper."""

TEXT, DRAWN = 4.5, 3.0
"""Least contrast of text and of what pictures are drawn with: WCAG 2.2, success criteria 1.4.3 and 1.4.11."""

_PAPERS = ("paper", "raised", "good-soft", "bad-soft", "warn-soft", "muted-soft", "marked")
_TONES = ("candidate", "champion", "baseline", "good", "bad", "warn", "muted")
PAIRS: tuple[tuple[str, str, float], ...] = (
    *(("ink", paper, TEXT) for paper in _PAPERS),
    *((tone, paper, TEXT) for tone in _TONES for paper in ("paper", "raised")),
    *((tone, f"{tone}-soft", TEXT) for tone in ("good", "bad", "warn", "muted")),
    *((tone, "good-soft", DRAWN) for tone in _TONES),
    ("muted", "bad-soft", TEXT),
    ("muted", "good-soft", TEXT),
    ("muted", "warn-soft", TEXT),
)
"""Foreground, background and the contrast that they must have at least."""


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (#rrggbb), 1 to 21: WCAG 2.2, "contrast ratio" and "relative luminance"."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def variables(dark: bool) -> str:
    """The colours as CSS custom properties."""
    return "".join(f"--{name}:{values[dark]};" for name, values in COLOURS.items())


def _luminance(colour: str) -> float:
    channels = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
