"""The words of an answer that one change can turn false: numbers, names, negations; and what the passages say there.

Each site becomes a row of features (all in 0 to 1); a logistic model per kind says how likely it was changed
(training.py).  Features compare the site's neighbours in the answer with the neighbours of the same words in the
passages, so that a number or name which the passages do hold, but elsewhere, is seen too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from serin.core.grounding.alignment import MOST_PLACES, Window, best_window
from serin.core.grounding.words import Passage, Word

NEAR = 4
"""Words within which a neighbour is near."""
WIDE = 16
SLOT_WORDS = 3
"""Most words of a passage that stand for one number or run of names of the answer."""

NUMBER_FEATURES = (
    "absent",
    "outside",
    "right_bound",
    "left_bound",
    "unbound",
    "conflict",
    "both_slot",
    "leading",
    "small",
    "spelt",
    "share",
    "absent_share",
    "numbers_free",
    "rival",
    "rival_absent",
    "fits",
    "fits_side",
    "swapped",
    "swapped_side",
    "repeated",
)
NAME_FEATURES = (
    "absent",
    "prefix_only",
    "outside",
    "right_bound",
    "left_bound",
    "unbound",
    "conflict",
    "both_slot",
    "opening",
    "digits",
    "name_run",
    "run_broken",
    "share",
    "absent_share",
    "local_share",
    "names_free",
    "rival",
    "rival_absent",
    "initials",
    "fits",
    "fits_side",
    "swapped",
    "swapped_side",
    "repeated",
)
NEGATION_FEATURES = (
    "near_head",
    "near_head_window",
    "window_negated",
    "skips",
    "head_plain",
    "left_plain",
    "head_absent",
    "self",
    "share",
    "plain_share",
    "context_negated",
    "two",
    "double",
    "of_self",
)
REMOVAL_FEATURES = ("adjacent", "near", "left_fits", "pair_negated", "also_plain", "sentence_negated", "share",
    "adjacent_share", "self", "own_negation_elsewhere", "closed")  # fmt: skip


SITE_FEATURES = {
    "number": NUMBER_FEATURES, "name": NAME_FEATURES, "negation": NEGATION_FEATURES, "removal": REMOVAL_FEATURES
}  # fmt: skip
"""Names of the features by kind of site."""


@dataclass(frozen=True, slots=True)
class Site:
    """One word to be judged."""

    kind: str
    """'number', 'name', 'negation' or 'removal' (a negation of the passages that the answer may lack)."""
    place: int
    """Which word of the answer."""
    features: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of the answer with its best match."""

    words: tuple[Word, ...]
    first: int
    """Place of its first word in the answer."""
    window: Window


def sentences_of(words: Sequence[Word], passages: Sequence[Passage]) -> list[Sentence]:
    """The answer's sentences, each aligned with the passages."""
    groups: dict[int, list[int]] = {}
    for place, word in enumerate(words):
        groups.setdefault(word.sentence, []).append(place)
    found = []
    for places in groups.values():
        chosen = tuple(words[place] for place in places)
        found.append(Sentence(chosen, places[0], best_window(chosen, passages)))
    return found


def abbreviations(words: Sequence[Word]) -> frozenset[str]:
    """Stems of the words that are short for what stands before them: "Department of Homeland Security (DHS)"."""
    found = set()
    for place, word in enumerate(words):
        size = len(word.text)
        if size > 1 and word.text.isupper():
            before = words[max(0, place - 2 * size) : place]
            content = [other for other in before if other.kind != "stop"]
            if any("".join(one.text[0] for one in row[-size:]).upper() == word.text for row in (before, content)):
                found.add(word.stem)
    return frozenset(found)


def sites_of(sentence: Sentence, passages: Sequence[Passage], told: frozenset[str] = frozenset()) -> list[Site]:
    """All sites of a sentence; ``told`` are the answer's ``abbreviations``."""
    sites: list[Site] = []
    removal: Site | None = None
    for place, word in enumerate(sentence.words):
        at = sentence.first + place
        if word.kind == "number":
            sites.append(Site("number", at, _number(sentence, place, passages)))
        elif word.kind == "name" or (word.kind == "word" and place == 0 and word.text[0].isupper()):
            sites.append(Site("name", at, _name(sentence, place, passages, told)))
        elif word.kind == "negation":
            sites.append(Site("negation", at, _negation(sentence, place, passages)))
        if word.kind in ("word", "stop") and (features := _removal(sentence, place, passages)):
            candidate = Site("removal", at, features)
            if removal is None or _strength(candidate) > _strength(removal):
                removal = candidate
    return [*sites, removal] if removal else sites


def _number(sentence: Sentence, place: int, passages: Sequence[Passage]) -> tuple[float, ...]:
    word, share = sentence.words[place], sentence.window.share
    held = [passage.places.get(word.stem, ())[:MOST_PLACES] for passage in passages]
    absent = not any(held)
    left, right = _neighbour(sentence.words, place, -1), _neighbour(sentence.words, place, 1)
    left_bound, right_bound = _bound(held, left, passages, -1), _bound(held, right, passages, 1)
    conflict = _conflict(word.stem, left, right, passages)
    free = _window_free(sentence, passages, "number")
    rival = _rival(sentence, (left, right), passages, "number")
    return (
        float(absent), float(not absent and not _inside(sentence.window, held)), float(right_bound), float(left_bound),
        float(not absent and not left_bound and not right_bound),
        float(conflict > 0 and not (left_bound and right_bound)), float(conflict > 1),
        float(place == 0), float(len(word.stem) == 1), float(not word.text[0].isdigit()),
        share, absent * share, float(free), float(rival), float(rival and absent),
        *_exactly(sentence.words, place, passages, "number"),
    )  # fmt: skip


def _name(sentence: Sentence, place: int, passages: Sequence[Passage], told: frozenset[str]) -> tuple[float, ...]:
    words, share = sentence.words, sentence.window.share
    word = words[place]
    held = [passage.places.get(word.stem, ())[:MOST_PLACES] for passage in passages]
    initials = not any(held) and (word.stem in told or _initials(words, place, passages))
    absent = not any(held) and not initials
    prefix = absent and any(word.stem[:5] in passage.beginnings for passage in passages)
    left, right = _neighbour(words, place, -1), _neighbour(words, place, 1)
    left_bound, right_bound = _bound(held, left, passages, -1), _bound(held, right, passages, 1)
    conflict = _conflict(word.stem, left, right, passages)
    rival = _rival(sentence, (left, right), passages, "name")
    run = [side for side in (place - 1, place + 1) if 0 <= side < len(words) and words[side].kind == "name"]
    joined = [_touching(held, words[side].stem, passages) for side in run]
    return (
        float(absent and not prefix), float(prefix), float(any(held) and not _inside(sentence.window, held)),
        float(right_bound), float(left_bound), float(any(held) and not left_bound and not right_bound),
        float(conflict > 0 and not (left_bound or right_bound)), float(conflict > 1), float(place == 0),
        float(any(map(str.isdigit, word.text))), float(bool(run)), float(bool(run) and not all(joined)),
        share, absent * share, 0.0 if not any(held) else _local_share(sentence, held, passages),
        float(_window_free(sentence, passages, "name")), float(rival), float(rival and absent),
        float(initials), *_exactly(words, place, passages, "name"),
    )  # fmt: skip


def _negation(sentence: Sentence, place: int, passages: Sequence[Passage]) -> tuple[float, ...]:
    words, window = sentence.words, sentence.window
    left, head = _neighbour(words, place, -1), _neighbour(words, place, 1)
    near = near_window = plain = 0
    for number, passage in enumerate(passages):
        for at in passage.places.get(head, ())[:MOST_PLACES] if head else ():
            negated = _negated(passage, at - NEAR - 1, at + 3)
            within = number == window.passage and window.start - 4 <= at < window.end + 4
            near += negated
            near_window += negated and within
            plain += within and not negated
    skips = _follows(words, place, passages)
    own = passages[window.passage] if window.passage >= 0 else None
    window_negated = own is not None and _negated(own, window.start - 3, window.end + 3)
    pair = _plain_pair(left, head, passages)
    negations = sum(word.kind == "negation" for word in words)
    return (
        float(near > 0), float(near_window > 0), float(window_negated), float(skips),
        float(plain > 0 and not near_window),
        float(pair), float(not (near or plain)), float(any(word.kind == "self" for word in words)), window.share,
        window.share * (not window_negated), float(any(passage.negations[-1] for passage in passages)),
        float(negations == 2), float(negations > 2),
        float(any(word.kind == "self" for word in words[max(0, place - 3) : place])),
    )  # fmt: skip


def _strength(site: Site) -> float:
    return sum(site.features[:4]) + 2 * site.features[-1]


def _removal(sentence: Sentence, place: int, passages: Sequence[Passage]) -> tuple[float, ...] | None:
    """None when the passages nowhere negate the word, or the answer does."""
    words, window = sentence.words, sentence.window
    if window.passage < 0 or any(word.kind == "negation" for word in words[max(0, place - NEAR) : place + 2]):
        return None
    passage, stem = passages[window.passage], words[place].stem
    closed = _closed(words, place, passages)
    if words[place].kind == "stop" and not closed:
        return None
    inside = [at for at in passage.places.get(stem, ())[:MOST_PLACES] if window.start <= at < window.end]
    negated = [at for at in inside if _negated(passage, _within(passage, at - NEAR, at), at)]
    if not negated and not closed:
        return None
    adjacent = any(_negated(passage, _within(passage, at - 1, at), at) for at in negated)
    near = any(_negated(passage, _within(passage, at - 2, at), at) for at in negated)
    before = {word.stem for word in words[max(0, place - 2) : place]}
    fits = any(before & set(passage.stems[max(0, at - 4) : at]) for at in negated)
    left = _neighbour(words, place, -1)
    pair = bool(left) and any(left in passage.stems[max(0, at - 8) : at] for at in negated)
    plain = len(negated) < len(inside)
    own = any(word.kind == "negation" for word in words)
    counted = passage.negations[min(window.end + 1, len(passage.stems))] - passage.negations[max(0, window.start - 2)]
    return (
        float(adjacent), float(near), float(fits), float(pair), float(plain), float(counted > 1), window.share,
        adjacent * window.share, float(any(word.kind == "self" for word in words)), float(own), float(closed),
    )  # fmt: skip


def _neighbour(words: Sequence[Word], place: int, step: int) -> str:
    """The next content word on one side within reach; '' when there is none."""
    for distance in range(1, NEAR + 2):
        at = place + step * distance
        if not 0 <= at < len(words):
            return ""
        if words[at].kind in ("word", "name", "number"):
            return words[at].stem
    return ""


def _bound(held: Sequence[Sequence[int]], neighbour: str, passages: Sequence[Passage], side: int) -> bool:
    """Whether the neighbour stands near the word in a passage too; on either side, closer on its own."""
    if not neighbour:
        return False
    for places, passage in zip(held, passages, strict=True):
        others = passage.places.get(neighbour, ())[:MOST_PLACES]
        if others and any(-NEAR <= (other - at) * side <= NEAR + 2 for at in places for other in others):
            return True
    return False


def _conflict(stem: str, left: str, right: str, passages: Sequence[Passage]) -> int:
    """How far the passages hold the neighbours around something else: 2 both sides of one place, 1 one side."""
    level = 0
    for passage in passages:
        lefts = passage.places.get(left, ())[:MOST_PLACES] if left else ()
        rights = passage.places.get(right, ())[:MOST_PLACES] if right else ()
        for at in lefts:
            between = [other for other in rights if 1 < other - at <= NEAR + 2]
            if between and stem not in passage.stems[at : between[0]]:
                return 2
        level = max(level, int(bool(lefts or rights)))
    return level


def _inside(window: Window, held: Sequence[Sequence[int]]) -> bool:
    if window.passage < 0:
        return False
    return any(window.start - WIDE // 2 <= at < window.end + WIDE // 2 for at in held[window.passage])


def _initials(words: Sequence[Word], place: int, passages: Sequence[Passage]) -> bool:
    """Whether the name is one of a run whose initials a passage holds."""
    first = place
    while first > 0 and words[first - 1].text[0].isupper():
        first -= 1
    last = place
    while last + 1 < len(words) and words[last + 1].text[0].isupper():
        last += 1
    run = [other.text[0].casefold() for other in words[first : last + 1]]
    for start in range(place - first + 1):
        for end in range(max(start + 2, place - first + 1), len(run) + 1):
            if any("".join(run[start:end]) in passage.places for passage in passages):
                return True
    return False


def _window_free(sentence: Sentence, passages: Sequence[Passage], kind: Literal["number", "name"]) -> bool:
    """Whether the window holds a number or name that the sentence does not say."""
    window = sentence.window
    if window.passage < 0:
        return False
    said = {word.stem for word in sentence.words}
    marked = _marked(passages[window.passage], kind)
    return any(window.start - 4 <= at < window.end + 4 and value not in said for at, value in marked.items())


def _rival(
    sentence: Sentence, neighbours: Sequence[str], passages: Sequence[Passage], kind: Literal["number", "name"]
) -> bool:
    """Whether the passages hold, beside the word's neighbours, a number or name that the sentence does not say."""
    said = {word.stem for word in sentence.words}
    for passage in passages:
        marked = _marked(passage, kind)
        for neighbour in neighbours:
            for at in passage.places.get(neighbour, ())[:MOST_PLACES] if neighbour else ():
                if any(marked[other] not in said for other in range(at - 3, at + 4) if other in marked):
                    return True
    return False


def _marked(passage: Passage, kind: Literal["number", "name"]) -> dict[int, str]:
    return passage.numbers if kind == "number" else passage.names


def _touching(held: Sequence[Sequence[int]], neighbour: str, passages: Sequence[Passage]) -> bool:
    return any(
        abs(at - other) <= 2
        for places, passage in zip(held, passages, strict=True)
        for at in places
        for other in passage.places.get(neighbour, ())[:MOST_PLACES]
    )


def _local_share(sentence: Sentence, held: Sequence[Sequence[int]], passages: Sequence[Passage]) -> float:
    """Most of the sentence's content words that one occurrence of the word has around it, relative to the window."""
    content = {word.stem for word in sentence.words if word.kind in ("word", "name", "number")}
    best = 0
    for places, passage in zip(held, passages, strict=True):
        for at in places[:12]:
            best = max(best, len(content.intersection(passage.stems[max(0, at - WIDE) : at + WIDE])))
    return min(1.0, best / len(content) / max(sentence.window.share, 1e-9)) if content else 1.0


def _exactly(
    words: Sequence[Word], place: int, passages: Sequence[Passage], kind: Literal["number", "name"]
) -> tuple[float, ...]:
    """Whether the very words around the word (around its run of names) stand around it in a passage, or around another.

    Returns:
        Held on both sides; on one side by two words; another number or name held so on both sides, on one side, where
        the word itself is not; and whether the sentence says the word twice within reach, which no passage does.
    """
    first = last = place
    while kind == "name" and first > 0 and words[first - 1].kind == "name":
        first -= 1
    while kind == "name" and last + 1 < len(words) and words[last + 1].kind == "name":
        last += 1
    before = [word.stem for word in words[max(0, first - 2) : first]]
    after = [word.stem for word in words[last + 1 : last + 3]]
    fits = fits_side = swapped = swapped_side = False
    for passage in passages:
        for start, end, sides in _slots(passage, before, after):
            held = words[place].stem in passage.stems[start:end]
            other = not held and any(at in _marked(passage, kind) for at in range(start, end))
            fits, fits_side = fits or (held and sides > 1), fits_side or held
            swapped, swapped_side = swapped or (other and sides > 1), swapped_side or other
    return (
        float(fits), float(fits_side), float(swapped and not fits), float(swapped_side and not fits_side),
        float(_repeated(words, place, passages)),
    )  # fmt: skip


def _slots(passage: Passage, before: Sequence[str], after: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Stretches of a passage between the same words: start, end, and on how many sides the words are the same."""
    stems, reach = passage.stems, SLOT_WORDS
    if before:
        for at in passage.places.get(before[-1], ())[:MOST_PLACES]:
            if after and after[0] in stems[at + 2 : at + 2 + reach]:
                yield at + 1, stems.index(after[0], at + 2), 2
            if len(before) > 1 and at and stems[at - 1] == before[0]:
                yield at + 1, min(len(stems), at + 1 + reach), 1
    if len(after) > 1:
        for at in passage.places.get(after[0], ())[:MOST_PLACES]:
            if at + 1 < len(stems) and stems[at + 1] == after[1]:
                yield max(0, at - reach), at, 1


def _repeated(words: Sequence[Word], place: int, passages: Sequence[Passage]) -> bool:
    stem = words[place].stem
    if not any(at != place and words[at].stem == stem for at in range(max(0, place - 6), min(len(words), place + 7))):
        return False
    return not any(
        later - earlier <= 8
        for passage in passages
        for earlier, later in pairwise(passage.places.get(stem, ())[:MOST_PLACES])
    )


def _closed(words: Sequence[Word], place: int, passages: Sequence[Passage]) -> bool:
    """Whether the word and the one before it stand together only around a negation in the passages."""
    if not place:
        return False
    pair = (words[place - 1].stem, words[place].stem)
    if not any(pair in passage.bridged for passage in passages):
        return False
    return not any(
        at and passage.stems[at - 1] == pair[0]
        for passage in passages
        for at in passage.places.get(pair[1], ())[:MOST_PLACES]
    )


def _negated(passage: Passage, start: int, end: int) -> bool:
    start, end = max(0, start), min(len(passage.stems), max(0, end))
    return passage.negations[end] > passage.negations[min(start, end)]


def _within(passage: Passage, start: int, at: int) -> int:
    """``start``, or where the sentence of the word at ``at`` begins when that is later."""
    start = max(0, start)
    while passage.sentences[start] != passage.sentences[at]:
        start += 1
    return start


def _follows(words: Sequence[Word], place: int, passages: Sequence[Passage]) -> bool:
    """Whether the words before and after the negation stand side by side in a passage."""
    if not 0 < place < len(words) - 1:
        return False
    before, after = words[place - 1].stem, words[place + 1].stem
    for passage in passages:
        places = passage.places.get(after, ())[:MOST_PLACES]
        if any(at and passage.stems[at - 1] == before for at in places):
            return True
    return False


def _plain_pair(left: str, head: str, passages: Sequence[Passage]) -> bool:
    """Whether the content words on both sides stand near each other in a passage with no negation between."""
    if not left or not head:
        return False
    for passage in passages:
        for at in passage.places.get(left, ())[:MOST_PLACES]:
            for other in passage.places.get(head, ())[:MOST_PLACES]:
                if 0 < other - at <= 6 and not _negated(passage, at - 3, other + 2):
                    return True
    return False
