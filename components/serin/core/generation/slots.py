"""The key-value cache: a slot for each row, grown by doubling, written in place; and what is kept of prompts."""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FIRST_SLOTS, FIRST_LENGTH = 4, 256
BLOCK = 16
"""Tokens that are kept or found together."""


@dataclass(frozen=True)
class CacheShape:
    """What one token takes in the cache."""

    num_layers: int
    num_heads: int
    """Of keys and values."""
    width: int
    """Of one head."""


class SlotCache:
    """Keys and values of rows, in one tensor of (layers, 2, slots, heads, tokens, width).

    What lies beyond a row's own length is finite and never attended to, since masks hide it.
    """

    def __init__(self, shape: CacheShape, dtype: "torch.dtype", device: "torch.device") -> None:
        self.shape = shape
        self._dtype, self._device = dtype, device
        self.version = 0
        """Changes when the tensors are replaced, so that views of them can be kept until then."""
        self.clear()

    def clear(self) -> None:
        """Forget everything and give the memory back."""
        self._replace(self._zeros(0, 0))

    def reserve(self, num_slots: int, length: int) -> None:
        """Make room for slots and tokens; what is stored stays."""
        if num_slots <= self.num_slots and length <= self.length:
            return
        slots, tokens = self.num_slots or FIRST_SLOTS, self.length or FIRST_LENGTH
        while slots < num_slots:
            slots *= 2
        while tokens < length:
            tokens *= 2
        new = self._zeros(slots, tokens)
        new[:, :, : self.num_slots, :, : self.length] = self.data
        self._replace(new)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one slot's first tokens into another."""
        self.data[:, :, target, :, :length] = self.data[:, :, source, :, :length]

    def wipe(self, slot: int) -> None:
        """Make a slot's content finite again."""
        self.data[:, :, slot] = 0

    def write(self, layer: int, index: "torch.Tensor", values: "torch.Tensor") -> None:
        """Store keys and values of new tokens.

        Args:
            layer: whose they are.
            index: (rows * 2 * heads,), as ``index_of`` gives it.
            values: (rows, 2 * heads, width), keys before values.
        """
        self._flat[layer].index_copy_(0, index, values.reshape(-1, self.shape.width))

    def index_of(self, slots: "torch.Tensor", positions: "torch.Tensor") -> "torch.Tensor":
        """Where the keys and values of tokens lie, (tokens * 2 * heads,) for (tokens,) slots and positions."""
        return (self._offsets[slots] + positions[:, None]).flatten()

    @property
    def num_bytes(self) -> int:
        """What the tensors take."""
        return int(self.data.nbytes)

    def _zeros(self, slots: int, tokens: int) -> "torch.Tensor":
        import torch

        shape = (self.shape.num_layers, 2, slots, self.shape.num_heads, tokens, self.shape.width)
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def _replace(self, data: "torch.Tensor") -> None:
        import torch

        self.data, self.version = data, self.version + 1
        self.num_slots, self.length = int(data.shape[2]), int(data.shape[4])
        # (2 * slots * heads * tokens, width) for each layer: new tokens are written by their flat index
        self._flat = [layer.view(-1, self.shape.width) for layer in data]
        heads = self.shape.num_heads
        offsets = torch.arange(2 * self.num_slots * heads, device=self._device) * self.length
        grouped = offsets.view(2, self.num_slots, heads).transpose(0, 1)
        self._offsets = grouped.reshape(self.num_slots, 2 * heads)  # (slots, 2 * heads)


class PrefixCache:
    """Keys and values of the beginnings of prompts, found again by their tokens; the least recently used go first.

    A block's key is a hash over all tokens up to its end, so that equal keys mean equal contexts.

    Args:
        max_bytes: of keys and values together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._blocks: OrderedDict[bytes, torch.Tensor] = OrderedDict()  # (layers, 2, heads, BLOCK, width)
        self._bytes = 0

    @property
    def num_bytes(self) -> int:
        """What is kept now."""
        return self._bytes

    def load(self, cache: SlotCache, slot: int, tokens: Sequence[int], salt: str) -> int:
        """Put what is known of the tokens' beginning into a slot; the last token is always left to be computed.

        Args:
            cache: with room for the tokens.
            slot: to be filled.
            tokens: of the prompt.
            salt: names the weights (the adapter); others' blocks are not found.

        Returns:
            How many tokens the slot now holds.
        """
        if not self._blocks:
            return 0
        found = []
        for key in _keys(tokens[:-1], salt):
            block = self._blocks.get(key)
            if block is None:
                break
            self._blocks.move_to_end(key)
            found.append(block)
        for number, block in enumerate(found):
            cache.data[:, :, slot, :, number * BLOCK : (number + 1) * BLOCK] = block
        return len(found) * BLOCK

    def store(self, cache: SlotCache, slot: int, tokens: Sequence[int], salt: str) -> None:
        """Keep what a slot holds of some tokens, in whole blocks."""
        if self._max_bytes <= 0:
            return
        for number, key in enumerate(_keys(tokens, salt)):
            if key in self._blocks:
                self._blocks.move_to_end(key)
                continue
            block = cache.data[:, :, slot, :, number * BLOCK : (number + 1) * BLOCK].clone()
            self._blocks[key] = block
            self._bytes += block.nbytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._blocks.popitem(last=False)[1].nbytes


def _keys(tokens: Sequence[int], salt: str) -> list[bytes]:
    """A key for each whole block, over all tokens up to its end."""
    digest = hashlib.blake2b(salt.encode(), digest_size=16)
    data, keys = array("q", tokens).tobytes(), []
    for start in range(0, len(tokens) - len(tokens) % BLOCK, BLOCK):
        digest.update(data[start * 8 : (start + BLOCK) * 8])
        keys.append(digest.digest())
    return keys
