"""Human review: a blind page of answer pairs, its verdicts read back, and what they say.

The page does not know which answer is the candidate's: sides are dealt by a digest of the review and the item, so that
only who has the evaluation can tell them apart.  A verdict names the digests of both answers that it judged, and counts
only for a release that still gives them.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from serin.core.artifacts import Artifact, ArtifactStore
from serin.core.digests import digest_of
from serin.core.errors import AlreadyExistsError, InputError
from serin.core.journal import Entry
from serin.core.page import stylesheet
from serin.core.records import Record, read_jsonl
from serin.core.storage import Storage
from serin.evaluate.results import Answer
from serin.evaluate.review_page import PAGE, STYLE

Choice = Literal["a", "b", "same", "neither"]
KIND = "review"
METRIC = "human_preference"
SHOWN_PASSAGES = 5


class Verdict(Record):
    """What a reviewer says about one pair."""

    item: str
    choice: Choice
    """Which answer is better; ``same``: both are right; ``neither``: both are wrong."""
    comment: str = Field("", max_length=2000)
    time: str = ""
    """UTC, ISO 8601."""


class Verdicts(Record):
    """The file that the page saves."""

    review: str
    """Id of the review."""
    reviewer: str = Field(min_length=1, max_length=200)
    verdicts: tuple[Verdict, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Pair:
    """Two answers to one question."""

    item: str
    question: str
    passages: tuple[str, ...]
    first: str
    """Shown as answer A."""
    second: str
    candidate_first: bool
    digest: str
    """Of both answers, the candidate's first."""


@dataclass(frozen=True)
class Review:
    """A sample of an evaluation's answers."""

    id: str
    against: str
    """baseline or champion."""
    pairs: tuple[Pair, ...]


def review_of(evaluation: Artifact, number: int, *, seed: int = 0, against: str = "") -> Review:
    """A repeatable sample of the items on which the two answers differ.

    Args:
        evaluation: the artefact.
        number: pairs at most.
        seed: chooses them and deals the sides.
        against: baseline or champion; empty: the champion where there is one.

    Raises:
        InputError: the evaluation has no such answers, or they are all the same.
    """
    roles = [against] if against else ["champion", "baseline"]
    role = next((one for one in roles if f"{one}.jsonl" in evaluation.manifest.files), None)
    if role is None:
        raise InputError(f"The evaluation {evaluation.uri} has no answers of the {' or '.join(roles)}.")
    candidate, other = (_answers(evaluation, one) for one in ("candidate", role))
    differing = [item for item in candidate if item in other and candidate[item].answer != other[item].answer]
    if not differing:
        raise InputError(f"Candidate and {role} answer every question alike: there is nothing to review.")
    identity = digest_of([evaluation.digest, role, seed, number])
    chosen = sorted(differing, key=lambda item: digest_of([seed, item]))[:number]
    return Review(identity, role, tuple(_pair(identity, candidate[item], other[item]) for item in chosen))


def save_review(storage: Storage, evaluation: Artifact, review: Review, number: int, seed: int) -> None:
    """Keep what a review was drawn from, so that its verdicts can be read back."""
    values = {"evaluation": evaluation.uri, "against": review.against, "number": number, "seed": seed}
    with suppress(AlreadyExistsError):
        storage.write(f"reviews/{review.id}.json", json.dumps(values).encode(), if_absent=True)


def load_review(store: ArtifactStore, review_id: str) -> tuple[Review, Artifact]:
    """A review that was exported from this store, and its evaluation.

    Raises:
        InputError: there is none, or its evaluation gives another one now.
    """
    key = f"reviews/{review_id}.json"
    if not re.fullmatch(r"[0-9a-f]{64}", review_id) or not store.storage.exists(key):
        raise InputError(
            f"Review {review_id[:12]!r} was not exported from {store.uri}: 'serin evaluate review' makes one."
        )
    values = json.loads(store.storage.read(key))
    evaluation = store.open(values["evaluation"])
    review = review_of(evaluation, values["number"], seed=values["seed"], against=values["against"])
    if review.id != review_id:
        raise InputError(
            f"The evaluation {evaluation.uri} is not the one that the review was made of: export it again."
        )
    return review, evaluation


def read_verdicts(path: Path) -> Verdicts:
    """The file that a review's page saved.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        return Verdicts.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): name the file that the review page saved."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is no file of verdicts: {where}: {first['msg']}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: name the file that the review page saved.") from error


def evidence_of(verdicts: Verdicts, review: Review) -> dict[str, Any]:
    """What the journal keeps: each verdict as a gain of the candidate, with the digest of what was judged.

    Raises:
        InputError: the verdicts are of another review, name an item that is not in it, or one twice.
    """
    if verdicts.review != review.id:
        raise InputError(
            f"The verdicts are of review {verdicts.review[:12]}, not of {review.id[:12]}: import them into that one."
        )
    pairs = {pair.item: pair for pair in review.pairs}
    counts = Counter(one.item for one in verdicts.verdicts)
    if unknown := [item for item in counts if item not in pairs]:
        raise InputError(f"The verdicts name {unknown[0]!r}, which is not in the review.")
    if twice := [item for item, count in counts.items() if count > 1]:
        raise InputError(f"The verdicts judge {twice[0]!r} twice: keep one.")
    judged = [
        {"item": one.item, "gain": _gain(one.choice, pairs[one.item]), "choice": one.choice, "time": one.time,
         "comment": one.comment, "answers": pairs[one.item].digest}
        for one in verdicts.verdicts
    ]  # fmt: skip
    gains = Counter(_gain(one.choice, pairs[one.item]) for one in verdicts.verdicts)
    return {
        "review": review.id,
        "reviewer": verdicts.reviewer,
        "against": review.against,
        "verdicts": judged,
        "won": gains[1],
        "lost": gains[-1],
        "tied": gains[0],
    }


def preferences(
    entries: Sequence[Entry], candidate: Sequence[Answer], others: Mapping[str, Sequence[Answer]]
) -> tuple[dict[str, dict[str, float]], float | None]:
    """What reviewers prefer, of the answers that the releases give now.

    Args:
        entries: the journal's reviews of the candidate, oldest first; of one reviewer's verdicts on an item the last
            counts.
        candidate: its answers.
        others: role to the answers of the release compared with.

    Returns:
        Role to item to mean gain (-1 to 1) over reviewers, and their agreement (``None`` below two reviewers).
    """
    current = {
        role: {pair.item: pair.digest for pair in _pairs(candidate, answers)} for role, answers in others.items()
    }
    by_item: dict[tuple[str, str], dict[str, int]] = {}
    for entry in entries:
        role = str(entry.evidence.get("against", ""))
        for one in entry.evidence.get("verdicts", ()):
            if current.get(role, {}).get(one["item"]) == one["answers"]:
                by_item.setdefault((role, one["item"]), {})[str(entry.evidence["reviewer"])] = int(one["gain"])
    gains: dict[str, dict[str, float]] = {}
    for (role, item), of_reviewers in by_item.items():
        gains.setdefault(role, {})[item] = sum(of_reviewers.values()) / len(of_reviewers)
    return gains, krippendorff([list(of_reviewers.values()) for of_reviewers in by_item.values()])


def krippendorff(units: Sequence[Sequence[int]]) -> float | None:
    """Krippendorff's alpha for nominal verdicts: 1 for full agreement, 0 for that of chance, below 0 for less.

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C.

    Args:
        units: the verdicts on each item; items with one verdict count for nothing.

    Returns:
        None where no item has two verdicts; 1 where all verdicts are one value.
    """
    total = sum(len(unit) for unit in units if len(unit) > 1)
    if not total:
        return None
    observed = sum(
        sum(one != other for one, other in permutations(unit, 2)) / (len(unit) - 1) for unit in units if len(unit) > 1
    )
    values = Counter(value for unit in units if len(unit) > 1 for value in unit)
    expected = sum(values[one] * values[other] for one, other in permutations(values, 2)) / (total - 1)
    return 1.0 - observed / expected if expected else 1.0


def write_page(path: Path, review: Review) -> None:
    """The review as one HTML page: keys 1 to 4 choose, arrows move, and verdicts survive a closed tab."""
    articles = "".join(_article(number, pair) for number, pair in enumerate(review.pairs, start=1))
    page = (
        PAGE.replace("@STYLE@", stylesheet() + STYLE)
        .replace("@ID@", escape(review.id))
        .replace("@COUNT@", str(len(review.pairs)))
    )
    path.write_text(page.replace("@ARTICLES@", articles), encoding="utf-8")


def _answers(evaluation: Artifact, role: str) -> dict[str, Answer]:
    return {one.id: one for one in read_jsonl(evaluation.path / f"{role}.jsonl", Answer) if one.source == "given"}


def _pairs(candidate: Sequence[Answer], other: Sequence[Answer]) -> list[Pair]:
    others = {one.id: one for one in other if one.source == "given"}
    return [_pair("", one, others[one.id]) for one in candidate if one.source == "given" and one.id in others]


def _pair(identity: str, candidate: Answer, other: Answer) -> Pair:
    first = int(digest_of([identity, candidate.id])[:8], 16) % 2 == 0
    texts = (candidate.answer, other.answer) if first else (other.answer, candidate.answer)
    digest = digest_of([candidate.question, candidate.answer, other.answer])
    return Pair(candidate.id, candidate.question, candidate.passages, *texts, first, digest)


def _gain(choice: Choice, pair: Pair) -> int:
    if choice not in ("a", "b"):
        return 0
    return 1 if (choice == "a") == pair.candidate_first else -1


def _article(number: int, pair: Pair) -> str:
    passages = "".join(f"<li>{escape(text)}</li>" for text in pair.passages[:SHOWN_PASSAGES])
    choices = (("a", "A is better"), ("b", "B is better"), ("same", "Both are right"), ("neither", "Both are wrong"))
    inputs = "".join(
        f'<label><input type="radio" name="choice-{number}" value="{value}"> {key}&nbsp;{text}</label>'
        for key, (value, text) in enumerate(choices, start=1)
    )
    context = f"<details><summary>Passages</summary><ul>{passages}</ul></details>" if passages else ""
    return (
        f'<article id="pair-{number}" data-item="{escape(pair.item)}" tabindex="-1"><h2>Question {number}</h2>'
        f'<p class="question">{escape(pair.question)}</p>{context}<div class="answers">'
        f"<section><h3>A</h3><p>{escape(pair.first) or '(empty)'}</p></section>"
        f"<section><h3>B</h3><p>{escape(pair.second) or '(empty)'}</p></section></div>"
        f"<fieldset><legend>Which answer is better?</legend>{inputs}</fieldset>"
        f'<label>Comment <input type="text" class="comment" maxlength="2000"></label></article>'
    )
