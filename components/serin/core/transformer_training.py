"""The torch twin of ``core.transformer``: networks are trained here and shipped as plain arrays."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from serin.core.pieces import table
from serin.core.transformer import HEADS

logger = logging.getLogger(__name__)


class Layer(nn.Module):
    """Pre-norm self-attention and a ReLU pair."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.f1, self.f2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden (rows, pieces, width), mask (rows, pieces) -> as hidden."""
        rows, length, width = hidden.shape
        query, key, value = (
            self.qkv(self.n1(hidden)).reshape(rows, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        hidden = hidden + self.drop(self.o(mixed.transpose(1, 2).reshape(rows, length, width)))
        return hidden + self.drop(self.f2(torch.relu(self.f1(self.n2(hidden)))))


def table_tensor() -> Tensor:
    """``pieces.table`` as a tensor of its own."""
    return torch.from_numpy(table().copy())


def layer_arrays(layers: Iterable[nn.Module], norm: nn.LayerNorm) -> dict[str, np.ndarray]:
    """Layers and the last norm under the names that ``transformer.apply_layers`` reads."""
    named: dict[str, Tensor] = {}
    number = -1
    for number, layer in enumerate(layers):
        for name in ("qkv", "o", "f1", "f2"):
            named[f"l{number}.{name}.w"] = getattr(layer, name).weight.T
            named[f"l{number}.{name}.b"] = getattr(layer, name).bias
        for name in ("n1", "n2"):
            named[f"l{number}.{name}.g"] = getattr(layer, name).weight
            named[f"l{number}.{name}.b"] = getattr(layer, name).bias
    named |= {"layers": torch.tensor([number + 1.0]), "out.g": norm.weight, "out.b": norm.bias}
    return {key: value.detach().numpy().copy() for key, value in named.items()}


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(ids, mask) of some rows."""
    length = max(1, *(len(row) for row in rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(list(row), dtype=torch.long)
        mask[i, : len(row)] = True
    mask[:, 0] = True
    return ids, mask


def train(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Adam with a warm-up and a cosine; ``loss_of(ids, mask, indices)`` is the mean loss of some rows.

    Batches hold rows of like length, drawn anew in each pass.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    scale = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(1, step / steps)))
    )
    model.train()
    step, lengths = 0, torch.tensor([len(row) for row in rows])
    while step < steps:
        order = torch.randperm(len(rows), generator=generator)
        blocks = [block[lengths[block].argsort()] for block in order.split(batch * 16)]
        batches = [one for block in blocks for one in block.split(batch)]
        for at in torch.randperm(len(batches), generator=generator).tolist():
            indices = batches[at]
            loss = loss_of(*padded([rows[i] for i in indices.tolist()]), indices)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            scale.step()
            step += 1
            if step % 200 == 0:
                logger.info("step %d: loss %.4f", step, loss.item())
            if step == steps:
                break
    model.eval()


def save(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Write arrays as float16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: np.ascontiguousarray(value, dtype=np.float16) for key, value in sorted(arrays.items())}, path)
