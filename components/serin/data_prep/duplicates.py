"""Find texts that say the same: exactly (by digest), or nearly (MinHash over word 3-grams).

Near duplicates must also hold the same numbers: two products, or one product at two prices, often differ in nothing
else, and both are facts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from serin.core.digests import digest_of_text

PERMUTATIONS = 128
BANDS = 16
SEED = 42
SHINGLE_WORDS = 3
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Duplicate:
    """A text that repeats an earlier one."""

    of: int
    """Position of the text that is kept."""
    exact: bool


def find_duplicates(texts: Sequence[str], similarity: float, marks: Sequence[str] = ()) -> dict[int, Duplicate]:
    """Positions of texts that repeat an earlier one that is kept; case and punctuation do not count.

    Args:
        texts: in the order of preference.
        similarity: least Jaccard similarity (estimated by 128 permutations) of near duplicates; 1: exact ones only.
        marks: near duplicates must also agree in theirs (a title, say); empty: there are none.
    """
    found: dict[int, Duplicate] = {}
    first: dict[str, int] = {}
    words = [_WORD.findall(text.lower()) for text in texts]
    for i, tokens in enumerate(words):
        kept = first.setdefault(digest_of_text(" ".join(tokens)), i)
        if kept != i:
            found[i] = Duplicate(kept, exact=True)
    if similarity < 1:
        rest = [i for i in range(len(texts)) if i not in found]
        found |= _near(rest, words, marks or [""] * len(texts), similarity)
    return found


def _near(
    positions: list[int], words: list[list[str]], marks: Sequence[str], similarity: float
) -> dict[int, Duplicate]:
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(similarity, PERMUTATIONS, BANDS)
    kept: dict[int, tuple[RMinHash, list[str]]] = {}
    found: dict[int, Duplicate] = {}
    for i in positions:
        sketch = RMinHash(PERMUTATIONS, SEED)
        sketch.update(_shingles(words[i]))
        fixed = [marks[i], *sorted(word for word in words[i] if any(map(str.isdigit, word)))]
        for j in sorted(index.query(sketch)):
            if kept[j][1] == fixed and sketch.jaccard(kept[j][0]) >= similarity:
                found[i] = Duplicate(j, exact=False)
                break
        else:
            index.insert(i, sketch)
            kept[i] = (sketch, fixed)
    return found


def _shingles(words: list[str]) -> list[str]:
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    return [" ".join(words[start : start + SHINGLE_WORDS]) for start in range(last)]
