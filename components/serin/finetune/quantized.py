"""QLoRA's base in 4 bits: whether this machine can, and the options that load it so.

4-bit NormalFloat with double quantisation, computed in bf16 (Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from serin.core.errors import UnavailableError

if TYPE_CHECKING:
    import torch


def require_quantization() -> None:
    """Refuse a machine that cannot train on a base in 4 bits.

    Raises:
        UnavailableError: there is no GPU, or no bitsandbytes; says what to do.
    """
    import torch

    if not torch.cuda.is_available():
        raise UnavailableError("Method qlora needs a GPU and this machine has none: set finetune.method to lora.")
    if find_spec("bitsandbytes") is None:
        raise UnavailableError(
            "Method qlora needs the package bitsandbytes, which is not installed: install it, or set finetune.method "
            "to lora."
        )


def quantized_options(device: "torch.device") -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for a base in 4 bits on a device; the output layer stays as it is."""
    import torch
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": quantization, "device_map": {"": device}, "dtype": torch.bfloat16}
