"""The language of a text, by py3langid (97 languages, offline)."""

from functools import cached_property
from typing import Any

MIN_CHARS = 20
MAX_CHARS = 1000
MIN_PROBABILITY = 0.9


class LanguageDetector:
    """Says the language, or the default where a text is too short or too mixed to tell.

    Args:
        default: ISO 639-1.
    """

    def __init__(self, default: str) -> None:
        self._default = default

    def detect(self, text: str) -> str:
        """ISO 639-1 of a text, judged by its first 1,000 characters."""
        sample = text[:MAX_CHARS]
        if len(sample) < MIN_CHARS:
            return self._default
        language, probability = self._identifier.classify(sample)
        return str(language) if probability >= MIN_PROBABILITY and len(language) == 2 else self._default

    @cached_property
    def _identifier(self) -> Any:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
