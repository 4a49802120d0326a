"""Digests of values, files and source code: what identity means in Serin."""

import hashlib
import json
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text.

    Raises:
        ValueError: a float is NaN or infinite.
        TypeError: a value has no JSON form.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """Lower-case SHA-256 hex of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_of_text(text: str) -> str:
    """Lower-case SHA-256 hex of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """Lower-case SHA-256 hex of a file, read in chunks of 1 MiB."""
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


@cache
def code_version(stage: str | None = None) -> str:
    """Digest of the installed source code.

    With ``stage`` it covers ``core`` and that stage's package only.  Stages import core and never each other
    (import-linter holds them to it), so nothing else can change what a stage computes: editing one stage
    recomputes that stage and what lies downstream of it.  Without ``stage`` it covers both packages.

    Returns:
        The first 16 hex digits of the SHA-256 over (relative path, file digest) pairs.
    """
    serin = files("serin")
    roots = [serin / "core", serin / stage] if stage is not None else [serin, files("serin_pipelines")]
    listing = [entry for root in roots for entry in _sources(root, root.name)]
    return digest_of(sorted(listing))[:16]


def _sources(folder: Traversable, prefix: str) -> list[tuple[str, str]]:
    found = []
    for child in folder.iterdir():
        name = f"{prefix}/{child.name}"
        if child.is_dir() and child.name != "__pycache__":
            found += _sources(child, name)
        elif child.name.endswith((".py", ".yaml", ".safetensors")):
            found.append((name, hashlib.sha256(child.read_bytes()).hexdigest()))
    return found
