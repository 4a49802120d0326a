"""Rows over transformers' own forward pass, for architectures that have no faster one here.

Rows share one growing cache; prompts are run once and padded on the left.  Adapters are not applied.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from serin.core.errors import InputError
from serin.core.generation.rows import Row
from serin.core.generation.sampling import choose

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache

    from serin.core.generation.generator import Generator


class LibraryBatch:
    """Rows that decode together over a ``DynamicCache``."""

    def __init__(self, generator: "Generator") -> None:
        self._generator = generator
        self._model = generator.model
        self._decoding: list[Row] = []
        self._waiting: list[Row] = []
        self._cache: DynamicCache | None = None
        self._mask: torch.Tensor | None = None  # (rows, cached tokens): 0 where a row is padded

    @property
    def rows(self) -> list[Row]:
        """Rows that were not finished, or not known to be, at the last step."""
        return [*self._decoding, *self._waiting]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of prompts that the next step runs; 0 where it decodes."""
        return sum(len(row.prompt) for row in self._waiting)

    def join(self, rows: Sequence[Row]) -> None:
        """Take rows in; their prompts are run by the next step."""
        for row in rows:
            if row.adapter is not None:
                row.fail(InputError("Adapters cannot be applied to a model of this architecture: merge them."))
        self._waiting += [row for row in rows if row.finish_reason is None]

    def step(self) -> None:
        """Run the prompts that wait, or one more token of every row."""
        self._leave()
        if self._waiting:
            self._run_prompts()
        elif self._decoding:
            self._run_step()

    def _run_prompts(self) -> None:
        import torch
        from transformers import DynamicCache

        rows, self._waiting = self._waiting, []
        device = self._model.device
        length = max(len(row.prompt) for row in rows)
        # the pad token's value is irrelevant, since the mask hides it
        tokens = torch.tensor([[0] * (length - len(row.prompt)) + row.prompt for row in rows], device=device)
        mask = torch.tensor([[0] * (length - len(row.prompt)) + [1] * len(row.prompt) for row in rows], device=device)
        cache = DynamicCache()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._forward(tokens, mask, positions, cache)
        self._merge(cache, mask)
        self._decoding += rows
        choose(rows, logits, self._generator.end_ids)

    def _run_step(self) -> None:
        import torch

        device = self._model.device
        assert self._cache is not None
        assert self._mask is not None
        tokens = torch.tensor([[row.tokens[-1]] for row in self._decoding], device=device)  # (rows, 1)
        positions = torch.tensor([[row.position] for row in self._decoding], device=device)
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        choose(self._decoding, self._forward(tokens, self._mask, positions, self._cache), self._generator.end_ids)

    def _forward(
        self, tokens: "torch.Tensor", mask: "torch.Tensor", positions: "torch.Tensor", cache: "DynamicCache"
    ) -> "torch.Tensor":
        """Logits of the last position, (rows, vocabulary); the cache grows in place."""
        model: Any = self._model
        output = model(
            input_ids=tokens,
            attention_mask=None if bool(mask.all()) else mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _merge(self, cache: "DynamicCache", mask: "torch.Tensor") -> None:
        import torch

        if self._cache is None or self._mask is None:
            self._cache, self._mask = cache, mask
            _layers(cache)
            return
        length = max(self._mask.shape[1], mask.shape[1])
        for mine, new in zip(_layers(self._cache), _layers(cache), strict=True):
            mine.keys = torch.cat([_padded(mine.keys, length), _padded(new.keys, length)])
            mine.values = torch.cat([_padded(mine.values, length), _padded(new.values, length)])
        self._mask = torch.cat([_padded(self._mask[..., None], length), _padded(mask[..., None], length)])[..., 0]

    def _leave(self) -> None:
        """Drop finished rows, and the columns in which every row that stays is padded."""
        import torch

        self._waiting = [row for row in self._waiting if row.finish_reason is None]
        kept = [number for number, row in enumerate(self._decoding) if row.finish_reason is None]
        self._decoding = [self._decoding[number] for number in kept]
        if not kept or self._cache is None or self._mask is None:
            self._cache = self._mask = None
            return
        if len(kept) == self._mask.shape[0]:
            return
        index = torch.tensor(kept, device=self._mask.device)
        mask = self._mask[index]
        start = int(mask.any(0).int().argmax())
        self._mask = mask[:, start:]
        for layer in _layers(self._cache):
            layer.keys = layer.keys[index, :, start:]
            layer.values = layer.values[index, :, start:]


def _layers(cache: "DynamicCache") -> list[Any]:
    """The cache's layers, each with keys and values of (rows, heads, tokens, width).

    Raises:
        InputError: the model keeps another kind of state.
    """
    from transformers.cache_utils import DynamicLayer

    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer):
            raise InputError(f"A model with {type(layer).__name__} cannot be decoded here: use a plain transformer.")
    return list(cache.layers)


def _padded(tensor: "torch.Tensor", length: int) -> "torch.Tensor":
    """The tensor with zeros before its second last dimension, up to a length."""
    import torch

    return torch.nn.functional.pad(tensor, (0, 0, length - tensor.shape[-2], 0))
