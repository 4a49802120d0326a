"""From a dataset to token samples with a loss mask, and from samples to batches in a repeatable order.

Conversations are rendered with ``serin.core.prompts.render`` and the tokenizer's own chat template, so that a model is
trained on exactly what it will be served.
"""

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serin.core.errors import InputError
from serin.core.prompts import Prompt, render
from serin.core.records import Conversation, Message

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

IGNORED = -100
CONTEXT_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)


@dataclass(frozen=True)
class Sample:
    """One sequence; the loss counts where ``learned`` is true."""

    ids: list[int]
    learned: list[bool]

    @property
    def num_learned(self) -> int:
        """Tokens that the loss counts; the first of a sequence is never predicted."""
        return sum(self.learned[1:])


@dataclass(frozen=True)
class Encoded:
    """Samples, and how many conversations had to give something up."""

    samples: list[Sample]
    num_shortened: int = 0
    """Lost context or early turns to fit."""
    num_left_out: int = 0
    """Question and answer alone are too long."""


def encode_texts(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[Sample]:
    """Plain texts for pretraining: each closed by the end token and cut into pieces of at most ``max_length``."""
    end = tokenizer.eos_token_id
    samples = []
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        whole = [*ids, end]
        for start in range(0, len(whole), max_length):
            piece = whole[start : start + max_length]
            if len(piece) > 1:
                samples.append(Sample(piece, [True] * len(piece)))
    return samples


def encode_conversations(
    tokenizer: Any, conversations: Iterable[Conversation], prompt: Prompt, max_length: int
) -> Encoded:
    """Conversations for fine-tuning: the loss counts on the assistant's turns only.

    Raises:
        InputError: the chat template cannot render the conversation.
    """
    samples: list[Sample] = []
    shortened = left_out = 0
    for conversation in conversations:
        sample, was_shortened = _fitted(tokenizer, conversation, prompt, max_length)
        if sample is None:
            left_out += 1
        elif sample.num_learned:
            shortened += was_shortened
            samples.append(sample)
    if left_out:
        logger.warning("%d conversations are longer than %d tokens without context: left out.", left_out, max_length)
    return Encoded(samples, shortened, left_out)


def require_trainable(encoded: Encoded, max_length: int) -> None:
    """Refuse samples without a single token to learn.

    Raises:
        InputError: saying why there is none.
    """
    if encoded.samples:
        return
    if encoded.num_left_out:
        raise InputError(
            f"All {encoded.num_left_out} training conversations are longer than max_length={max_length} tokens: "
            "raise finetune.max_length or shorten them."
        )
    raise InputError("The dataset has no trainable token: its train split needs conversations with answers.")


def save_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples as flat tensors in one safetensors file."""
    import torch
    from safetensors.torch import save_file

    lengths = [len(sample.ids) for sample in samples]
    tensors = {
        "ids": torch.tensor([token for sample in samples for token in sample.ids], dtype=torch.int32),
        "learned": torch.tensor([flag for sample in samples for flag in sample.learned], dtype=torch.uint8),
        "lengths": torch.tensor(lengths, dtype=torch.int64),
    }
    save_file(tensors, path)


class SampleFile:
    """Samples of a file written by ``save_samples``."""

    def __init__(self, path: Path) -> None:
        from safetensors.torch import load_file

        tensors = load_file(path)
        self.lengths: list[int] = tensors["lengths"].tolist()
        self._ids = tensors["ids"].long().split(self.lengths)
        self._learned = tensors["learned"].bool().split(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: Sequence[int], pad_id: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """Some samples, padded on the right.

        Returns:
            Ids and labels, both (samples, longest) int64; labels are ``IGNORED`` where the loss does not count.
        """
        import torch

        width = max(self.lengths[index] for index in indices)
        ids = torch.full((len(indices), width), pad_id)
        labels = torch.full((len(indices), width), IGNORED)
        for row, index in enumerate(indices):
            length = self.lengths[index]
            ids[row, :length] = self._ids[index]
            labels[row, :length] = self._ids[index].masked_fill(~self._learned[index], IGNORED)
        return ids, labels


def epoch_batches(lengths: Sequence[int], tokens_per_batch: int, seed: int, epoch: int) -> list[list[int]]:
    """Batches of one epoch: samples of like length together, in an order that seed and epoch decide.

    Every epoch has the same number of batches.  A batch holds at most ``tokens_per_batch`` tokens with its padding; a
    sample longer than that is a batch of its own.
    """
    generator = random.Random(f"{seed}/{epoch}")  # noqa: S311 (an order, not a secret)
    order = list(range(len(lengths)))
    generator.shuffle(order)
    order.sort(key=lambda index: lengths[index])
    batches: list[list[int]] = []
    for index in order:
        current = batches[-1] if batches else []
        # Lengths rise, so the newest sample is the batch's width.
        if current and lengths[index] * (len(current) + 1) <= tokens_per_batch:
            current.append(index)
        else:
            batches.append([index])
    generator.shuffle(batches)
    return batches


def batches_from(lengths: Sequence[int], tokens_per_batch: int, seed: int, start: int) -> Iterator[list[int]]:
    """Batches without end, from the one with number ``start``: the same whether or not training was interrupted."""
    epoch = 0
    while True:
        batches = epoch_batches(lengths, tokens_per_batch, seed, epoch)
        if start < len(batches):
            yield from batches[start:]
            start = 0
        else:
            start -= len(batches)
        epoch += 1


def _fitted(tokenizer: Any, conversation: Conversation, prompt: Prompt, max_length: int) -> tuple[Sample | None, bool]:
    """The sample of a conversation and whether it lost something: context first, then early turns, never the answer."""
    for number, (messages, context) in enumerate(_shorter_and_shorter(conversation, prompt)):
        sample = _encode(tokenizer, render(prompt, messages, context), conversation.id)
        if len(sample.ids) <= max_length:
            return sample, number > 0
    return None, True


def _shorter_and_shorter(
    conversation: Conversation, prompt: Prompt
) -> Iterator[tuple[Sequence[Message], Sequence[str]]]:
    from serin.core.prompts import within_budget

    turns = [message for message in conversation.messages if message.role != "system"]
    for share in CONTEXT_SHARES:
        chars = int(prompt.max_context_chars * share)
        yield turns, within_budget(conversation.context, chars) if chars else ()
        if not conversation.context:
            break
    starts = [position for position, turn in enumerate(turns[:-1]) if turn.role == "user"]
    for start in starts[1:]:
        yield turns[start:], ()


def _encode(tokenizer: Any, messages: list[dict[str, str]], name: str) -> Sample:
    """Tokens of a rendered dialogue.

    What the model is given and what it answers are tokenised apart, as they are when it is served: no token
    straddles the border.
    """
    ids: list[int] = []
    learned: list[bool] = []
    text = _rendered(tokenizer, messages, name)
    position = 0
    for start, end in _answer_spans(tokenizer, messages, text, name):
        for piece, flag in ((text[position:start], False), (text[start:end], True)):
            tokens = tokenizer(piece, add_special_tokens=False)["input_ids"]
            ids += tokens
            learned += [flag] * len(tokens)
        position = end
    return Sample(ids, learned)


def _answer_spans(tokenizer: Any, messages: list[dict[str, str]], text: str, name: str) -> list[tuple[int, int]]:
    """Where the assistant's turns stand in the rendered text, their closing token included.

    An early turn that the template renders differently once others follow is not learned; the last one always is.
    """
    spans = []
    for position, message in enumerate(messages):
        if message["role"] != "assistant" or not message["content"].strip():
            continue
        before = _rendered(tokenizer, messages[:position], name, add_generation_prompt=True)
        upto = _rendered(tokenizer, messages[: position + 1], name)
        if text.startswith(upto) and upto.startswith(before):
            spans.append((len(before), len(upto)))
        elif position == len(messages) - 1:
            raise InputError(
                f"Conversation {name!r}: the base's chat template does not put the answer after its generation "
                "prompt, so that it cannot be told apart; use a base with another template."
            )
    return spans


def _rendered(tokenizer: Any, messages: list[dict[str, str]], name: str, add_generation_prompt: bool = False) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
    except TemplateError as error:
        raise InputError(f"The base's chat template refuses conversation {name!r}: {error}") from error
