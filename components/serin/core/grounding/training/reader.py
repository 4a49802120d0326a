"""Train the reader and the deep score: ``python -m serin.core.grounding.training.reader --data DIR``.

Writes ``reader.safetensors`` (the network) and ``deep.safetensors`` (the logistic models over its features), in about
four minutes beside other work; ``--fit-only`` leaves the network as it is.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from serin.core.grounding import reader
from serin.core.grounding.model import DEEP_WEIGHTS
from serin.core.grounding.reader import AROUND, LABELS, NUM_FEATURES, POSITIONS, Row, apply_network, padded_rows, row_of
from serin.core.grounding.training.claims import Claim, claims, kinds_of
from serin.core.grounding.training.examples import Example, examples
from serin.core.grounding.training.fit import fit
from serin.core.transformer import load_weights
from serin.core.transformer_training import Layer, layer_arrays, save, table_tensor, train

logger = logging.getLogger(__name__)

SEED = 7
NUM_CLAIMS, NUM_TEST = 21_000, 900
WIDTH, INNER, LAYERS = 64, 128, 2
BATCH, STEPS, LEARNING_RATE = 64, 630, 4e-3
FALSE_WEIGHT = 3.0
"""A false piece counts as so many others."""


def main() -> None:
    """Make the claims, train and write the network, and fit the models over its features."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the public sets")
    parser.add_argument("--fit-only", action="store_true", help="keep the network, fit the models over it")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    if not options.fit_only:
        found = claims(options.data, NUM_CLAIMS + NUM_TEST, SEED)
        logger.info("%s", kinds_of(found))
        network = train_reader(found[NUM_TEST:], STEPS)
        save(network.arrays(), reader.WEIGHTS)
        logger.info("%s", {kind: round(value, 3) for kind, value in separations(found[:NUM_TEST]).items()})
    about = {
        "data": "BEGIN dev tc (CDLA-Sharing-1.0) and wow (CC BY 4.0); MTRAG dev (Apache-2.0) and changes made of it",
        "seed": "0",
    }
    fit([deepened_example(one) for one in examples(options.data)]).save(DEEP_WEIGHTS, about)


class Reader(nn.Module):
    """The torch twin of ``reader.apply_network``."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor
        self.register_buffer("table", table_tensor())
        self.entry = nn.Linear((2 * AROUND + 1) * self.table.shape[1], WIDTH, bias=False)
        self.feature = nn.Linear(3 * NUM_FEATURES, WIDTH)
        self.position = nn.Parameter(torch.randn(POSITIONS, WIDTH) * 0.02)
        self.layers = nn.ModuleList(Layer(WIDTH, INNER, dropout=0.0) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.drop = nn.Dropout(0.05)
        self.head = nn.Linear(WIDTH, len(LABELS))

    def forward(self, ids: Tensor, features: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """See ``reader.padded_rows`` for the arguments -> (rows, pieces, labels), logits."""
        hidden = self.entry(_beside(self.table[ids] * mask[:, :, None], AROUND)) + self.feature(_beside(features, 1))
        hidden = self.drop(hidden + self.position[positions])
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return self.head(self.norm(hidden))

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything but the table, under the names that ``reader.apply_network`` reads."""
        own = {
            "in.w": self.entry.weight.T, "feature.w": self.feature.weight.T, "feature.b": self.feature.bias,
            "position": self.position, "head.w": self.head.weight.T, "head.b": self.head.bias,
        }  # fmt: skip
        return {key: value.detach().numpy().copy() for key, value in own.items()} | layer_arrays(self.layers, self.norm)


def train_reader(found: Sequence[Claim], steps: int) -> Reader:
    """A network trained on claims."""
    torch.manual_seed(SEED)
    network, rows = Reader(), [row_of(claim.pieces, claim.evidence) for claim in found]
    weights = torch.tensor([1.0, 1.0, FALSE_WEIGHT])

    def loss_of(ids: Tensor, mask: Tensor, indices: Tensor) -> Tensor:
        chosen = indices.tolist()
        labels = torch.full(ids.shape, -100)
        for at, index in enumerate(chosen):
            labels[at, : len(found[index].labels)] = torch.tensor(found[index].labels)
        logits = network(*tensors([rows[index] for index in chosen]))
        return nn.functional.cross_entropy(logits.view(-1, len(LABELS)), labels.view(-1), weight=weights)

    train(
        network, [row.ids.tolist() for row in rows], loss_of,
        steps=steps, batch=BATCH, learning_rate=LEARNING_RATE, seed=SEED,
    )  # fmt: skip
    return network


def tensors(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``reader.padded_rows`` for torch."""
    ids, features, positions, mask = (torch.from_numpy(array) for array in padded_rows(rows))
    return ids, features, positions, mask.bool()


def separations(found: Sequence[Claim]) -> dict[str, float]:
    """For each kind of claim, the chance that its most doubtful piece is more so than that of a true claim."""
    most: dict[str, list[tuple[float, float]]] = {}
    weights = load_weights(reader.WEIGHTS)
    for claim in found:
        logs = apply_network(*padded_rows([row_of(claim.pieces, claim.evidence)]), weights)[0][: len(claim.pieces)]
        most.setdefault(claim.kind, []).append((float(logs[:, 2].max()), float(-logs[:, 0].min())))
    found_of: dict[str, float] = {}
    for kind, values in most.items():
        true = most["answered" if kind.startswith("answered") else "true"]
        which = 1 if kind in ("gone", "half", "other") else 0
        higher = [(a[which] > b[which]) + (a[which] == b[which]) / 2 for a in values for b in true]
        found_of[kind] = sum(higher) / len(higher)
    return found_of


def deepened_example(one: Example) -> Example:
    """The example with the reader's features at its places."""
    words = reader.word_logits(one.reading.words, one.answer, one.context)
    sites = tuple(reader.deepened_site(site, words) for site in one.reading.sites)
    changed = tuple(reader.deepened_site(site, words) for site in one.changed)
    return replace(one, reading=replace(one.reading, sites=sites), changed=changed)


def _beside(values: Tensor, reach: int) -> Tensor:
    wide, length = nn.functional.pad(values, (0, 0, reach, reach)), values.shape[1]
    return torch.cat([wide[:, at : at + length] for at in range(2 * reach + 1)], dim=-1)


if __name__ == "__main__":
    main()
