"""Weights laid out anew for products with a few rows.

MKL's product of 2 to 16 rows with a large matrix uses a fraction of what a core can do.  oneDNN's, on weights that it
has laid out in blocks of its own, takes half the time: on one core of an AMD EPYC, for a model of 26M weights in
float32, 5.6 instead of 12.8 ms at 4 rows and 10.5 instead of 18.8 ms at 16.  At one row, where the memory decides, the
plain layout is the faster one (6.5 against 7.4 ms), so both are kept where they are not large.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

MIN_ROWS = 2
USUAL_ROWS = 4
"""What the layout is chosen for; it serves any number."""
MIN_BYTES = 16 << 20
"""Below it a step costs what its operators cost to call."""
MAX_BYTES = 512 << 20
"""Of weights whose copies may take memory."""
TOLERANCE = 1e-4


class PackedWeights:
    """Copies of weights, found by the weights that they are copies of; empty where they are of no use."""

    def __init__(self, weights: Sequence["torch.Tensor"] = ()) -> None:
        """``weights``: (inputs, outputs) each, which must outlive this."""
        self._packed = {id(weight): _packed(weight) for weight in weights} if _is_useful(weights) else {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing was copied."""
        return not self._packed

    def product(self, x: "torch.Tensor", weight: "torch.Tensor", bias: "torch.Tensor | None" = None) -> "torch.Tensor":
        """(rows, outputs): rows (rows, inputs) times a weight, plus (outputs,)."""
        import torch

        if len(x) >= MIN_ROWS and (packed := self._packed.get(id(weight))) is not None:
            return _linear(x, packed, bias)
        return x @ weight if bias is None else torch.addmm(bias, x, weight)

    def added(
        self, before: "torch.Tensor", x: "torch.Tensor", weight: "torch.Tensor", bias: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        """(rows, outputs): what was before, plus ``product``."""
        import torch

        if len(x) >= MIN_ROWS and (packed := self._packed.get(id(weight))) is not None:
            return _linear(x, packed, bias).add_(before)
        found = torch.addmm(before, x, weight)
        return found if bias is None else found.add_(bias)


def _is_useful(weights: Sequence["torch.Tensor"]) -> bool:
    """Whether there are enough of them but not too many, and they can be packed; tried on one of them."""
    import torch

    if not weights or not MIN_BYTES <= sum(weight.nbytes for weight in weights) <= MAX_BYTES:
        return False
    if weights[0].device.type != "cpu" or weights[0].dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return False
    try:
        x = torch.linspace(-1, 1, USUAL_ROWS * len(weights[0])).view(USUAL_ROWS, -1)
        difference = (_linear(x, _packed(weights[0]), None) - x @ weights[0]).abs().max() / (x @ weights[0]).abs().max()
    except (AttributeError, NotImplementedError, RuntimeError) as error:  # another build of torch
        logger.info("Weights are not packed for few rows: %s", str(error).partition("\n")[0])
        return False
    return bool(difference < TOLERANCE)


def _packed(weight: "torch.Tensor") -> "torch.Tensor":
    import torch

    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.t().contiguous(), USUAL_ROWS)
    return packed


def _linear(x: "torch.Tensor", packed: "torch.Tensor", bias: "torch.Tensor | None") -> "torch.Tensor":
    import torch

    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return found
