"""Bases: where the weights that fine-tuning starts from come from.

``serin://tiny``, a Hugging Face id (``org/name``), a local folder, or ``s3://``.  Weights are read from safetensors
only, and no code of the model's folder is ever run.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from serin.core.digests import digest_of, digest_of_file
from serin.core.errors import ConfigError, InputError, UnavailableError
from serin.core.storage import disk_errors, is_remote, local_path, storage_for

logger = logging.getLogger(__name__)

TINY = "serin://tiny"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
NAMED_FILES = 8


@dataclass(frozen=True)
class BaseFolder:
    """A base on this machine that was found to be usable."""

    name: str
    """As the user wrote it."""
    path: Path
    files: tuple[str, ...]
    """What belongs to it."""

    def digest(self) -> str:
        """Digest of its files' content."""
        return digest_of({name: digest_of_file(self.path / name) for name in self.files})

    def copy_to(self, folder: Path) -> None:
        """Copy its files."""
        with disk_errors(folder):
            for name in self.files:
                shutil.copyfile(self.path / name, folder / name)


@contextmanager
def resolved(base_model: str) -> Iterator[BaseFolder]:
    """The base's folder on this machine, checked; a copy from S3 lives until the context ends.

    Raises:
        ConfigError: the name is of no known kind.
        InputError: the folder lacks config.json, safetensors, a tokenizer or a chat template.
        UnavailableError: the hub cannot be reached and there is no copy of the model on this machine.
    """
    if base_model.startswith("s3://"):
        with _fetched(base_model) as path:
            yield check_folder(base_model, path)
        return
    if not base_model or (is_remote(base_model) and base_model != TINY):
        raise ConfigError(
            f"Base model {base_model!r} is of no known kind: give {TINY}, a Hugging Face id, a folder or s3://."
        )
    path = local_path(base_model)
    looks_local = base_model.startswith(("file://", "/", ".", "~")) or path.exists()
    yield check_folder(base_model, path if looks_local else _from_hub(base_model))


def check_folder(name: str, path: Path) -> BaseFolder:
    """Check that a folder is a base that can be trained and served.

    Raises:
        InputError: naming what is missing and what was found.
    """
    if not path.is_dir():
        raise InputError(f"Base model {name!r} is not a folder: give one with config.json and {WEIGHTS}.")
    found = sorted(file.name for file in path.iterdir() if file.is_file())
    if "config.json" not in found:
        raise InputError(f"Base model {name!r} has no config.json ({_listed(found)}): give a Hugging Face folder.")
    weights = _weights(name, path, found)
    _check_architecture(name, path)
    _check_tokenizer(name, path)
    return BaseFolder(name, path, (*(file for file in SMALL_FILES if file in found), *weights))


def _weights(name: str, path: Path, found: Sequence[str]) -> list[str]:
    if WEIGHTS in found:
        return [WEIGHTS]
    if INDEX in found:
        shards = sorted(set(_read_json(name, path / INDEX).get("weight_map", {}).values()))
        if missing := [shard for shard in shards if shard not in found]:
            raise InputError(f"Base model {name!r} lacks weight files that its index names ({_listed(missing)}).")
        return [INDEX, *shards]
    pickled = [file for file in found if file.endswith(PICKLED)]
    raise InputError(
        f"Base model {name!r} has no {WEIGHTS} ({_listed(pickled or found)}): convert it to safetensors with "
        "save_pretrained; pickled weights are never loaded."
    )


def _check_architecture(name: str, path: Path) -> None:
    """Only architectures that the installed transformers knows: a model that brings its own code is refused."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    _read_json(name, path / "config.json")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"Base model {name!r} has a config.json that cannot be used: {reason}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"Base model {name!r} is a {config.model_type}, not a causal language model: give another.")


def _check_tokenizer(name: str, path: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # each kind of tokenizer fails in its own way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"Base model {name!r} has no tokenizer that can be loaded: {reason}") from error
    if not tokenizer.chat_template:
        raise InputError(
            f"Base model {name!r} has no chat template: use its instruction-tuned sibling, or put a "
            "chat_template.jinja into the folder."
        )
    if tokenizer.eos_token_id is None:
        raise InputError(f"Base model {name!r} has a tokenizer without an end token: set eos_token in its config.")


@contextmanager
def _fetched(uri: str) -> Iterator[Path]:
    storage = storage_for(uri)
    keys = [key for key in storage.keys("") if "/" not in key]
    if not keys:
        raise InputError(f"Base model {uri!r} holds no files: give the prefix that config.json is below.")
    with TemporaryDirectory(prefix="serin-base-") as folder:
        for key in keys:
            if not key.endswith(PICKLED):
                storage.fetch(key, Path(folder) / key)
            else:
                (Path(folder) / key).touch()  # named in the error when there is nothing else
        yield Path(folder)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=[*SMALL_FILES, INDEX, "model*.safetensors"]))
    except HFValidationError as error:
        raise ConfigError(f"Base model {name!r} is neither a folder nor a Hugging Face id (org/name).") from error
    except LocalEntryNotFoundError as error:
        raise UnavailableError(
            f"Base model {name!r} is not on this machine and the hub cannot be reached: give a folder, or {TINY}."
        ) from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise InputError(f"Hugging Face gives no access to {name!r}: check the name, or set HF_TOKEN.") from error
    except (HfHubHTTPError, OSError) as error:
        raise UnavailableError(f"Base model {name!r} cannot be downloaded: {str(error).splitlines()[0]}") from error


def _read_json(name: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"Base model {name!r}: {path.name} is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise InputError(f"Base model {name!r}: {path.name} is not a JSON object.")
    return value


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED_FILES]) + (", ..." if len(names) > NAMED_FILES else "")
    return f"found {shown}" if names else "found no files"
