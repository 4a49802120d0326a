"""Preferences: which of two answers to a question is the better one, from a dataset or from an endpoint's feedback.

A dataset artefact holds them as ``preferences.jsonl``, one ``Preference`` a line.  ``preferences_from_events`` makes
them from what people said about an endpoint's answers: two answers to the same question, of which one was liked and
the other disliked.  It reads the text as the endpoint's policy let it be stored, and leaves out what was masked.
"""

import logging
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from serin.core.artifacts import Artifact, Built
from serin.core.context import StageContext
from serin.core.digests import digest_of, digest_of_text
from serin.core.errors import InputError
from serin.core.events import EndpointEvent
from serin.core.prompts import Prompt, render
from serin.core.records import Conversation, Message, Record, read_jsonl, write_jsonl
from serin.core.retrieval import ACCESS, TABLE
from serin.finetune.data import Pair, Sample, encode_messages, shorter_and_shorter

logger = logging.getLogger(__name__)

PREFERENCES = "preferences.jsonl"
PAIRS_PER_QUESTION = 4
HELD_OUT = 10
"""Every tenth question, by its digest, is kept for validation."""
_MASK = re.compile(r"<[A-Z][A-Z_]+>")
LIKED, DISLIKED = 1, -1


class Preference(Record):
    """Two answers to one dialogue."""

    id: str
    messages: tuple[Message, ...]
    """The dialogue up to and including the user's question."""
    chosen: str
    """The better answer."""
    rejected: str
    """The worse one."""
    context: tuple[str, ...] = ()
    """Passages that both answers had; best first."""
    language: str = "en"
    """ISO 639-1."""
    metadata: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _two_answers(self) -> "Preference":
        if not self.messages or self.messages[-1].role != "user":
            raise ValueError("messages must end with the user's question")
        if not self.chosen.strip() or not self.rejected.strip():
            raise ValueError("chosen and rejected must both hold an answer")
        if self.chosen.strip() == self.rejected.strip():
            raise ValueError("chosen and rejected are the same answer")
        return self

    @property
    def is_held_out(self) -> bool:
        """Whether it is for validation; all pairs of a question are on the same side."""
        return int(digest_of_text(_question_key(self.messages[-1].content))[:8], 16) % HELD_OUT == 0

    def conversation(self, answer: str) -> Conversation:
        """The dialogue with one of its answers."""
        messages = (*self.messages, Message(role="assistant", content=answer))
        return Conversation(id=self.id, messages=messages, context=self.context, language=self.language)


@dataclass(frozen=True)
class FeedbackPairs:
    """Pairs made from an endpoint's events, and what became of every event."""

    preferences: list[Preference]
    num_events: int
    num_used: int
    """Events that are in a pair."""
    unused: dict[str, int] = field(default_factory=dict)
    """Why the others are not: reason to number of events."""

    def summary(self) -> dict[str, Any]:
        """The numbers, as JSON values."""
        counts = {"pairs": len(self.preferences), "events": self.num_events, "used": self.num_used}
        return {**counts, "unused": dict(self.unused)}

    def require(self) -> "FeedbackPairs":
        """Itself, when there is a pair.

        Raises:
            InputError: saying why there is none.
        """
        if not self.preferences:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.unused.items()) or "there are none"
            raise InputError(
                f"None of {self.num_events} events makes a pair ({reasons}): collect likes and dislikes of answers to "
                "the same questions, with a guardrail policy that keeps their text."
            )
        return self


def preferences_from_events(
    events: Iterable[EndpointEvent], passages: Mapping[str, str] | None = None
) -> FeedbackPairs:
    """Pairs of a liked and a disliked answer to the same question.

    Args:
        events: an endpoint's events (``serin.core.events.read_events``).
        passages: text of each retrieved chunk by its id; with it, a pair gets the liked answer's passages, and events
            whose passages are not in it are left out.  None: pairs have no passages, which suits an endpoint without
            retrieval.

    Returns:
        At most four pairs a question, the newest first, so that no question outweighs the others.
    """
    every = sorted(events, key=lambda event: (event.time, event.trace_id))
    reasons: Counter[str] = Counter()
    rated: dict[str, dict[int, dict[str, EndpointEvent]]] = defaultdict(lambda: {LIKED: {}, DISLIKED: {}})
    counted: Counter[tuple[str, str]] = Counter()
    for event in every:
        if reason := _unusable(event, passages):
            reasons[reason] += 1
            continue
        key, answer = _question_key(event.question), event.answer.strip()
        counted[key, answer] += 1
        rated[key][event.feedback or 0][answer] = event  # the newest of equal answers
    preferences: list[Preference] = []
    used: set[tuple[str, str]] = set()
    for key, by_feedback in rated.items():
        pairs, reason = _pairs_of(by_feedback[LIKED], by_feedback[DISLIKED])
        taken = {event.answer.strip() for pair in pairs for event in pair}
        preferences += [_preference(liked, disliked, passages) for liked, disliked in pairs]
        used |= {(key, answer) for answer in taken}
        for answer in {**by_feedback[LIKED], **by_feedback[DISLIKED]}:
            if answer not in taken:
                reasons[reason] += counted[key, answer]
    num_used = sum(counted[pair] for pair in used)
    return FeedbackPairs(preferences, len(every), num_used, dict(reasons.most_common()))


def passages_of(indexes: Iterable[Artifact]) -> dict[str, str]:
    """Text of every chunk of some indexes by its id; of two with one id the later index counts.

    Chunks that only some may read are left out: what a model is trained on, everybody who asks it may get to read.

    Raises:
        InputError: an artefact is no index.
    """
    import lancedb

    passages: dict[str, str] = {}
    for index in indexes:
        try:
            table = lancedb.connect(index.path).open_table(TABLE)
        except ValueError as error:
            raise InputError(f"{index.uri} is no index: give the URI that 'serin index' prints.") from error
        restrictable = [ACCESS] if ACCESS in table.schema.names else []
        rows = table.search().select(["chunk_id", "text", *restrictable]).to_arrow().to_pylist()
        passages |= {row["chunk_id"]: row["text"] for row in rows if not row.get(ACCESS)}
    return passages


def dataset_with_feedback(dataset: Artifact, feedback: FeedbackPairs, context: StageContext) -> Artifact:
    """A dataset with pairs from feedback added to its preferences; of two with one id the new one counts.

    Raises:
        InputError: there is no pair, saying why.
    """
    feedback.require()
    known = dataset.path / PREFERENCES
    every = {pair.id: pair for pair in (read_jsonl(known, Preference) if known.is_file() else [])}
    every |= {pair.id: pair for pair in feedback.preferences}
    rows = [pair.model_dump(mode="json") for pair in every.values()]

    def build(output: Path, scratch: Path) -> Built:
        for name in dataset.manifest.files:
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(dataset.path / name, output / name)
        write_jsonl(output / PREFERENCES, every.values())
        return Built(metadata={**dataset.metadata, "preferences": len(every), "feedback": feedback.summary()})

    return context.produce("dataset", build, inputs={"dataset": dataset, "preferences": digest_of(rows)}, config={})


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs of samples, and how many preferences had to give something up."""

    pairs: list[Pair]
    num_shortened: int = 0
    """Both answers lost the same context or early turns to fit."""
    num_left_out: int = 0
    """The question with one of its answers is too long."""


def encode_preferences(
    tokenizer: Any, preferences: Iterable[Preference], prompt: Prompt, max_length: int
) -> EncodedPairs:
    """Preferences as pairs of samples: the same prompt twice, and the loss on the last answer only.

    Raises:
        InputError: the chat template cannot render the dialogue.
    """
    pairs: list[Pair] = []
    shortened = left_out = 0
    for preference in preferences:
        pair, was_shortened = _fitted(tokenizer, preference, prompt, max_length)
        if pair is None:
            left_out += 1
        else:
            shortened += was_shortened
            pairs.append(pair)
    if left_out:
        logger.warning("%d pairs are longer than %d tokens without context: left out.", left_out, max_length)
    return EncodedPairs(pairs, shortened, left_out)


def load_preferences(folder: Path) -> tuple[list[Preference], list[Preference]]:
    """A dataset's preferences for training and for validation.

    Raises:
        InputError: there is no ``preferences.jsonl``, it is empty, or a line is not a preference.
    """
    path = folder / PREFERENCES
    if not path.is_file():
        raise InputError(
            f"The objective dpo needs {PREFERENCES} in the dataset, which has none: make one from feedback, or write "
            "one line a pair with messages, chosen and rejected."
        )
    every = read_jsonl(path, Preference)
    held_out = [preference for preference in every if preference.is_held_out]
    train = [preference for preference in every if not preference.is_held_out]
    if not every:
        raise InputError(f"The dataset's {PREFERENCES} is empty: write one line a pair, or use the objective sft.")
    return (train, held_out) if train else (every, [])


def require_pairs(encoded: EncodedPairs, max_length: int) -> None:
    """Refuse preferences of which none fits.

    Raises:
        InputError: naming the limit.
    """
    if not encoded.pairs:
        raise InputError(
            f"All {encoded.num_left_out} training pairs are longer than max_length={max_length} tokens: raise "
            "finetune.max_length or shorten them."
        )


def _unusable(event: EndpointEvent, passages: Mapping[str, str] | None) -> str:
    """Why an event cannot be one half of a pair; empty when it can."""
    if event.feedback not in (LIKED, DISLIKED):
        return "without a like or a dislike"
    if event.status != 200 or event.finish_reason in ("length", "content_filter"):
        return "failed, blocked or cut short"
    if not event.question.strip() or not event.answer.strip():
        return "without stored text"
    if _MASK.search(event.answer) or any(action.startswith("output:") for action in event.guardrail_actions):
        return "with an answer that was masked"
    if passages is not None and not all(chunk in passages for chunk in event.retrieval_ids):
        return "with passages that are no longer known"
    return ""


def _pairs_of(
    liked: Mapping[str, EndpointEvent], disliked: Mapping[str, EndpointEvent]
) -> tuple[list[tuple[EndpointEvent, EndpointEvent]], str]:
    """The pairs of one question, and why its other answers are in none."""
    if not liked or not disliked:
        return [], "without an answer of the opposite rating"
    good = [event for answer, event in reversed([*liked.items()]) if answer not in disliked]
    bad = [event for answer, event in reversed([*disliked.items()]) if answer not in liked]
    if not good or not bad:
        return [], "with an answer that was both liked and disliked"
    number = min(PAIRS_PER_QUESTION, max(len(good), len(bad)))
    return [(good[i % len(good)], bad[i % len(bad)]) for i in range(number)], "beyond the pairs of one question"


def _preference(liked: EndpointEvent, disliked: EndpointEvent, passages: Mapping[str, str] | None) -> Preference:
    return Preference(
        id=f"feedback-{liked.trace_id[:12]}-{disliked.trace_id[:12]}",
        messages=(Message(role="user", content=liked.question),),
        chosen=liked.answer,
        rejected=disliked.answer,
        context=tuple(passages[chunk] for chunk in liked.retrieval_ids) if passages is not None else (),
        language=liked.language or "en",
        metadata={"liked_release": liked.release_id, "disliked_release": disliked.release_id},
    )


def _question_key(question: str) -> str:
    return " ".join(question.casefold().split())


def _fitted(tokenizer: Any, preference: Preference, prompt: Prompt, max_length: int) -> tuple[Pair | None, bool]:
    """Both answers after the same prompt, shortened alike until both fit."""
    candidates = zip(
        shorter_and_shorter(preference.conversation(preference.chosen), prompt),
        shorter_and_shorter(preference.conversation(preference.rejected), prompt),
        strict=True,
    )
    for number, options in enumerate(candidates):
        chosen, rejected = (
            _answer_only(encode_messages(tokenizer, render(prompt, messages, context), preference.id))
            for messages, context in options
        )
        if max(len(chosen.ids), len(rejected.ids)) <= max_length:
            return Pair(chosen, rejected), number > 0
    return None, True


def _answer_only(sample: Sample) -> Sample:
    """The sample with the loss on its last answer alone: earlier turns are the same in both and would cancel."""
    start = len(sample.ids)
    learned: Sequence[bool] = sample.learned
    while start and learned[start - 1]:
        start -= 1
    return Sample(sample.ids, [position >= start for position in range(len(sample.ids))])
