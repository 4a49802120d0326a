"""Claims for the reader: sentences of public texts, true or made false, with the evidence that each is read beside.

Texts: MedQuAD's answers, Kubeflow's documentation, XQuAD's English paragraphs with their questions, ABCD's guidelines,
and passages of MTRAG that no task needs.  A text that shares eight words in a row with what the score is judged on is
left out.
"""

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from serin.core.grounding.evidence import CAPITAL, SENTENCE, Pieces, context_of, evidence_for, marked_pieces
from serin.core.grounding.reader import CLAIM_PIECES
from serin.core.grounding.training.changes import _NAME, _NUMBER, change, names_in

SUPPORTED, UNSUPPORTED, FALSE = range(3)
SOURCES = {"medquad": 0.22, "kubeflow": 0.13, "xquad": 0.22, "abcd": 0.03, "mtrag": 0.40}
QUESTION_FRACTION = 0.15
WAYS = {"true": 36, "changed": 36, "content": 6, "swapped": 4, "gone": 8, "other": 4, "half": 6}
CHANGES = {"number": 3, "name": 4, "negation": 2, "removal": 2}
CHANGE_TRIES = 25
SHARED_WORDS = 8

_DROPPED = frozenset(
    ["the", "a", "an", "also", "very", "was", "however", "such", "these", "that", "which", "then", "some"]
)
_OPENINGS = (
    "Yes, ", "yes, ", "Sure. ", "According to the documents, ", "No, ", "yeah, ", "I think ", "well, ", "I agree, ",
    "Did you know that ", "it's interesting that ", "oh, ", "yes, i heard that ", "That's true, ",
)  # fmt: skip
_PRONOUNS = ("it", "he", "she", "they", "It", "They")
_COMMON = frozenset(
    [
        "the",
        "and",
        "for",
        "with",
        "that",
        "this",
        "from",
        "they",
        "have",
        "will",
        "your",
        "can",
        "are",
        "was",
        "were",
        "been",
        "their",
        "there",
        "which",
        "when",
        "what",
        "where",
        "who",
        "also",
        "into",
        "more",
        "than",
        "other",
        "some",
        "such",
        "these",
        "those",
        "may",
        "not",
        "but",
        "has",
        "had",
        "its",
        "about",
        "most",
        "many",
    ]
)
_WORD = re.compile(r"[A-Za-z][\w'-]*")


@dataclass(frozen=True)
class Claim:
    """A sentence and its evidence in word pieces."""

    pieces: Pieces
    labels: tuple[int, ...]
    """Of each piece: ``SUPPORTED``, ``UNSUPPORTED`` or ``FALSE``."""
    evidence: Pieces
    kind: str
    """How it was made."""


@dataclass(frozen=True)
class Draft:
    """A claim as text."""

    text: str
    context: tuple[str, ...]
    kind: str
    marked: tuple[tuple[int, int, int], ...] = ()
    """Start, end and label of what is not ``otherwise``."""
    otherwise: int = SUPPORTED


@dataclass(frozen=True)
class Texts:
    """What claims are made of."""

    by_source: dict[str, list[str]]
    questions: list[tuple[str, str, list[str]]]
    """XQuAD's: paragraph, question, and the answers of all questions on the paragraph, its own first."""
    names: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)


def claims(data: Path, count: int, seed: int) -> list[Claim]:
    """That many claims.

    Args:
        data: folder of the public sets.
        count: how many.
        seed: of all chance.
    """
    texts, rng = read_texts(data), random.Random(seed)  # noqa: S311
    found: list[Claim] = []
    while len(found) < count:
        draft = _asked(texts, rng) if rng.random() < QUESTION_FRACTION else _stated(texts, rng)
        if draft is not None and (claim := _claim(draft, rng)):
            found.append(claim)
    return found


def read_texts(data: Path) -> Texts:
    """The public texts, without those that the score's tests hold."""
    judged = _judged_runs(data)
    paragraphs = list(_rows(data / "xquad_multilingual" / "xquad.en.jsonl.gz"))
    sources = {
        "medquad": _medquad(data), "kubeflow": _kubeflow(data), "xquad": [row["text"] for row in paragraphs],
        "abcd": [row["text"] for row in _rows(data / "abcd_retail_guidelines" / "policy_docs.jsonl")],
        "mtrag": sorted(row["text"] for row in _rows(data / "mtrag_rag" / "corpus.jsonl.gz")),
    }  # fmt: skip
    kept = {name: [text for text in found if judged.isdisjoint(_runs(text))] for name, found in sources.items()}
    kept["mtrag"] = [text for text in kept["mtrag"] if len(text.split()) > 50]
    known, every = set(kept["xquad"]), [text for found in kept.values() for text in found]
    questions = []
    for row in paragraphs:
        answers = [asked["answer"] for asked in row["qas"]]
        if row["text"] in known:
            questions += [(row["text"], asked["q"].strip(), [asked["answer"], *answers]) for asked in row["qas"]]
    names = sorted({name for text in every[::3] for name in names_in(text)})
    return Texts(kept, questions, names, [sentence for text in every[::5] for sentence in _good_sentences(text)])


def _judged_runs(data: Path) -> set[tuple[str, ...]]:
    """Runs of words of BEGIN's knowledge and of the passages and answers of MTRAG's tasks."""
    merged = json.loads((data / "mtrag_rag" / "duplicate_doc_ids.json").read_text())
    tasks = list(_rows(data / "mtrag_rag" / "dev" / "rag_tasks.jsonl.gz"))
    needed = {merged.get(name, name) for task in tasks for name in task["gold_doc_ids"]}
    texts = [row["text"] for row in _rows(data / "mtrag_rag" / "corpus.jsonl.gz") if row["doc_id"] in needed]
    texts += [task["reference_answer"] for task in tasks]
    for path in sorted((data / "begin_groundedness" / "dev").glob("*.jsonl.gz")):
        texts += [row["knowledge"] for row in _rows(path)]
    return {run for text in texts for run in _runs(text)}


def _runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + SHARED_WORDS]) for at in range(len(words) - SHARED_WORDS + 1)}


def _medquad(data: Path) -> list[str]:
    rows = _rows(data / "medquad_nih_faq" / "qa_pairs.jsonl.gz")
    found = sorted({row["answer"] for row in rows if 60 < len(row["answer"].split()) < 600})
    random.Random(0).shuffle(found)  # noqa: S311
    return found[:2500]


def _kubeflow(data: Path) -> list[str]:
    pages = sorted({row["text"] for row in _rows(data / "kubeflow_docs_history" / "dev" / "blobs.jsonl.gz")})
    random.Random(0).shuffle(pages)  # noqa: S311
    found = []
    for page in pages[:250]:
        plain = re.sub(r"(?s)^(\+\+\+|---).*?(\+\+\+|---)\n|```.*?```", "", page)
        plain = re.sub(r"\{\{.*?\}\}|\[([^\]]*)\]\([^)]*\)", r"\1", plain)
        found += [part.strip() for part in re.split(r"\n#+ .*\n", plain) if 50 < len(part.split()) < 400]
    return found


def _asked(texts: Texts, rng: random.Random) -> Draft | None:
    """A question with its answer, or with that of another question on the paragraph."""
    paragraph, question, (answer, *others) = rng.choice(texts.questions)
    asked = question.rstrip("?") + rng.choice(["? ", " ", ": "])
    if rng.random() < 0.45:
        return Draft(asked + answer, (paragraph,), "answered")
    own = set(answer.lower().split())
    wrong = [other for other in others if not own & set(other.lower().split())]
    alike = [other for other in wrong if bool(re.search(r"\d", other)) == bool(re.search(r"\d", answer))]
    if not wrong:
        return None
    new = rng.choice(alike or wrong)
    return Draft(asked + new, (paragraph,), "answered_falsely", ((len(asked), len(asked + new), FALSE),))


def _stated(texts: Texts, rng: random.Random) -> Draft | None:
    """A sentence of a text, reworded, and perhaps made false."""
    way = rng.choices(list(WAYS), list(WAYS.values()))[0]
    kind = rng.choices(list(CHANGES), list(CHANGES.values()))[0]
    for _ in range(CHANGE_TRIES):
        source = rng.choices(list(SOURCES), list(SOURCES.values()))[0]
        text = rng.choice(texts.by_source[source])
        sentences = _good_sentences(text)
        if len(sentences) < 2:
            continue
        at = rng.randrange(len(sentences))
        said = _reworded(sentences[at], rng)
        if len(said.split()) < 4:
            continue
        if rng.random() < 0.12 and at + 1 < len(sentences):
            said = said.rstrip(".") + rng.choice([" and ", "; ", ", "]) + _reworded(sentences[at + 1], rng)
        others = rng.sample(texts.by_source[source], rng.choice([1, 2])) if rng.random() < 0.4 else []
        true = Draft(said, (text, *others), "true")
        made = _changed(true, kind, texts, rng) if way == "changed" else _MADE[way](true, sentences[at], texts, rng)
        if made is not None:
            return _opened(made, rng) if rng.random() < 0.12 else made
    return None


def _as_it_is(draft: Draft, original: str, texts: Texts, rng: random.Random) -> Draft | None:
    return draft


def _changed(draft: Draft, kind: str, texts: Texts, rng: random.Random) -> Draft | None:
    """A number, name or negation changed."""
    changed = change(kind, draft.text, "\n".join(draft.context), texts.names, rng)
    if changed is None:
        return None
    marked = [(changed.start, changed.end, FALSE)]
    if kind == "removal":  # the words on both sides of the gap
        after = re.compile(r"\w+").search(changed.text, changed.start)
        before = list(re.finditer(r"\w+", changed.text[: changed.start]))[-1:]
        marked = [(*match.span(), FALSE) for match in [after, *before] if match]
    return replace(draft, text=changed.text, kind=kind, marked=tuple(marked))


def _with_another_word(draft: Draft, original: str, texts: Texts, rng: random.Random) -> Draft | None:
    """A content word replaced by another of the text."""
    said, text = draft.text, draft.context[0]
    found = [match for match in _WORD.finditer(said) if _is_content(match[0])]
    if len(found) < 3:
        return None
    match = rng.choice(found)
    start = match[0].lower()[:4]
    others = [word for word in _WORD.findall(text) if _is_content(word) and word.lower()[:4] != start]
    if not others:
        return None
    new = rng.choice(others)
    marked = ((match.start(), match.start() + len(new), FALSE),)
    return replace(draft, text=said[: match.start()] + new + said[match.end() :], kind="content", marked=marked)


def _is_content(word: str) -> bool:
    return len(word) > 3 and word.lower() not in _COMMON


def _swapped(draft: Draft, original: str, texts: Texts, rng: random.Random) -> Draft | None:
    """Two numbers or two names in each other's place."""
    said = draft.text
    for pattern in rng.sample([_NUMBER, _NAME], 2):
        found = list(pattern.finditer(said))
        if len(found) < 2:
            continue
        one, two = sorted(rng.sample(found, 2), key=lambda match: match.start())
        if one[0] != two[0]:
            text = said[: one.start()] + two[0] + said[one.end() : two.start()] + one[0] + said[two.end() :]
            second = two.start() + len(two[0]) - len(one[0])
            marked = ((one.start(), one.start() + len(two[0]), FALSE), (second, second + len(one[0]), FALSE))
            return replace(draft, text=text, kind="swapped", marked=marked)
    return None


def _without_its_sentence(draft: Draft, original: str, texts: Texts, rng: random.Random) -> Draft | None:
    context = (draft.context[0].replace(original, " "), *draft.context[1:])
    return replace(draft, context=context, kind="gone", otherwise=UNSUPPORTED)


def _of_another_text(draft: Draft, original: str, texts: Texts, rng: random.Random) -> Draft | None:
    other = rng.choice(texts.sentences)
    if other in draft.context[0]:
        return None
    return replace(draft, text=_reworded(other, rng), kind="other", otherwise=UNSUPPORTED)


def _half_of_another(draft: Draft, original: str, texts: Texts, rng: random.Random) -> Draft | None:
    """A true sentence that goes on with what the passages do not say."""
    inside = rng.random() < 0.5
    other = rng.choice(_good_sentences(draft.context[0]) if inside else texts.sentences)
    if other == original:
        return None
    added = other.rstrip(".").split(", ")[-1] if rng.random() < 0.5 else _reworded(other, rng)
    head = draft.text.rstrip(".") + rng.choice([", ", " and ", ". ", "; "])
    context = (draft.context[0].replace(other, " "), *draft.context[1:])
    marked = ((len(head), len(head + added), UNSUPPORTED),)
    return replace(draft, text=head + added, context=context, kind="half", marked=marked)


_MADE: dict[str, Callable[[Draft, str, Texts, random.Random], Draft | None]] = {
    "true": _as_it_is, "content": _with_another_word, "swapped": _swapped, "gone": _without_its_sentence,
    "other": _of_another_text, "half": _half_of_another,
}  # fmt: skip


def _opened(draft: Draft, rng: random.Random) -> Draft:
    """With what conversation puts before a fact."""
    opening = rng.choice(_OPENINGS)
    moved = [(start + len(opening), end + len(opening), label) for start, end, label in draft.marked]
    if draft.otherwise:
        moved.append((0, len(opening), SUPPORTED))
    return replace(draft, text=opening + draft.text, marked=tuple(moved))


def _reworded(sentence: str, rng: random.Random) -> str:
    """The sentence with parts and small words left out, cut short, or begun with a pronoun."""
    parts = sentence.split(", ")
    if len(parts) > 2 and rng.random() < 0.4:
        del parts[rng.randrange(1, len(parts))]
    elif len(parts) > 1 and rng.random() < 0.25 and len(parts[0].split()) > 4:
        parts = parts[:1]
    words = ", ".join(parts).split()
    if rng.random() < 0.5:
        words = [word for word in words if word.lower() not in _DROPPED or rng.random() < 0.5]
    if len(words) > 12 and rng.random() < 0.2:
        words = words[: rng.randrange(8, len(words))]
    if len(words) > 10 and rng.random() < 0.12:
        words = words[rng.randrange(1, 4) :]
    if words and rng.random() < 0.15 and words[0][0].isupper():
        names = 1
        while names < min(4, len(words)) and words[names][:1].isupper():
            names += 1
        if names < len(words) - 3:
            words = [rng.choice(_PRONOUNS), *words[names:]]
    return " ".join(words)


def _claim(draft: Draft, rng: random.Random) -> Claim | None:
    """In word pieces, some without capitals; None when it is too long, or its change is lost."""
    pieces, spans = marked_pieces(draft.text)
    labels = [draft.otherwise] * len(pieces)
    for start, end, label in draft.marked:
        labels = [label if a < end and b > start else old for (a, b), old in zip(spans, labels, strict=True)]
    if not 4 <= len(pieces) <= CLAIM_PIECES or (any(m[2] == FALSE for m in draft.marked) and FALSE not in labels):
        return None
    evidence = evidence_for(pieces, context_of(draft.context))
    lowered = rng.random()
    if lowered < 0.3:
        pieces = _lower(pieces)
    if lowered < 0.2:
        evidence = _lower(evidence)
    return Claim(pieces, tuple(labels), evidence, draft.kind)


def _lower(pieces: Pieces) -> Pieces:
    return tuple(piece & ~CAPITAL for piece in pieces)


def _good_sentences(text: str) -> list[str]:
    return [part.strip() for part in SENTENCE.split(text) if 5 <= len(part.split()) <= 45]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def kinds_of(found: Sequence[Claim]) -> dict[str, int]:
    """How many claims of each kind."""
    return {kind: sum(claim.kind == kind for claim in found) for kind in sorted({claim.kind for claim in found})}
