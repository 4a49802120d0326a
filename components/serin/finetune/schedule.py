"""When and how much: the learning rate of a step, the number of steps, the passes that a batch is computed in."""

import math
from collections.abc import Sequence

from serin.finetune.config import PhaseConfig
from serin.finetune.data import epoch_batches


def learning_rate(step: int, num_steps: int, optim: PhaseConfig) -> float:
    """Learning rate of a step (0 is the first): a linear rise, then constant, linear or half a cosine."""
    warmup = int(num_steps * optim.warmup_fraction)
    if step < warmup:
        return optim.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, num_steps - 1 - warmup)
    if optim.schedule == "constant":
        height = 1.0
    elif optim.schedule == "linear":
        height = 1.0 - done
    else:
        height = (1.0 + math.cos(math.pi * done)) / 2
    return optim.learning_rate * (optim.final_fraction + (1.0 - optim.final_fraction) * height)


def num_steps_of(lengths: Sequence[int], optim: PhaseConfig) -> int:
    """Optimizer steps of a phase over samples of these lengths."""
    if optim.max_steps is not None:
        return optim.max_steps
    return max(1, round(optim.epochs * len(epoch_batches(lengths, optim.tokens_per_batch, seed=0, epoch=0))))


def passes_of(
    indices: Sequence[int], lengths: Sequence[int], size: int, max_tokens: int | None, is_packed: bool
) -> list[list[list[int]]]:
    """The forward passes that each rank computes a batch in; together they hold every index once.

    Args:
        indices: the batch.
        lengths: tokens of every sample.
        size: number of ranks.
        max_tokens: most tokens of one pass, padding included; a longer sample is a pass of its own.  None: no limit.
        is_packed: samples share a row and need no padding.

    Returns:
        For each rank its passes, for each of them its indices; a rank without a share has none.
    """
    return [_passes(indices[rank::size], lengths, max_tokens, is_packed) for rank in range(size)]


def _passes(share: Sequence[int], lengths: Sequence[int], max_tokens: int | None, is_packed: bool) -> list[list[int]]:
    if max_tokens is None:
        return [list(share)] if share else []
    passes: list[list[int]] = []
    width = tokens = 0
    for index in share:
        width, tokens = max(width, lengths[index]), tokens + lengths[index]
        if passes and (tokens if is_packed else width * (len(passes[-1]) + 1)) <= max_tokens:
            passes[-1].append(index)
        else:
            passes.append([index])
            width = tokens = lengths[index]
    return passes
