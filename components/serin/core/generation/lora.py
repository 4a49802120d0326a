"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685) as PEFT writes them, read for rows of a mixed batch.

An adapter's share of a product is computed from its own rows only, so that rows of other adapters beside them change
nothing.  It is equal bit for bit to a batch of the same rows in which only that adapter occurs, where the matrix
library sums in an order that does not depend on how many rows there are; elsewhere to rounding.
"""

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serin.core.errors import InputError
from serin.core.generation.llama import LlamaForward

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PRODUCTS = {
    "self_attn.q_proj": "qkv",
    "self_attn.k_proj": "qkv",
    "self_attn.v_proj": "qkv",
    "self_attn.o_proj": "out",
    "mlp.gate_proj": "gate_up",
    "mlp.up_proj": "gate_up",
    "mlp.down_proj": "down",
}
"""Modules that an adapter may change, and the joined product that each belongs to."""
KEY = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.([a-z_.]+?)\.lora_([AB])(?:\.default)?\.weight")
UNSUPPORTED = ("use_dora", "fan_in_fan_out", "modules_to_save", "trainable_token_indices", "layer_replication",
               "alora_invocation_tokens", "target_parameters", "lora_bias")  # fmt: skip
_serials = itertools.count(1)


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter that fits a model; made by ``load_adapter``."""

    name: str
    folder: Path
    layers: tuple[dict[str, tuple["torch.Tensor", "torch.Tensor"]], ...]
    """For each layer, by product: (inputs, ranks) and (ranks, outputs), the scale in the latter."""
    salt: str
    """Differs between adapters that were loaded in one process."""


def load_adapter(forward: LlamaForward, name: str, folder: Path) -> Adapter:
    """Read an adapter for a model.

    Args:
        forward: the model's.
        name: selects it in requests.
        folder: adapter_config.json and adapter_model.safetensors.

    Raises:
        InputError: the folder holds no LoRA adapter, one of a kind that cannot be applied here, or one of another
            model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder} cannot be read as a LoRA adapter: {error}") from error
    _check_kind(config, folder)
    pairs: dict[tuple[int, str], dict[str, torch.Tensor]] = {}
    for key, tensor in weights.items():
        match = KEY.fullmatch(key)
        if match is None or match[2] not in PRODUCTS or int(match[1]) >= len(forward.layers):
            raise InputError(f"The adapter in {folder} changes {key}, which cannot be applied to this model.")
        pairs.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor.to(forward.device, forward.dtype)
    layers: list[dict[str, Any]] = [{} for _ in forward.layers]
    for number, product in sorted({(layer, PRODUCTS[module]) for layer, module in pairs}):
        layers[number][product] = _product(forward, number, product, pairs, config, folder)
    return Adapter(name, folder, tuple(layers), f"{name}#{next(_serials)}")


def _check_kind(config: dict[str, Any], folder: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise InputError(f"{folder} holds an adapter of kind {config.get('peft_type')}: only LoRA can be applied.")
    if config.get("bias", "none") != "none":
        raise InputError(f"The adapter in {folder} changes biases, which cannot be applied: train it with bias='none'.")
    for name in UNSUPPORTED:
        if config.get(name):
            raise InputError(f"The adapter in {folder} uses {name}, which cannot be applied here: merge it instead.")


def _product(
    forward: LlamaForward,
    layer: int,
    product: str,
    pairs: dict[tuple[int, str], dict[str, "torch.Tensor"]],
    config: dict[str, Any],
    folder: Path,
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """The low-rank pair of a joined product: the ranks of its modules side by side."""
    import torch

    modules = [module for module, joined in PRODUCTS.items() if joined == product]
    inputs, outputs = _product_weight(forward, layer, product).shape
    sizes = _module_sizes(forward, product, outputs)
    downs, ups, start = [], [], 0
    for module, size in zip(modules, sizes, strict=True):
        pair = pairs.get((layer, module))
        if pair is not None:
            if set(pair) != {"A", "B"} or pair["A"].shape[1] != inputs or pair["B"].shape[0] != size:
                raise InputError(f"The adapter in {folder} does not fit this model: layer {layer}, {module}.")
            rank = pair["A"].shape[0]
            up = torch.zeros(rank, outputs, dtype=forward.dtype, device=forward.device)
            up[:, start : start + size] = pair["B"].t() * _scale(config, f"model.layers.{layer}.{module}", rank)
            downs.append(pair["A"].t())
            ups.append(up)
        start += size
    return torch.cat(downs, 1).contiguous(), torch.cat(ups, 0)


def _product_weight(forward: LlamaForward, layer: int, product: str) -> "torch.Tensor":
    weights = forward.layers[layer]
    return {"qkv": weights.qkv, "out": weights.out, "gate_up": weights.gate_up, "down": weights.down}[product]


def _module_sizes(forward: LlamaForward, product: str, outputs: int) -> list[int]:
    if product == "qkv":
        return [heads * forward.width for heads in (forward.num_heads, forward.num_kv_heads, forward.num_kv_heads)]
    return [outputs // 2] * 2 if product == "gate_up" else [outputs]


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """PEFT's scale; a pattern names modules by the end of their name."""
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
            break
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
