"""Low-rank adapters computed in fewer passes: the same weights and files as PEFT's, the same function, other sums.

PEFT computes ``x W' + (x A' B') * scale`` in five operations and keeps what lies between them.  Here the weight and its
adapter are added first, ``M = W + scale * B A``, and tokens meet one matrix on the way there and one on the way back:

    y = x M' + bias     dx = dy M     dB = scale * dy' (x A')     dA = scale * (dy B)' x

M is not kept but added again on the way back: beside a batch that costs little.  It is done in fp32 only, since an
adapter that is small beside its weight would be rounded away in bf16.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ADAPTER_NAME = "default"


def fuse_adapters(model: Any) -> int:
    """Replace the ``forward`` of PEFT's adapted linear layers where this module computes the same.

    Args:
        model: with fresh adapters named ``default``; its modules, weights and their names stay as they are.

    Returns:
        How many layers were replaced; those with dropout, a variant of LoRA, or another type than fp32 are left alone.
    """
    layers = [module for module in model.modules() if _is_plain(module)]
    for layer in layers:
        layer.forward = _forward_of(layer)
    return len(layers)


def _is_plain(module: Any) -> bool:
    import torch
    from peft.tuners.lora.layer import Linear

    if type(module) is not Linear or type(module.base_layer) is not torch.nn.Linear:
        return False
    is_usual = list(module.lora_A) == [ADAPTER_NAME] and not module.lora_variant and module.active_adapters
    if not is_usual or not isinstance(module.lora_dropout[ADAPTER_NAME], torch.nn.Identity):
        return False
    up, down, base = module.lora_B[ADAPTER_NAME], module.lora_A[ADAPTER_NAME], module.base_layer
    weights = (base.weight, down.weight, up.weight)
    return up.bias is None and not base.weight.requires_grad and {each.dtype for each in weights} == {torch.float32}


def _forward_of(layer: Any) -> Callable[..., Any]:
    base, down, up = layer.base_layer, layer.lora_A[ADAPTER_NAME], layer.lora_B[ADAPTER_NAME]
    scale = float(layer.scaling[ADAPTER_NAME])

    def forward(states: "torch.Tensor") -> Any:
        return _adapted().apply(states, base.weight, base.bias, down.weight, up.weight, scale)

    return forward


@cache
def _adapted() -> Any:
    import torch
    from torch.autograd.function import once_differentiable

    class Adapted(torch.autograd.Function):
        """(..., inputs) to (..., outputs)."""

        @staticmethod
        def forward(ctx: Any, states: Any, weight: Any, bias: Any, down: Any, up: Any, scale: float) -> Any:
            ctx.save_for_backward(states, weight, down, up)
            ctx.scale = scale
            return torch.nn.functional.linear(states, torch.addmm(weight, up, down, alpha=scale), bias)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, gradient: Any) -> Any:
            states, weight, down, up = ctx.saved_tensors
            into = gradient.reshape(-1, gradient.shape[-1])  # (tokens, outputs)
            given = states.reshape(-1, states.shape[-1])  # (tokens, inputs)
            for_states = None
            if ctx.needs_input_grad[0]:
                for_states = (into @ torch.addmm(weight, up, down, alpha=ctx.scale)).view_as(states)
            for_up = (into.t() @ (given @ down.t())).mul_(ctx.scale)
            for_down = ((into @ up).t() @ given).mul_(ctx.scale)
            return for_states, None, None, for_down, for_up, None

    return Adapted
