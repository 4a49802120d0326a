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
class Pair:
    """Two answers to the same question; the loss counts on the answers only."""

    chosen: Sample
    rejected: Sample


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


def save_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs like samples, the better answer before the worse; ``add_reference`` must follow before training."""
    import torch
    from safetensors.torch import load_file, save_file

    save_samples(path, [sample for pair in pairs for sample in (pair.chosen, pair.rejected)])
    save_file(load_file(path) | {"reference": torch.full((len(pairs), 2), float("nan"))}, path)


def with_reference(path: Path, reference: "torch.Tensor") -> None:
    """Put the reference's log-probabilities, (pairs, 2) float32, into a file of pairs, in one step."""
    from safetensors.torch import load_file, save_file

    aside = path.with_name(f".{path.name}.partial")
    save_file(load_file(path) | {"reference": reference.float().contiguous()}, aside)
    aside.replace(path)


class SampleFile:
    """Samples of a file written by ``save_samples``, or pairs of them written by ``save_pairs``.

    A pair is one row, and its length is the tokens of both answers; padding comes on top, so that a batch of lopsided
    pairs is up to twice as large as its budget.
    """

    def __init__(self, path: Path) -> None:
        from safetensors.torch import load_file

        tensors = load_file(path)
        sizes: list[int] = tensors["lengths"].tolist()
        self._reference = tensors.get("reference")
        self._sizes = sizes
        self.lengths: list[int] = (
            sizes if self._reference is None else [a + b for a, b in zip(sizes[::2], sizes[1::2], strict=True)]
        )
        self._ids = tensors["ids"].long().split(sizes)
        self._learned = tensors["learned"].bool().split(sizes)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def is_pairs(self) -> bool:
        """Whether its rows are pairs of a better and a worse answer."""
        return self._reference is not None

    def require_embeddings(self, num_embeddings: int) -> None:
        """Refuse tokens that the model has no embedding for.

        Raises:
            InputError: naming the token.
        """
        highest = max((int(ids.max()) for ids in self._ids if len(ids)), default=0)
        if highest >= num_embeddings:
            raise InputError(
                f"A sample holds token number {highest} and the base has embeddings for {num_embeddings}: take that "
                "special token out of the text, or give the base with a tokenizer that matches it."
            )

    def num_learned(self) -> int:
        """Tokens that the loss counts; the first of a sequence is never predicted."""
        return sum(int(flags[1:].sum()) for flags in self._learned)

    def reference(self, rows: Sequence[int]) -> "torch.Tensor":
        """The reference's log-probabilities of some pairs: (pairs, 2) float32, the better answer first.

        Raises:
            InputError: the file holds single samples, or ``add_reference`` was not run on it.
        """
        if self._reference is None:
            raise InputError("The objective dpo needs pairs of answers, and these samples are single: prepare them.")
        chosen = self._reference[list(rows)]
        if chosen.isnan().any():
            raise InputError("The pairs lack their reference log-probabilities: run add_reference with the base first.")
        return chosen

    def batch(self, indices: Sequence[int], pad_id: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """Some samples, padded on the right.

        Returns:
            Ids and labels, both (samples, longest) int64; labels are ``IGNORED`` where the loss does not count.
        """
        import torch

        width = max(self._sizes[index] for index in indices)
        ids = torch.full((len(indices), width), pad_id)
        labels = torch.full((len(indices), width), IGNORED)
        for row, index in enumerate(indices):
            length = self._sizes[index]
            ids[row, :length] = self._ids[index]
            labels[row, :length] = self._ids[index].masked_fill(~self._learned[index], IGNORED)
        return ids, labels

    def layout(
        self, sequences: Sequence[int], pad_id: int, packed: bool, is_pairs: bool = False
    ) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]":
        """Some sequences padded to rows, or packed into one row.

        Args:
            sequences: their numbers: of single samples, or with ``is_pairs`` 2n and 2n + 1 for the answers of pair n.
            pad_id: what padding is filled with.
            packed: one after the other, each with positions from 0 and without loss on its first token.
            is_pairs: the caller reads pairs.

        Returns:
            Ids, labels, positions (None when padded) and the number in ``sequences`` that a token belongs to, each
            (rows, tokens) int64.

        Raises:
            InputError: the file holds pairs and the caller reads single samples, or the other way round.
        """
        import torch

        if is_pairs != self.is_pairs:
            found, wanted = ("pairs", "single samples") if self.is_pairs else ("single samples", "pairs")
            raise InputError(f"The sample file holds {found} and the objective needs {wanted}: prepare it again.")
        if not packed:
            ids, labels = self.batch(sequences, pad_id)
            return ids, labels, None, torch.arange(len(sequences))[:, None].expand_as(ids)
        ids = torch.cat([self._ids[number] for number in sequences])
        starts = [self._ids[number].masked_fill(~self._learned[number], IGNORED) for number in sequences]
        labels = torch.cat([torch.cat([start.new_full((1,), IGNORED), start[1:]]) for start in starts])
        positions = torch.cat([torch.arange(self._sizes[number]) for number in sequences])
        sizes = torch.tensor([self._sizes[number] for number in sequences])
        owners = torch.repeat_interleave(torch.arange(len(sequences)), sizes)
        return ids[None], labels[None], positions[None], owners[None]


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
    for number, (messages, context) in enumerate(shorter_and_shorter(conversation, prompt)):
        sample = encode_messages(tokenizer, render(prompt, messages, context), conversation.id)
        if len(sample.ids) <= max_length:
            return sample, number > 0
    return None, True


def shorter_and_shorter(
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


def encode_messages(tokenizer: Any, messages: list[dict[str, str]], name: str) -> Sample:
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
