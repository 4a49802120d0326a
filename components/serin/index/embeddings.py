"""Embeddings that are computed once: a cache in the store, keyed by H(text) below the embedder's fingerprint.

The cache is a set of immutable shards, ``embeddings/<fingerprint>/<digest of its keys>.npz``, each written in one
step while a build goes on.  So a killed build continues where it was, and a later one embeds only what is new.
"""

import hashlib
import io
import logging
import zipfile
from collections.abc import Callable, Sequence

import numpy as np

from serin.core.embedding import Embedder
from serin.core.storage import Storage

logger = logging.getLogger(__name__)

SHARD_TEXTS = 512


def embed(
    texts: Sequence[str],
    fingerprint: str,
    load: Callable[[], Embedder],
    storage: Storage,
    progress: Callable[[int, int], None],
) -> tuple[np.ndarray, int]:
    """Embed texts, each distinct one at most once in the life of the store.

    Args:
        texts: what to embed.
        fingerprint: the embedder's.
        load: loads it, when the cache lacks something.
        storage: where the cache is.
        progress: called with how many distinct texts are done, and how many there are.

    Returns:
        (texts, dimensions) float32, and how many texts had to be computed.
    """
    prefix = f"embeddings/{fingerprint[:24]}"
    distinct = {hashlib.sha256(text.encode()).digest(): text for text in texts}
    known = _read_shards(storage, prefix, set(distinct))
    # Sorted by length the encoder wastes little on padding; the key makes the order, and so each shard, repeatable.
    missing = sorted(set(distinct) - set(known), key=lambda key: (len(distinct[key]), key))
    embedder = load() if missing else None
    for start in range(0, len(missing), SHARD_TEXTS):
        assert embedder is not None
        progress(len(known), len(distinct))
        keys = missing[start : start + SHARD_TEXTS]
        vectors = embedder.encode([distinct[key] for key in keys])
        _write_shard(storage, prefix, keys, vectors)
        known.update(zip(keys, vectors, strict=True))
    progress(len(distinct), len(distinct))
    return np.stack([known[hashlib.sha256(text.encode()).digest()] for text in texts]), len(missing)


def _write_shard(storage: Storage, prefix: str, keys: list[bytes], vectors: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, keys=np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 32), vectors=vectors)
    storage.write(f"{prefix}/{hashlib.sha256(b''.join(keys)).hexdigest()[:24]}.npz", buffer.getvalue())


def _read_shards(storage: Storage, prefix: str, wanted: set[bytes]) -> dict[bytes, np.ndarray]:
    known: dict[bytes, np.ndarray] = {}
    for name in storage.keys(f"{prefix}/"):
        try:
            shard = np.load(io.BytesIO(storage.read(name)), allow_pickle=False)
            keys, vectors = [row.tobytes() for row in shard["keys"]], shard["vectors"]
        except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile):
            logger.warning("The embedding cache's %s is damaged: its texts are embedded again.", name)
            continue
        known.update((key, vector) for key, vector in zip(keys, vectors, strict=False) if key in wanted)
    return known
