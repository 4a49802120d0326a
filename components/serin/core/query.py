"""What is searched for in a dialogue: the last user turn, with a fraction of the turns before it.

Joining all turns into one query drowns the last one, and the last one alone says too little where it is a follow-up
("How many teams?").  So the earlier turns are weighted: the first before the last counts for ``EARLIER_WEIGHT`` of it,
and each one before that for half of the one after it.  They do not count at all where the last turn says enough by
itself and is about something else.  Recall at 5 on MTRAG's dev questions (173; hybrid search over 1,200 passages,
``tests/bench/retrieval_followups.py``), where "foreign" puts first questions behind a dialogue about something else:

==================  =====  ==========  ================  =======
query               all    follow-ups  short follow-ups  foreign
==================  =====  ==========  ================  =======
last turn alone     0.732  0.712       0.702             0.870
all turns joined    0.586  0.544       0.571             0.146
last two joined     0.719  0.697       0.679             0.718
weighted, 3 turns   0.744  0.726       0.734             0.874
==================  =====  ==========  ================  =======
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serin.core.embedding import Embedder

if TYPE_CHECKING:
    import numpy as np

EARLIER_WEIGHT = 0.3
"""What the turn before the last one counts for; .2 to .5 differ little."""
DECAY = 0.5
"""What each turn counts for, of the turn after it."""
SHORT_WORDS = 5
"""A turn of so few words is always taken as a follow-up."""
OTHER_SUBJECT = 0.2
"""Cosine to all earlier turns below which a longer turn is taken to be about something else."""
MAX_CACHED = 2048


@dataclass(frozen=True)
class Query:
    """What is searched for."""

    text: str
    """The last user turn."""
    earlier: tuple[str, ...] = ()
    """The user turns before it, the latest first."""


def weights(query: Query, similarity: Sequence[float]) -> list[float]:
    """What each earlier turn counts for; the last turn counts for 1.

    Args:
        query: what is searched for.
        similarity: cosine of each earlier turn to the last one.
    """
    alone = len(query.text.split()) > SHORT_WORDS and max(similarity, default=0.0) < OTHER_SUBJECT
    return [0.0 if alone else EARLIER_WEIGHT * DECAY**turn for turn in range(len(query.earlier))]


class QueryVectors:
    """Embeds queries and remembers the last ones: an earlier turn was once the last one.

    Safe to share between threads.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, query: Query) -> "tuple[np.ndarray, list[float]]":
        """The query as one unit vector, (dimensions,), and the weights of its earlier turns."""
        import numpy as np

        vectors = [self._vector(text) for text in (query.text, *query.earlier)]
        given = weights(query, [float(vectors[0] @ vector) for vector in vectors[1:]])
        if not any(given):
            return vectors[0], given
        mixed = vectors[0] + sum(weight * vector for weight, vector in zip(given, vectors[1:], strict=True))
        return mixed / np.linalg.norm(mixed), given

    def _vector(self, text: str) -> "np.ndarray":
        with self._lock:
            if text in self._known:
                self._known.move_to_end(text)
                return self._known[text]
        vector: np.ndarray = self._embedder.encode([text])[0]  # alone, so that company changes no digit of it
        with self._lock:
            self._known[text] = vector
            while len(self._known) > MAX_CACHED:
                self._known.popitem(last=False)
        return vector
