"""Which language a text is in."""

from functools import lru_cache
from typing import Any

DEFAULT_THRESHOLD = 0.9
"""Confidence from which a language is taken as known."""
MIN_LETTERS = 4
"""Fewer letters than this say nothing (a script of one language aside)."""
MAX_CHARS = 400


def detect(text: str) -> tuple[str, float]:
    """ISO 639-1 code and confidence in [0, 1]; ('und', 0.0) where a text is too short to tell.

    py3langid (97 languages) judges the first 400 characters.  Its confidence is scaled down for short texts, where
    it is sure too early.
    """
    sample = text[:MAX_CHARS].strip()
    letters = sum(letter.isalpha() for letter in sample)
    wide = sum(letter > "\u0e00" for letter in sample)  # Thai, Chinese, Korean: much is said in a few letters
    if letters + 2 * wide < MIN_LETTERS:
        return "und", 0.0
    code, confidence = _identifier().classify(sample)
    return str(code), float(confidence) * min(1.0, (letters + 5 * wide) / 20 + 0.5)


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
