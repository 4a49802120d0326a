"""Initial weights that copy: how the tiny base can learn in a minute to answer from passages.

To answer with a price that stands in a passage, a model looks for an earlier place where the text went as it goes now
and repeats what followed there: an induction head (Olsson et al., 2022, "In-context Learning and Induction Heads").
From random weights a million-parameter model does not find that circuit within the demo's few hundred steps, so it
starts with it: one head of layer 0 looks at the previous token, and the heads of layer 1 look for tokens whose
predecessor resembles the current token and copy them.  Everything stays trainable.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

EMBEDDING_STD = 0.12
COPY_GAIN = 2.0
"""How loudly a copied token is written, relative to an embedding."""
MATCH_GAIN = 2.5
"""How sharply a token is compared with the predecessors of the others."""
PREVIOUS_SHARPNESS = 7.0
"""How sharply the first head looks at the previous token."""
NUM_FAST = 6
"""Rotary frequencies that tell neighbours apart, the fastest ones."""
SLOWEST_TURN = 0.01
"""Radians a token: rotary frequencies below it are blind to distance and carry content."""
QUIET = 0.1


def start_copying(model: Any) -> None:
    """Set the attention weights of the first two layers of a Llama with attention biases, in place.

    The random state of torch decides the directions.

    Args:
        model: a ``LlamaForCausalLM`` with as many key heads as heads, two layers at least.
    """
    import torch

    config = model.config
    width, num_heads = config.hidden_size, config.num_attention_heads
    size = width // num_heads
    turns = config.rope_parameters["rope_theta"] ** (-torch.arange(size // 2) / (size // 2))  # radians a token
    read, write = _orthogonal(size, width), _orthogonal(width, size)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, EMBEDDING_STD)
        _look_back(model.model.layers[0].self_attn, turns, read, write)
        _match_and_copy(model.model.layers[1].self_attn, turns, read, write, num_heads)


def _look_back(attention: Any, turns: "torch.Tensor", read: "torch.Tensor", write: "torch.Tensor") -> None:
    """Head 0 looks at the previous token and writes its content where layer 1 looks for it."""
    import torch

    half, size = len(turns), 2 * len(turns)
    fast = min(NUM_FAST, half)
    query, key = torch.zeros(size), torch.zeros(size)
    query[:fast] = PREVIOUS_SHARPNESS
    # The query turned by one position: the two are parallel when the key stands one position earlier.
    key[:fast] = PREVIOUS_SHARPNESS * torch.cos(turns[:fast])
    key[half : half + fast] = PREVIOUS_SHARPNESS * torch.sin(turns[:fast])
    attention.q_proj.weight[:size] *= QUIET
    attention.k_proj.weight[:size] *= QUIET
    attention.q_proj.bias[:size], attention.k_proj.bias[:size] = query, key
    attention.v_proj.weight[:size] = read
    attention.o_proj.weight[:, :size] = write * EMBEDDING_STD


def _match_and_copy(
    attention: Any, turns: "torch.Tensor", read: "torch.Tensor", write: "torch.Tensor", num_heads: int
) -> None:
    """Every head compares the current token with the others' predecessors, in random directions, and copies."""
    import torch

    half, size = len(turns), 2 * len(turns)
    slow = torch.arange(half)[turns < SLOWEST_TURN]
    slow = torch.cat([slow, slow + half])
    values = _orthogonal(size * num_heads, size * num_heads)
    for head in range(num_heads):
        rows = slice(head * size, (head + 1) * size)
        chosen = torch.randperm(size)[: len(slow)]
        query, key = torch.zeros(size, values.shape[1]), torch.zeros(size, values.shape[1])
        query[slow], key[slow] = read[chosen], write.T[chosen]
        attention.q_proj.weight[rows], attention.k_proj.weight[rows] = query * MATCH_GAIN, key * MATCH_GAIN
        attention.v_proj.weight[rows] = values[rows]
        attention.o_proj.weight[:, rows] = values[rows].T * EMBEDDING_STD * COPY_GAIN


def _orthogonal(rows: int, columns: int) -> "torch.Tensor":
    """A random matrix (rows, columns) whose rows or columns, whichever are shorter, are orthonormal."""
    import torch

    side = max(rows, columns)
    square: torch.Tensor = torch.linalg.qr(torch.randn(side, side))[0]
    return square[:rows, :columns]
