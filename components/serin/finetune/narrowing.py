"""The last block's feed-forward layer, computed only for tokens that a loss reads.

After the last block's attention no token looks at another: what its feed-forward layer makes of a token is read by that
token's own logits alone.  Where a tenth of the tokens is learned, nine tenths of that layer's work (of LLaMA's blocks
about two thirds) change neither the loss nor a gradient, and are left out.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class LastLayer:
    """A feed-forward layer that computes some tokens and gives zeros for the others.

    Args:
        module: takes and gives (..., tokens, width), each token by itself; its ``forward`` is replaced by this.
    """

    def __init__(self, module: Any) -> None:
        self._module, self._was_replaced = module, "forward" in vars(module)
        self._forward: Callable[[torch.Tensor], torch.Tensor] = module.forward
        self._tokens: torch.Tensor | None = None
        module.forward = self

    def only(self, tokens: "torch.Tensor | None") -> None:
        """Compute these from now on: (wanted,) positions in the flattened batch; None: all of them.

        It holds until it is called again, because activation checkpointing computes the layer once more on the way
        back.
        """
        self._tokens = tokens

    def release(self) -> None:
        """Give the layer its own ``forward`` back."""
        if self._was_replaced:
            self._module.forward = self._forward
        else:
            del self._module.forward

    def __call__(self, states: "torch.Tensor") -> "torch.Tensor":
        """(rows, tokens, width) to the same shape."""
        if self._tokens is None:
            return self._forward(states)
        every = states.reshape(-1, states.shape[-1])
        made = self._forward(every.index_select(0, self._tokens))
        return made.new_zeros(every.shape).index_copy(0, self._tokens, made).view(states.shape)


def last_layer(model: Any) -> LastLayer | None:
    """The last block's feed-forward layer, ready to be narrowed; None where the model has none that can be found.

    Args:
        model: a causal language model of transformers, without a wrapper.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    feed_forward = getattr(blocks[-1], "mlp", None) if blocks else None
    return LastLayer(feed_forward) if feed_forward is not None else None
