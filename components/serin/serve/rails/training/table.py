"""The rails' word table: every word piece of MiniLM as MiniLM reads it alone, cut to 64 dimensions.

The pieces' vectors are rotated to their principal axes (the recipe of model2vec, https://github.com/MinishLab/model2vec),
so that meaning learned from a billion sentence pairs costs the endpoint one table look-up.

Run: python -m serin.serve.rails.training.table --output FILE   (two minutes on one core)
"""

import argparse
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from serin.core.embedding import Embedder

DIMENSIONS = 64
BATCH = 512


def main() -> None:
    """Write the table as int8 with one scale per piece."""
    parser = argparse.ArgumentParser(description="Build the rails' word table from MiniLM.")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    vectors = reduce(piece_vectors(Embedder.load(num_threads=1)), DIMENSIONS)
    scales = np.abs(vectors).max(axis=1, keepdims=True) / 127
    codes = np.round(vectors / np.maximum(scales, 1e-9)).astype(np.int8)
    save_file({"codes": codes, "scales": scales[:, 0].astype(np.float16)}, arguments.output)


def piece_vectors(embedder: Embedder) -> np.ndarray:
    """(pieces, 384): mean of MiniLM's output over [CLS] piece [SEP], for each piece of its vocabulary."""
    import torch

    model, tokenizer = embedder._model, embedder._tokenizer
    size = tokenizer.get_vocab_size()
    start, end = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    found = []
    torch.set_num_threads(1)
    with torch.inference_mode():
        for first in range(0, size, BATCH):
            ids = torch.arange(first, min(first + BATCH, size))
            rows = torch.stack([torch.full_like(ids, start), ids, torch.full_like(ids, end)], dim=1)
            found.append(model(input_ids=rows).last_hidden_state.mean(dim=1).numpy())
    return np.concatenate(found)


def reduce(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """Centred, rotated to the principal axes, cut, each axis scaled by the root of its deviation, mean square 1."""
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :dimensions]
    axes *= np.where(axes[np.abs(axes).argmax(axis=0), np.arange(dimensions)] < 0, -1, 1)  # one sign on any machine
    cut = centred @ axes
    cut /= np.sqrt(cut.std(axis=0))
    return cut / np.sqrt((cut**2).mean())


if __name__ == "__main__":
    main()
