"""How alike an answer and its references are, whether it is the JSON that was asked for, and which label it names.

ROUGE and chrF are computed here: the libraries for them bring NLTK or lxml, and split words at accents.
"""

import json
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any

from serin.core.text import normalise, words

CHAR_ORDER, BETA = 6, 2
"""Of chrF2, the form that sacreBLEU computes: character n-grams up to six, recall counts twice."""
_FENCE = re.compile(r"^```[a-z]*\s*\n(.*?)\n?```$", re.DOTALL)


def rouge_n(answer: str, reference: str, order: int) -> float:
    """ROUGE-N: F1 of the word n-grams that two texts share (0 to 1), without stemming.

    Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 2, with precision as in its later
    releases.  Words of any script, numbers by value (``core.text.words``).
    """
    return _f1(_grams(words(answer), order), _grams(words(reference), order))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words (0 to 1); Lin 2004, section 3.1."""
    one, other = words(answer), words(reference)
    common = _common_length(one, other)
    return 2 * common / (len(one) + len(other)) if common else 0.0


def chrf(answer: str, reference: str) -> float:
    """chrF2 of a sentence (0 to 1): F2 of mean precision and recall of character n-grams, spaces aside.

    Popovic 2015, https://aclanthology.org/W15-3049; orders that one of the texts is too short for are left out, as in
    sacreBLEU 2 (https://aclanthology.org/W18-6319).
    """
    one, other = ("".join(text.split()) for text in (answer, reference))
    orders = range(1, min(CHAR_ORDER, len(one), len(other)) + 1)
    if not orders:
        return 0.0
    precision = recall = 0.0
    for order in orders:
        common = sum((_grams(one, order) & _grams(other, order)).values())
        precision += common / (len(one) - order + 1)
        recall += common / (len(other) - order + 1)
    precision, recall = precision / len(orders), recall / len(orders)
    weight = BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall) if precision + recall else 0.0


def parsed_json(answer: str) -> tuple[bool, Any]:
    """Whether an answer is one JSON value (within a code fence or not), and the value."""
    text = answer.strip()
    if fenced := _FENCE.match(text):
        text = fenced[1]
    try:
        return True, json.loads(text)
    except ValueError:
        return False, None


def keeps_schema(answer: str, schema: dict[str, Any]) -> bool:
    """Whether an answer is JSON that a JSON Schema allows.

    Raises:
        ValueError: the schema is none.
    """
    is_json, value = parsed_json(answer)
    return is_json and bool(_validator(json.dumps(schema, sort_keys=True)).is_valid(value))


def named_label(answer: str, labels: Sequence[str]) -> str | None:
    """The label that an answer is, or the only one that it names in whole words; None where it names none or several.

    Case, underscores and hyphens do not count; a label within another that is named ("card" in "card arrival") does
    not count as named.
    """
    said = f" {_plain(answer)} "
    by_text = {_plain(label): label for label in labels}
    if exact := by_text.get(said.strip()):
        return exact
    found = [text for text in by_text if text and f" {text} " in said]
    longest = [text for text in found if not any(text != other and f" {text} " in f" {other} " for other in found)]
    return by_text[longest[0]] if len(longest) == 1 else None


@lru_cache(maxsize=16)
def _validator(schema: str) -> Any:
    from jsonschema_rs import validator_for

    return validator_for(json.loads(schema))


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", normalise(text)))


def _grams(items: Sequence[Hashable] | str, order: int) -> Counter[Any]:
    return Counter(tuple(items[start : start + order]) for start in range(len(items) - order + 1))


def _f1(one: Counter[Any], other: Counter[Any]) -> float:
    total = one.total() + other.total()
    return 2 * (one & other).total() / total if total else 0.0


def _common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for place, candidate in enumerate(other, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == candidate else max(above, row[place - 1])
            diagonal = above
    return row[-1]
