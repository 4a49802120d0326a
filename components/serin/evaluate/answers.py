"""Answers of a release to held-out conversations, and how well its model predicts the reference answers.

Everything goes through the same prompt, retrieval and decoding settings as at the endpoint.  Answers are an artefact
keyed by model, passages found, dataset, prompt and settings: a release that was evaluated before is not asked again.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serin.core.artifacts import Artifact, Built
from serin.core.context import StageContext
from serin.core.generation import Generation, Generator
from serin.core.prompts import render
from serin.core.records import Conversation, Message, read_jsonl, write_jsonl
from serin.core.release import Release, model_folder, open_part
from serin.core.serving import ServingConfig, fitting
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.likelihood import chat_row, row_losses
from serin.evaluate.results import Answer
from serin.evaluate.retrieval import Found
from serin.evaluate.sampling import held_out, labels_of

logger = logging.getLogger(__name__)

ANSWERS = "answers.jsonl"
MAX_ROWS = 64
"""Answers decoded together."""
CHUNK = 80
"""Conversations answered between two reports of progress."""


@dataclass(frozen=True)
class Asked:
    """A conversation as it is put to the model."""

    conversation: Conversation
    source: str
    passages: tuple[str, ...]
    scores: tuple[float, ...] = ()

    @property
    def dialogue(self) -> tuple[Message, ...]:
        """The turns before the reference answer."""
        return self.conversation.messages[:-1]


def answer_conversations(
    config: EvaluateConfig, release: Release, role: str, dataset: Artifact, found: Found, context: StageContext
) -> list[Answer]:
    """The release's answers, found or made.

    Args:
        config: how many conversations, and which.
        release: whose model, prompt and settings are used.
        role: candidate, baseline or champion, for the display.
        dataset: holds the conversations.
        found: what the release's index found for them.
        context: the stage's.

    Raises:
        InputError: too few held-out conversations, or the model cannot be loaded.
        IntegrityError: the model is damaged.
    """
    model = open_part(release.model, context.store)

    def build(output: Path, scratch: Path) -> Built:
        generator = Generator.load(model_folder(release, context.store), config.num_threads)
        asked = _questions(held_out(config, dataset), found, release)
        answers = _answer(generator, release, asked, lambda done: _progress(context, role, done, len(asked)))
        write_jsonl(output / ANSWERS, answers)
        return Built(metadata={"num_answers": len(answers)})

    settings = {
        "prompt": release.prompt.dump(),
        "serving": release.serving,
        "num_conversations": config.num_conversations,
        "seed": config.seed,
    }
    inputs: dict[str, Artifact | str] = {"model": model, "dataset": dataset, "retrieval": found.artifact}
    artifact = context.produce("answers", build, inputs=inputs, config=settings)
    return read_jsonl(artifact.path / ANSWERS, Answer)


def _questions(conversations: Sequence[Conversation], found: Found, release: Release) -> list[Asked]:
    serving = ServingConfig.load(release.serving)
    asked = [Asked(one, "given", tuple(fitting(one.context, release.prompt, serving))) for one in conversations]
    for one in conversations:
        if hits := found.passages.get(one.id):
            passages = tuple(fitting(hits.texts, release.prompt, serving))
            asked.append(Asked(one, "retrieved", passages, hits.scores[: len(passages)]))
    return asked


def _answer(
    generator: Generator, release: Release, asked: Sequence[Asked], progress: Callable[[int], None]
) -> list[Answer]:
    serving = ServingConfig.load(release.serving)
    answers: list[Answer] = []
    for start in range(0, len(asked), CHUNK):
        progress(start)
        part = asked[start : start + CHUNK]
        prompts = [render(release.prompt, one.dialogue, one.passages) for one in part]
        generations = generator.generate(
            prompts,
            max_new_tokens=serving.max_new_tokens,
            temperature=serving.temperature,
            seed=start,
            max_rows=MAX_ROWS,
        )
        answers += [_record(one, generation) for one, generation in zip(part, generations, strict=True)]
    return _with_losses(generator, release, asked, answers)


def _with_losses(
    generator: Generator, release: Release, asked: Sequence[Asked], answers: Sequence[Answer]
) -> list[Answer]:
    """Answers to given passages get the loss of their reference."""
    given = [i for i, one in enumerate(asked) if one.source == "given"]
    prompts = [render(release.prompt, asked[i].dialogue, asked[i].passages) for i in given]
    losses = reference_losses(generator, prompts, [asked[i].conversation.answer for i in given])
    scored = list(answers)
    for i, loss in zip(given, losses, strict=True):
        if loss:
            update = {"answer_bits": loss[0] / math.log(2), "answer_loss": loss[0] / loss[1]}
            scored[i] = answers[i].model_copy(update=update)
    return scored


def _record(asked: Asked, generation: Generation) -> Answer:
    conversation = asked.conversation
    return Answer(
        id=conversation.id,
        group=conversation.group,
        language=conversation.language,
        source=asked.source,
        question=conversation.question,
        reference=conversation.answer,
        answer=generation.text.strip(),
        finish_reason=generation.finish_reason,
        passages=asked.passages,
        retrieval_scores=asked.scores,
        labels=labels_of(conversation),
    )


def reference_losses(
    generator: Generator, prompts: Sequence[list[dict[str, str]]], references: Sequence[str]
) -> list[tuple[float, int] | None]:
    """Teacher-forced loss of each reference answer: its natural-log sum and its number of tokens.

    None where the chat template does not extend the prompt by the answer, or both exceed the model's context.
    """
    rows = {i: row for i, prompt in enumerate(prompts) if (row := chat_row(generator, prompt, references[i]))}
    losses: list[tuple[float, int] | None] = [None] * len(prompts)
    for i, loss in zip(rows, row_losses(generator, list(rows.values())), strict=True):
        losses[i] = loss
    return losses


def _progress(context: StageContext, role: str, done: int, total: int) -> None:
    context.progress(f"{role} has answered {done} of {total} questions", done / total)
