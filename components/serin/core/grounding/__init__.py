"""Grounding: how far an answer is supported by the passages that it was given, and which of its facts are not."""

from serin.core.grounding.score import FLAGS, Grounding, ground

__all__ = ["FLAGS", "Grounding", "ground"]
