"""The torch twin of ``rails.encoder``: trained here, shipped as plain arrays."""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from serin.serve.rails.encoder import HEADS, WINDOW

logger = logging.getLogger(__name__)

WIDTH = 64
INNER = 128
LAYERS = 2
MAX_BATCH_PIECES = 8192


class Layer(nn.Module):
    """Pre-norm self-attention and a ReLU pair."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.f1, self.f2 = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.drop = nn.Dropout(0.1)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        rows, length, _ = hidden.shape
        query, key, value = (
            self.qkv(self.n1(hidden)).reshape(rows, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        hidden = hidden + self.drop(self.o(mixed.transpose(1, 2).reshape(rows, length, WIDTH)))
        return hidden + self.drop(self.f2(torch.relu(self.f1(self.n2(hidden)))))


class Student(nn.Module):
    """Word table -> layers -> (rows, 2 * width)."""

    def __init__(self, table: Tensor, outputs: int) -> None:
        super().__init__()
        self.table: Tensor
        self.register_buffer("table", table)
        self.entry = nn.Linear(table.shape[1], WIDTH, bias=False)
        self.position = nn.Parameter(torch.randn(WINDOW, WIDTH) * 0.02)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(2 * WIDTH, outputs)

    def pool(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (rows, pieces), mask the same -> (rows, 2 * width)."""
        hidden = self.entry(self.table[ids]) + self.position[: ids.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, mask)
        hidden = self.norm(hidden)
        weight = mask[:, :, None].float()
        mean = (hidden * weight).sum(1) / weight.sum(1)
        most = hidden.masked_fill(~mask[:, :, None], -1e4).max(dim=1).values
        return torch.cat([mean, most], dim=1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.drop(self.pool(ids, mask)))

    def body(self) -> dict[str, np.ndarray]:
        """Everything but the table and the head, under the names that ``rails.encoder`` reads."""
        found = {"in.w": self.entry.weight.T, "position": self.position, "layers": torch.tensor([float(LAYERS)])}
        for i, layer in enumerate(self.layers):
            for name in ("qkv", "o", "f1", "f2"):
                found[f"l{i}.{name}.w"] = getattr(layer, name).weight.T
                found[f"l{i}.{name}.b"] = getattr(layer, name).bias
            for name in ("n1", "n2"):
                found[f"l{i}.{name}.g"] = getattr(layer, name).weight
                found[f"l{i}.{name}.b"] = getattr(layer, name).bias
        found |= {"out.g": self.norm.weight, "out.b": self.norm.bias}
        return {key: value.detach().numpy().copy() for key, value in found.items()}


def load_table(path: Path) -> Tensor:
    """The word table as float32."""
    stored = load_file(path)
    return torch.from_numpy(stored["codes"].astype(np.float32) * stored["scales"].astype(np.float32)[:, None])


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
