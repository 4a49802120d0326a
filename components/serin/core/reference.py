"""What a release did under evaluation, item by item: the yardstick that monitoring holds its traffic against.

An evaluation artefact holds one record for each release that it measured, in ``reference.jsonl``.
"""

from serin.core.records import Record

REFERENCE_FILE = "reference.jsonl"


class Reference(Record):
    """One release's values under evaluation."""

    release_id: str
    source: str
    """``retrieved``: with passages from the release's index, as at the endpoint; ``given``: with the passages that
    came with the conversations."""
    support_scores: tuple[float, ...] = ()
    """Of the answers that had passages."""
    refused: tuple[bool, ...] = ()
    top_scores: tuple[float, ...] = ()
    """Cosine similarity of the best passage, 0 where none was found; none with given passages."""
