"""A BERT encoder's layers in numpy: for a few texts half the CPU time of torch's, and a process without torch.

Devlin et al. 2019, arXiv:1810.04805.  The weights are read where they lie; word embeddings stay in the mapped file, so
that only the rows of words that came up are held.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from serin.core.blas import hold_to_one_thread
from serin.core.errors import InputError
from serin.core.transformer import Array

_EMBEDDINGS = (
    "word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight",
    "LayerNorm.weight", "LayerNorm.bias",
)  # fmt: skip
_LAYER = tuple(
    f"{part}.{kind}"
    for part in (
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
    )
    for kind in ("weight", "bias")
)  # fmt: skip
GELU = frozenset({"gelu", "gelu_new", "gelu_pytorch_tanh"})
Bounds = Sequence[tuple[int, int]]
"""Where each row begins and ends among the tokens of all rows."""


class Bert:
    """The layers of one model folder; safe to share between threads."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        hold_to_one_thread()
        self.num_layers, self.width = int(config["num_hidden_layers"]), int(config["hidden_size"])
        self._num_heads = int(config["num_attention_heads"])
        self._epsilon = np.float32(config.get("layer_norm_eps", 1e-12))
        self._file = folder / "model.safetensors"
        self._layers: dict[int, dict[str, Array]] = {}

    @classmethod
    def load(cls, folder: Path) -> "Bert | None":
        """The model of a folder with ``config.json`` and ``model.safetensors``; None where it is another kind.

        Raises:
            InputError: a file is damaged.
        """
        try:
            return cls._read(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder} cannot be read as a BERT model ({error}): copy its files again.") from error

    @classmethod
    def _read(cls, folder: Path) -> "Bert | None":
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        plain = (
            config.get("model_type") == "bert"
            and config.get("hidden_act", "gelu") in GELU
            and config.get("position_embedding_type", "absolute") == "absolute"
        )
        if not plain:
            return None
        bert = cls(folder, config)
        names = [f"embeddings.{name}" for name in _EMBEDDINGS]
        names += [f"encoder.layer.{number}.{name}" for number in range(bert.num_layers) for name in _LAYER]
        return bert if all(bert._header.get(name, {}).get("dtype") == "F32" for name in names) else None

    def through(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[Array, Bounds]]:
        """After each layer: (tokens of all rows, width), and each row's place there.

        Args:
            rows: token ids with the marks of beginning and end, at least one row and one token in each.
        """
        hidden, bounds = self.embedded(rows)
        for number in range(self.num_layers):
            hidden = self._fed_forward(self.attention(hidden, bounds, number), number)
            yield hidden, bounds

    def embedded(self, rows: Sequence[Sequence[int]]) -> tuple[Array, Bounds]:
        """What the first layer is given."""
        ends = list(itertools.accumulate(map(len, rows)))
        places = np.concatenate([np.arange(len(row)) for row in rows])
        words, positions, kinds, gain, shift = self._embeddings
        hidden = words[np.concatenate([np.asarray(row) for row in rows])]
        hidden += positions[places]
        hidden += kinds[0]
        return self._norm(hidden, gain, shift), list(zip([0, *ends], ends, strict=False))

    def attention(self, hidden: Array, bounds: Bounds, number: int) -> Array:
        """A layer's first half: attention within each row, added and normalised."""
        layer = self._layer(number)
        query, key, value = (_linear(hidden, layer, f"attention.self.{part}") for part in ("query", "key", "value"))
        query *= np.float32((self.width // self._num_heads) ** -0.5)
        mixed = np.empty_like(hidden)
        for start, end in bounds:
            mixed[start:end] = self._mixed(query[start:end], key[start:end], value[start:end])
        return self._added(hidden, _linear(mixed, layer, "attention.output.dense"), layer, "attention.output.LayerNorm")

    def _mixed(self, query: Array, key: Array, value: Array) -> Array:
        query, key, value = (one.reshape(len(one), self._num_heads, -1).swapaxes(0, 1) for one in (query, key, value))
        scores = query @ key.swapaxes(-1, -2)  # (heads, from, to)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        mixed: Array = (scores @ value) / scores.sum(axis=-1, keepdims=True)
        return mixed.swapaxes(0, 1).reshape(-1, self.width)

    def _fed_forward(self, hidden: Array, number: int) -> Array:
        layer = self._layer(number)
        inner = _gelu(_linear(hidden, layer, "intermediate.dense"))
        return self._added(hidden, _linear(inner, layer, "output.dense"), layer, "output.LayerNorm")

    def _added(self, hidden: Array, more: Array, layer: dict[str, Array], norm: str) -> Array:
        more += hidden
        return self._norm(more, layer[f"{norm}.weight"], layer[f"{norm}.bias"])

    def _norm(self, hidden: Array, gain: Array, shift: Array) -> Array:
        hidden -= hidden.mean(axis=-1, keepdims=True)
        hidden /= np.sqrt((hidden**2).mean(axis=-1, keepdims=True) + self._epsilon)
        hidden *= gain
        hidden += shift
        return hidden

    @cached_property
    def _header(self) -> dict[str, Any]:
        """The safetensors format: 8 bytes with the header's size, a JSON header, the data."""
        with self._file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            whole = self._file.stat().st_size
            if 8 + size > whole:
                raise ValueError(f"{self._file.name} is cut off")
            header: dict[str, Any] = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        if 8 + size + max((entry["data_offsets"][1] for entry in header.values()), default=0) > whole:
            raise ValueError(f"{self._file.name} is cut off")
        return {name: {**entry, "begin": 8 + size + entry["data_offsets"][0]} for name, entry in header.items()}

    @cached_property
    def _embeddings(self) -> tuple[Array, ...]:
        def mapped(name: str) -> Array:
            entry = self._header[f"embeddings.{name}"]
            view = np.memmap(self._file, np.float32, mode="r", offset=entry["begin"], shape=tuple(entry["shape"]))
            return np.asarray(view)

        return tuple(map(mapped, _EMBEDDINGS))

    def _layer(self, number: int) -> dict[str, Array]:
        """A layer's arrays, read when it is first used; matrices are turned: their products take a third less time."""
        if number not in self._layers:
            found = {}
            for name in _LAYER:
                entry = self._header[f"encoder.layer.{number}.{name}"]
                count = int(np.prod(entry["shape"]))
                array = np.fromfile(self._file, np.float32, count, offset=entry["begin"]).reshape(entry["shape"])
                found[name] = np.ascontiguousarray(array.T)
            self._layers[number] = found
        return self._layers[number]


def bert_of(folder: Path) -> Bert | None:
    """``Bert.load``, once for all that use a folder in this process while its weights stay the same file."""
    stat = (folder / "model.safetensors").stat()
    return _loaded(folder, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _loaded(folder: Path, mtime_ns: int, size: int) -> Bert | None:
    return Bert.load(folder)


def _linear(hidden: Array, layer: dict[str, Array], name: str) -> Array:
    result: Array = hidden @ layer[f"{name}.weight"]
    result += layer[f"{name}.bias"]
    return result


def _gelu(x: Array) -> Array:
    """GELU by tanh (Hendrycks and Gimpel 2016, arXiv:1606.08415), within 0.0005 of the exact one."""
    inner: Array = x * x
    inner *= np.float32(0.7978845608 * 0.044715)
    inner += np.float32(0.7978845608)
    inner *= x
    np.tanh(inner, out=inner)
    inner += 1
    inner *= x
    inner *= np.float32(0.5)
    return inner
