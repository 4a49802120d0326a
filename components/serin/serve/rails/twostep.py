"""Judging a text in two steps: MiniLM's first attention for every text, all layers for what the first suspects.

A text is judged sentence by sentence, each as if it were a turn of its own, and in wide windows that hold what several
sentences say together.  Both steps are linear: a row of weights over the mean and the maximum of the word pieces, as a
layer gives them.  MiniLM itself stays as it came.  A network with more freedom learned the training's kinds of attacks
better, and unseen kinds far worse (RAILS.md).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from serin.core.transformer import Array, Weights
from serin.serve.rails import minilm
from serin.serve.rails.encoder import NOTHING, WINDOW, pieces, starts
from serin.serve.rails.normal import readings
from serin.serve.rails.sentences import sentences

MAX_PIECES = 24_000
"""Word pieces of one reading that are judged; of a longer text evenly spaced sentences."""
MAX_DEEP = 8
"""Parts of a text that the second step judges: the ones that the first suspects most."""
LAST = (4, 5, 6)
"""Layers whose outputs the second step sees."""
UNSUSPECTED = -3.0
"""Logit at the most of a part that the second step does not see."""


@dataclass
class Reading:
    """Parts of all readings of a text, and what MiniLM says about each; one rail's work serves the next."""

    parts: list[Sequence[int]]
    first: Array
    """(parts, 768)."""
    pieces: int
    """Of the longest reading."""
    _deep: dict[int, Array] = field(default_factory=dict)

    def deep(self, indices: Sequence[int]) -> Array:
        """(indices, 2304): the second step's view of some parts."""
        missing = [i for i in indices if i not in self._deep]
        if missing:
            self._deep.update(zip(missing, minilm.pooled([self.parts[i] for i in missing], LAST), strict=True))
        return np.stack([self._deep[i] for i in indices])


def logit(text: str, weights: Weights) -> float:
    """The highest logit of a text's parts; over 0 is over the threshold, ``NOTHING`` for a text without a word.

    Args:
        weights: ``first.w`` (768,), ``first.b`` (1,) with the gate in it; ``last.w`` (2304,), ``last.b`` (1,) with the
            calibrated threshold in it; ``length`` (1,), what is taken off for each factor e by which the unsuspected
            part of a text is longer than a window: the highest of many parts is high by chance.
    """
    return judge(read(text), weights)


def judge(reading: Reading, weights: Weights) -> float:
    """``logit`` of a text that was read before."""
    if not reading.parts:
        return NOTHING
    first = _first(reading, weights)
    suspects = [int(i) for i in np.argsort(-first)[:MAX_DEEP] if first[i] > 0]
    if not suspects:
        return min(float(first.max()), 0.0) + UNSUSPECTED
    highest = float((reading.deep(suspects) @ weights["last.w"] + weights["last.b"][0]).max())
    return highest - float(weights["length"][0]) * excess(reading, weights)


def excess(reading: Reading, weights: Weights) -> float:
    """Logarithm of how many times longer than a window the text is that the first step does not suspect, at least 0."""
    unsuspected = reading.pieces * float((_first(reading, weights) <= 0).mean())
    return math.log(max(1.0, unsuspected / WINDOW))


def judge_first(reading: Reading, weights: Weights) -> float:
    """The first step's highest logit; over 0 goes on to the second."""
    return float(_first(reading, weights).max(initial=NOTHING))


def _first(reading: Reading, weights: Weights) -> Array:
    found: Array = reading.first @ weights["first.w"] + weights["first.b"][0]
    return found


def read(text: str) -> Reading:
    """What the first step sees of a text, in all its readings (``rails.normal``)."""
    parts: list[Sequence[int]] = []
    seen: list[Array] = []
    longest = 0
    for reading in readings(text):
        rows = rows_of(reading)
        if not rows:
            continue
        whole = [piece for row in rows for piece in row]
        longest = max(longest, len(whole))
        hidden = np.concatenate(minilm.attended(rows))  # (pieces, 384)
        for start, end in spans(list(map(len, rows))):
            parts.append(whole[start:end])
            seen.append(minilm.pool(hidden[start:end]))
    return Reading(parts, np.stack(seen) if seen else np.empty((0, 2 * minilm.WIDTH), dtype=np.float32), longest)


def rows_of(reading: str) -> list[Sequence[int]]:
    """Word pieces of each sentence; of one that is longer than a window, of its pieces."""
    rows: list[Sequence[int]] = [
        ids[at : at + WINDOW] for one in sentences(reading) if (ids := pieces(one)) for at in range(0, len(ids), WINDOW)
    ]
    total = sum(map(len, rows))
    return rows if total <= MAX_PIECES else rows[:: -(-total // MAX_PIECES)]


def spans(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Where the parts of a text begin and end: each row (a sentence) by itself, then windows that hold them all."""
    ends = np.cumsum(lengths, dtype=int).tolist()
    if len(ends) == 1:
        return [(0, ends[0])]
    wide = [(start, min(start + WINDOW, ends[-1])) for start in starts(ends[-1])]
    return [*zip([0, *ends], ends, strict=False), *wide]
