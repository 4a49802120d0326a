"""The next token of each row of a batch."""

import math
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

from serin.core.generation.rows import Row, TokenScores

if TYPE_CHECKING:
    import torch


def choose(rows: Sequence[Row], logits: "torch.Tensor", end_ids: Set[int]) -> None:
    """Give each row its next token, or its finish reason; a row whose scores are unusable fails alone.

    Args:
        rows: that go on.
        logits: (rows, vocabulary) in float32; may be overwritten.
        end_ids: tokens that end an answer.
    """
    raw = logits.clone() if any(row.logprobs is not None and row.constraint for row in rows) else logits
    _constrain(rows, logits)
    tokens = _best(rows, logits)
    _sample_some(rows, logits, tokens)
    for number, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        if row.finish_reason is not None:
            continue
        if row.logprobs is not None and token not in end_ids:
            row.scores.append(_scores(raw[number], token, row.logprobs))
        _advance(row, token, end_ids)


def _constrain(rows: Sequence[Row], logits: "torch.Tensor") -> None:
    for number, row in enumerate(rows):
        if row.constraint is None or row.finish_reason is not None:
            continue
        try:
            logits[number].masked_fill_(~row.constraint.allowed().to(logits.device), float("-inf"))
        except Exception as error:
            row.fail(error)


def _best(rows: Sequence[Row], logits: "torch.Tensor") -> list[int]:
    """The likeliest tokens; rows fail whose best score is no number (which any other that is none makes it)."""
    if logits.device.type == "cpu":  # numpy's argmax takes a tenth of the time of torch's
        scores = logits.numpy()
        best = scores.argmax(-1)
        highest = scores[range(len(rows)), best]
    else:
        values, indices = logits.max(-1)
        best, highest = indices.cpu().numpy(), values.cpu().numpy()
    for row, score in zip(rows, highest.tolist(), strict=True):
        if not math.isfinite(score) and row.finish_reason is None:
            row.fail(ArithmeticError("The model's scores for this prompt are not numbers."))
    tokens: list[int] = best.tolist()
    return tokens


def _sample_some(rows: Sequence[Row], logits: "torch.Tensor", tokens: list[int]) -> None:
    """Replace the tokens of rows that are sampled."""
    import torch

    sampled = [number for number, row in enumerate(rows) if row.temperature > 0 and row.finish_reason is None]
    if not sampled:
        return
    cpu = (logits if len(sampled) == len(rows) else logits[sampled]).cpu()
    temperatures = torch.tensor([[max(rows[i].temperature, 1e-4)] for i in sampled])
    uniforms = torch.tensor([[rows[i].uniform()] for i in sampled], dtype=torch.float64)
    top_p = [rows[i].top_p for i in sampled]
    for i, token in zip(sampled, _sample(cpu / temperatures, top_p, uniforms), strict=True):
        tokens[i] = token


def _sample(scores: "torch.Tensor", top_p: list[float], uniforms: "torch.Tensor") -> list[int]:
    """Tokens by inversion of the cumulative distribution, (rows, vocabulary) scores and (rows, 1) uniforms.

    Top-p keeps the smallest set of the likeliest tokens whose probability reaches p (Holtzman et al. 2020, "The
    Curious Case of Neural Text Degeneration", section 3.1).
    """
    import torch

    weights = torch.softmax(scores, dim=-1, dtype=torch.float64)
    order = None
    if min(top_p) < 1.0:
        weights, order = weights.sort(dim=-1, descending=True, stable=True)
        before = weights.cumsum(-1) - weights
        weights = weights.masked_fill(before >= torch.tensor(top_p, dtype=torch.float64)[:, None], 0.0)
    cumulative = weights.cumsum(-1)
    chosen = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    chosen = chosen.clamp(max=scores.shape[-1] - 1)
    if order is not None:
        chosen = order.gather(-1, chosen)
    return [int(token) for token in chosen[:, 0].tolist()]


def _scores(logits: "torch.Tensor", token: int, alternatives: int) -> TokenScores:
    values = logits.log_softmax(-1)
    if alternatives < 1:
        return TokenScores(float(values[token]), ())
    best = values.topk(min(alternatives, len(values)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return TokenScores(float(values[token]), tuple(pairs))


def _advance(row: Row, token: int, end_ids: Set[int]) -> None:
    if token in end_ids:
        row.finish_reason = "stop"
        return
    row.tokens.append(token)
    if row.constraint is not None:
        try:
            row.constraint.accept(token)
        except Exception as error:
            row.fail(error)
            return
        if row.constraint.complete:
            row.finish_reason = "stop"
            return
    if len(row.tokens) >= row.max_new_tokens:
        row.finish_reason = "length"
