"""One transformer layer in numpy, for networks so small that a few milliseconds on a CPU suffice."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

HEADS = 4

Array = np.ndarray
Weights = Mapping[str, Array]


def load_weights(path: Path) -> dict[str, Array]:
    """Weights by name; half precision becomes float32."""
    from safetensors.numpy import load_file

    return {
        key: value if value.dtype == np.int8 else value.astype(np.float32) for key, value in load_file(path).items()
    }


def apply_layers(hidden: Array, mask: Array, weights: Weights) -> Array:
    """All layers and the last norm.

    Args:
        hidden: (rows, pieces, width).
        mask: (rows, pieces), 1 where a piece stands and 0 on padding.
        weights: ``layers`` (how many), ``l0.qkv.w``, ..., ``out.g``, ``out.b``.
    """
    bias = ((mask - 1) * 1e4)[:, None, None, :]
    for layer in range(int(weights["layers"][0])):
        hidden = _layer(
            hidden, bias, {key[3:]: value for key, value in weights.items() if key.startswith(f"l{layer}.")}
        )
    return _norm(hidden, weights["out.g"], weights["out.b"])


def _layer(hidden: Array, bias: Array, weights: Weights) -> Array:
    rows, length, width = hidden.shape
    one = _norm(hidden, weights["n1.g"], weights["n1.b"]) @ weights["qkv.w"] + weights["qkv.b"]
    query, key, value = one.reshape(rows, length, 3, HEADS, width // HEADS).transpose(2, 0, 3, 1, 4)
    scores = query @ key.swapaxes(-1, -2) * np.float32((width // HEADS) ** -0.5) + bias  # (rows, heads, from, to)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ value
    hidden = hidden + mixed.transpose(0, 2, 1, 3).reshape(rows, length, width) @ weights["o.w"] + weights["o.b"]
    inner = np.maximum(_norm(hidden, weights["n2.g"], weights["n2.b"]) @ weights["f1.w"] + weights["f1.b"], 0)
    result: Array = hidden + inner @ weights["f2.w"] + weights["f2.b"]
    return result


def _norm(hidden: Array, gain: Array, shift: Array) -> Array:
    centred = hidden - hidden.mean(axis=-1, keepdims=True)
    result: Array = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(1e-5)) * gain + shift
    return result
