"""The torch twin of ``rails.encoder``: trained here, shipped as plain arrays."""

import numpy as np
import torch
from torch import Tensor, nn

from serin.core.transformer_training import Layer, layer_arrays
from serin.serve.rails.encoder import WINDOW

WIDTH = 64
INNER = 128
LAYERS = 2
DROPOUT = 0.1


class Student(nn.Module):
    """Word table -> layers -> (rows, 2 * width)."""

    def __init__(self, table: Tensor, outputs: int) -> None:
        super().__init__()
        self.table: Tensor
        self.register_buffer("table", table)
        self.entry = nn.Linear(table.shape[1], WIDTH, bias=False)
        self.position = nn.Parameter(torch.randn(WINDOW, WIDTH) * 0.02)
        self.layers = nn.ModuleList(Layer(WIDTH, INNER, DROPOUT) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.drop = nn.Dropout(DROPOUT)
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
        own = {"in.w": self.entry.weight.T, "position": self.position}
        return {
            **{key: value.detach().numpy().copy() for key, value in own.items()},
            **layer_arrays(self.layers, self.norm),
        }
