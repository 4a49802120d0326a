"""How likely a model finds texts: references, continuations, plain text; teacher forced, in bounded batches."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from serin.core.generation import Generator

if TYPE_CHECKING:
    pass

LOGITS = 1 << 26
"""Logits computed at once (256 MiB in float32), which bounds the memory whatever the vocabulary."""
MAX_WINDOW = 2_048
"""Tokens of plain text read at once."""
Row = tuple[list[int], int]
"""Token ids, and the first of them whose loss counts."""


def row_losses(generator: Generator, rows: Sequence[Row]) -> list[tuple[float, int]]:
    """Natural-log loss of each row's counted tokens (its sum), and their number."""
    losses: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    waiting = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    while waiting:
        longest = len(rows[waiting[-1]][0])
        number = max(1, LOGITS // (generator.model.config.vocab_size * longest))
        batch, waiting = waiting[-number:], waiting[:-number]
        for i, loss in zip(batch, _losses(generator, [rows[i] for i in batch]), strict=True):
            losses[i] = loss
    return losses


def chat_row(generator: Generator, prompt: list[dict[str, str]], answer: str) -> Row | None:
    """A prompt with an answer, of which the answer counts.

    None where the chat template does not extend the prompt by the answer, or both exceed the model's context.
    """
    opening = generator.encode(prompt)
    whole: Any = generator.tokenizer.apply_chat_template(
        [*prompt, {"role": "assistant", "content": answer}], tokenize=True, return_dict=False
    )
    if whole[: len(opening)] != opening or not len(opening) < len(whole) <= generator.max_context:
        return None
    return list(whole), len(opening)


def plain_row(generator: Generator, text: str, continuation: str) -> Row | None:
    """A text with its continuation, without a chat template, of which the continuation counts; None where both exceed
    the model's context, or nothing comes before what counts."""
    whole = _plain_ids(generator, text + continuation)
    opening = _plain_ids(generator, text)
    start = next(
        (i for i, (a, b) in enumerate(zip(opening, whole, strict=False)) if a != b), min(len(opening), len(whole))
    )
    return (whole, start) if 0 < start < len(whole) <= generator.max_context else None


def text_bits(generator: Generator, texts: Sequence[str]) -> list[float]:
    """Bits per byte of UTF-8 of each text: windows overlap by half, and each token is predicted once.

    Without a token for the beginning of a text its first token is given, as nothing predicts it.
    """
    windows = [_windows(_plain_ids(generator, text), min(generator.max_context, MAX_WINDOW)) for text in texts]
    losses = iter(row_losses(generator, [row for of_one in windows for row in of_one]))
    return [
        sum(next(losses)[0] for _ in of_one) / math.log(2) / max(1, len(text.encode("utf-8", "replace")))
        for text, of_one in zip(texts, windows, strict=True)
    ]


def _plain_ids(generator: Generator, text: str) -> list[int]:
    ids: Any = generator.tokenizer(text, add_special_tokens=False)["input_ids"]
    begin = generator.tokenizer.bos_token_id
    return [*([int(begin)] if isinstance(begin, int) else []), *ids]


def _windows(ids: list[int], size: int) -> list[Row]:
    rows: list[Row] = []
    end = 1
    while end < len(ids):
        begin = max(0, end - size // 2)
        stop = min(len(ids), begin + size)
        rows.append((ids[begin:stop], end - begin))
        end = stop
    return rows


def _losses(generator: Generator, rows: Sequence[Row]) -> list[tuple[float, int]]:
    import torch

    device = generator.model.device
    width = max(len(ids) for ids, _ in rows)
    tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows], device=device)  # (rows, tokens)
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows], device=device)
    with torch.inference_mode():
        logits: torch.Tensor = generator.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    # (rows, tokens - 1): column j is the loss of token j + 1
    return [(float(losses[i, start - 1 : len(ids) - 1].sum()), len(ids) - start) for i, (ids, start) in enumerate(rows)]
