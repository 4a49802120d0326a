"""A model folder's weights for decoding, read without transformers' model classes.

Those bring hundreds of modules with them, which an engine would carry for nothing.  Only the plainest folders are
read this way; for any other the answer is None and the library's classes load it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serin.core.errors import InputError
from serin.core.generation.llama import MODEL_TYPES, Layer, LlamaForward, Weights, joined_head_norms
from serin.core.generation.rows import UNLIMITED

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

PLAIN_TOKENIZERS = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})
"""Classes that do what tokenizer.json says and no more."""
HEAD_BYTES = 64 << 20
"""Embeddings up to this size are copied for the output, in the layout that is faster there."""


@dataclass(frozen=True)
class Bare:
    """What decoding needs of a model folder."""

    forward: LlamaForward
    tokenizer: "PreTrainedTokenizerBase"
    max_context: int
    end_ids: Any
    """As the folder has them: a number, a list or None."""


def load_bare(model_dir: Path, num_threads: int | None) -> Bare | None:
    """Read a folder, or None where it is not plain enough.

    Raises:
        InputError: a file is damaged.
    """
    import torch

    try:
        config, generation = _json(model_dir / "config.json"), _json(model_dir / "generation_config.json")
        if not (
            _is_plain(config) and _json(model_dir / "tokenizer_config.json").get("tokenizer_class") in PLAIN_TOKENIZERS
        ):
            return None
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        tensors = _tensors(model_dir, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        weights = _weights(config, tensors)
        del tensors
        if weights is None:
            return None
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{model_dir} cannot be loaded as a causal language model: {error}") from error
    if not tokenizer.chat_template:
        raise InputError(f"The tokenizer in {model_dir} has no chat template: add chat_template.jinja to it.")
    context = int(config.get("max_position_embeddings") or UNLIMITED)
    forward = LlamaForward(weights)
    forward.pack()
    return Bare(forward, tokenizer, context, generation.get("eos_token_id", config.get("eos_token_id")))


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _is_plain(config: dict[str, Any]) -> bool:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return (
        config.get("model_type") in MODEL_TYPES
        and config.get("hidden_act") == "silu"
        and rope.get("rope_type", rope.get("type", "default")) == "default"
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and ("rope_theta" in rope or "rope_theta" in config)
        and not (config.get("sliding_window") and config.get("use_sliding_window", True))
        and not any(config.get(name) for name in ("quantization_config", "auto_map"))
        and all(name in config for name in ("num_attention_heads", "num_key_value_heads", "num_hidden_layers"))
    )


def _tensors(model_dir: Path, device: "torch.device") -> dict[str, "torch.Tensor"]:
    """All tensors in float32, by name.

    The safetensors format (github.com/huggingface/safetensors) is read here rather than mapped, since mapped pages
    would count as memory beside the copies: 8 bytes with the header's size, a JSON header, the data.
    """
    import numpy as np
    import torch

    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(model_dir.glob("*.safetensors")):
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            if size > file.stat().st_size:
                raise ValueError(f"{file.name} is cut off.")
            header = json.loads(opened.read(size))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                if entry["dtype"] not in kinds:
                    raise ValueError(f"{name} is of type {entry['dtype']}, which cannot be decoded with.")
                start, end = entry["data_offsets"]
                opened.seek(8 + size + start)
                data = torch.from_numpy(np.fromfile(opened, np.uint8, end - start))
                tensors[name] = data.view(kinds[entry["dtype"]]).view(entry["shape"]).to(device, torch.float32)
    return tensors


def _weights(config: dict[str, Any], tensors: dict[str, "torch.Tensor"]) -> Weights | None:
    """The weights, or None where a name is missing or left over."""
    import torch

    num_heads, num_kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
    try:
        embedding, norm = tensors.pop("model.embed_tokens.weight"), tensors.pop("model.norm.weight")
        layers = [_layer(tensors, number, num_heads, num_kv_heads) for number in range(config["num_hidden_layers"])]
    except KeyError:
        return None
    head = tensors.pop("lm_head.weight", None)
    if tensors or (head is None) != bool(config.get("tie_word_embeddings")):
        return None
    width = int(config.get("head_dim") or embedding.shape[1] // num_heads)
    rope = config.get("rope_parameters") or {}
    theta = float(rope.get("rope_theta") or config["rope_theta"])
    frequencies = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32, device=embedding.device) / width)

    def rotary(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Su et al. 2021, arXiv:2104.09864, with the halves of a head as pairs."""
        angles = (positions[:, None].float() * frequencies).repeat(1, 2)
        return angles.cos(), angles.sin()

    return Weights(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        width=width,
        scale=width**-0.5,
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        activation=torch.nn.functional.silu,
        rotary=rotary,
        embedding=embedding,
        head=_fast_head(embedding) if head is None else _wide(head).t(),
        norm=norm,
        layers=layers,
    )


def _layer(tensors: dict[str, "torch.Tensor"], number: int, num_heads: int, num_kv_heads: int) -> Layer:
    import torch

    def take(name: str, kind: str = "weight") -> "torch.Tensor":
        return tensors.pop(f"model.layers.{number}.{name}.{kind}")

    def joined_bias(*names: str) -> "torch.Tensor | None":
        biased = f"model.layers.{number}.{names[0]}.bias" in tensors
        return torch.cat([take(name, "bias") for name in names]) if biased else None

    projections = [f"self_attn.{name}_proj" for name in "qkv"]
    normed = f"model.layers.{number}.self_attn.q_norm.weight" in tensors
    return Layer(
        norm=take("input_layernorm"),
        qkv=_wide(torch.cat([take(name) for name in projections])),
        qkv_bias=joined_bias(*projections),
        head_norm=(
            joined_head_norms(take("self_attn.q_norm"), take("self_attn.k_norm"), num_heads, num_kv_heads)
            if normed
            else None
        ),
        out=take("self_attn.o_proj").t(),
        out_bias=joined_bias("self_attn.o_proj"),
        mlp_norm=take("post_attention_layernorm"),
        gate_up=_wide(torch.cat((take("mlp.gate_proj"), take("mlp.up_proj")))),
        gate_up_bias=joined_bias("mlp.gate_proj", "mlp.up_proj"),
        down=take("mlp.down_proj").t(),
        down_bias=joined_bias("mlp.down_proj"),
    )


def _wide(weight: "torch.Tensor") -> "torch.Tensor":
    """(outputs, inputs) as (inputs, outputs) in memory too.

    For few rows and more outputs than inputs the product takes half to two thirds of the time that way.
    """
    return weight.t().contiguous()


def _fast_head(embedding: "torch.Tensor") -> "torch.Tensor":
    """The output weights of a model that has none of its own: a copy where that costs little memory."""
    return _wide(embedding).t() if embedding.nbytes <= HEAD_BYTES else embedding
