"""What a step used: which devices, and how much memory."""

import os
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def usage_of(device: "torch.device", num_devices: int) -> dict[str, Any]:
    """The devices' name and number, and memory in bytes, of the process that asks: rank 0's speaks for all.

    Returns:
        ``device``, ``num_devices``, ``memory_bytes`` (what the process holds now), and on a GPU
        ``cuda_memory_bytes`` (the most that its tensors held since the process began).
    """
    import torch

    usage = {
        "device": _name(device),
        "num_devices": num_devices,
        "memory_bytes": _process(os.getpid()).memory_info().rss,
    }
    if device.type == "cuda":
        usage["cuda_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return usage


@cache
def _name(device: "torch.device") -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@cache
def _process(pid: int) -> Any:
    import psutil  # PEFT needs it too

    return psutil.Process(pid)
