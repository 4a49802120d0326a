"""The last block, computed only for tokens that a loss reads.

In the last block tokens look at others through keys and values alone.  A token's own query, what attention's output
layer and what the feed-forward layer make of it are read by that token's own logits and by nobody else.  Where a tenth
of the tokens is learned, nine tenths of those layers' work (of LLaMA's blocks more than four fifths) change neither
the loss nor a gradient, and are left out.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FEED_FORWARD = "mlp"
TOKENWISE = (FEED_FORWARD, "self_attn.q_proj", "self_attn.o_proj")
"""Layers of a block, as most models of transformers call them."""


class TokenwiseLayer:
    """A layer that computes some tokens and gives zeros for the others.

    Args:
        module: takes and gives (..., tokens, width), each token by itself; its ``forward`` is replaced by this.
    """

    def __init__(self, module: Any) -> None:
        self._module, self._was_replaced = module, "forward" in vars(module)
        self._forward: Callable[[torch.Tensor], torch.Tensor] = module.forward
        self._tokens: torch.Tensor | None = None
        module.forward = self

    def only(self, tokens: "torch.Tensor | None") -> None:
        """Compute these from now on: (wanted,) positions in the flattened batch; None: all of them."""
        self._tokens = tokens

    def release(self) -> None:
        """Give the layer its own ``forward`` back."""
        if self._was_replaced:
            self._module.forward = self._forward
        else:
            del self._module.forward

    def __call__(self, states: "torch.Tensor") -> "torch.Tensor":
        """(rows, tokens, width) to (rows, tokens, width of the layer's output)."""
        if self._tokens is None:
            return self._forward(states)
        every = states.reshape(-1, states.shape[-1])
        made = self._forward(every.index_select(0, self._tokens))
        whole = made.new_zeros(every.shape[0], made.shape[-1])
        return whole.index_copy(0, self._tokens, made).view(*states.shape[:-1], made.shape[-1])


class LastBlock:
    """The layers of the last block that take each token by itself.

    Args:
        layers: in any order.
    """

    def __init__(self, layers: Sequence[TokenwiseLayer]) -> None:
        self._layers = layers

    def only(self, tokens: "torch.Tensor | None") -> None:
        """Compute these from now on: (wanted,) positions in the flattened batch; None: all of them.

        It holds until it is called again, because activation checkpointing computes the block once more on the way
        back.
        """
        for layer in self._layers:
            layer.only(tokens)

    def release(self) -> None:
        """Give every layer its own ``forward`` back."""
        for layer in self._layers:
            layer.release()


def last_block(model: Any, names: Sequence[str] = TOKENWISE) -> LastBlock | None:
    """The last block, ready to be narrowed; None where the model has none of the layers.

    Args:
        model: a causal language model of transformers, without a wrapper.
        names: of the layers, from their block.
    """
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    blocks = [module for module in model.modules() if type(module).__name__ in kinds]
    found = [_part(blocks[-1], name) for name in names] if blocks else []
    layers = [TokenwiseLayer(module) for module in found if module is not None]
    return LastBlock(layers) if layers else None


def _part(block: Any, name: str) -> Any:
    for step in name.split("."):
        block = getattr(block, step, None)
    return block
