"""Bases: where the weights that fine-tuning starts from come from.

``serin://tiny``, a Hugging Face id (``org/name`` or ``org/name@revision``), a local folder, or ``s3://``.  Weights are
read from safetensors only, and no code of the model's folder is ever run.  A hub id without a revision is accepted: the
commit that it stands for today is recorded, and named in a warning so that the next run can ask for it.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
ABOUT = ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md")
"""Files that tell the licence; they are read and not copied."""
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
    revision: str = ""
    """The hub's commit, 40 hex digits; empty for a folder and S3."""
    licence: str = "not stated"
    """As its README or config states it."""
    max_positions: int | None = None
    """Longest sequence that it was made for, tokens; None where its config names none."""

    def digest(self) -> str:
        """Digest of its files' content."""
        return digest_of({name: digest_of_file(self.path / name) for name in self.files})

    def copy_to(self, folder: Path) -> None:
        """Copy its files."""
        with disk_errors(folder):
            for name in self.files:
                shutil.copyfile(self.path / name, folder / name)


@contextmanager
def resolved(base_model: str, *, with_weights: bool = True) -> Iterator[BaseFolder]:
    """The base's folder on this machine, checked; a copy from S3 lives until the context ends.

    Args:
        base_model: as the user wrote it.
        with_weights: False fetches and checks everything but the weights, as a plan needs it.

    Raises:
        ConfigError: the name is of no known kind.
        InputError: the folder lacks config.json, safetensors, a tokenizer or a chat template, or they do not match.
        UnavailableError: the hub cannot be reached and there is no copy of the model on this machine.
    """
    if base_model.startswith("s3://"):
        with _fetched(base_model, with_weights) as path:
            yield check_folder(base_model, path, with_weights=with_weights)
        return
    if not base_model or (is_remote(base_model) and base_model != TINY):
        raise ConfigError(
            f"Base model {base_model!r} is of no known kind: give {TINY}, a Hugging Face id, a folder or s3://."
        )
    path = local_path(base_model)
    if base_model.startswith(("file://", "/", ".", "~")) or path.exists():
        yield check_folder(base_model, path, with_weights=with_weights)
    else:
        snapshot = _from_hub(base_model, with_weights)
        found = check_folder(base_model, snapshot, with_weights=with_weights)
        yield replace(found, revision=snapshot.name)


def check_folder(name: str, path: Path, *, with_weights: bool = True) -> BaseFolder:
    """Check that a folder is a base that can be trained and served.

    Raises:
        InputError: naming what is missing and what was found.
    """
    if not path.is_dir():
        raise InputError(f"Base model {name!r} is not a folder: give one with config.json and {WEIGHTS}.")
    found = sorted(file.name for file in path.iterdir() if file.is_file())
    if "config.json" not in found:
        raise InputError(f"Base model {name!r} has no config.json ({_listed(found)}): give a Hugging Face folder.")
    weights = _weights(name, path, found) if with_weights else []
    config = _check_architecture(name, path)
    check_tokenizer(name, path, config)
    return BaseFolder(
        name,
        path,
        (*(file for file in SMALL_FILES if file in found), *weights),
        licence=licence_of(path),
        max_positions=getattr(config.get_text_config(), "max_position_embeddings", None),
    )


def require_positions(base: BaseFolder, max_length: int) -> None:
    """Refuse samples that are longer than the base can be given.

    Raises:
        ConfigError: naming both lengths.
    """
    if base.max_positions is not None and max_length > base.max_positions:
        raise ConfigError(
            f"finetune.max_length is {max_length} and base model {base.name!r} takes {base.max_positions} tokens at "
            f"most: set max_length to {base.max_positions} or less."
        )


def licence_of(path: Path) -> str:
    """The licence that a model folder states: in its README's front matter, else in config.json."""
    readme = path / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    front = text.split("\n---", 1)[0] if text.startswith("---\n") else ""
    stated = {
        key.strip(): value.strip().strip("'\"")
        for key, colon, value in (line.partition(":") for line in front.splitlines())
        if colon and not key.startswith((" ", "-"))
    }
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    licence = stated.get("license") or str(config.get("license") or "")
    details = [stated[key] for key in ("license_name", "license_link") if stated.get(key)]
    return f"{licence} ({', '.join(details)})" if licence and details else licence or "not stated"


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


def _check_architecture(name: str, path: Path) -> Any:
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
    return config


def check_tokenizer(name: str, path: Path, config: Any) -> None:
    """Check that a folder's tokenizer is there, renders chats, and is the one that the model was trained with.

    Raises:
        InputError: saying what does not match, and what to do.
    """
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
    _check_vocabulary(name, tokenizer, config)


def _check_vocabulary(name: str, tokenizer: Any, config: Any) -> None:
    """Every token must have an embedding, and the model must end with a token that the tokenizer knows.

    Added tokens that nothing uses may lie beyond: some published models have them; samples that hold one are refused.
    """
    size = int(config.get_text_config().vocab_size)
    numbers = set(tokenizer.get_vocab().values())
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    spare = set(tokenizer.added_tokens_decoder) - used
    if beyond := [number for number in numbers - spare if number >= size]:
        raise InputError(
            f"Base model {name!r} has embeddings for {size} tokens and a tokenizer that knows number {max(beyond)}: "
            "use the tokenizer that it was trained with, or call resize_token_embeddings and save both."
        )
    ends = getattr(config.get_text_config(), "eos_token_id", None)
    for end in ends if isinstance(ends, list) else [] if ends is None else [ends]:
        if end not in numbers:
            raise InputError(
                f"Base model {name!r} has eos_token_id {end} in its config.json and a tokenizer without that token: "
                "use the tokenizer that it was trained with, or correct config.json."
            )


@contextmanager
def _fetched(uri: str, with_weights: bool) -> Iterator[Path]:
    storage = storage_for(uri)
    keys = [key for key in storage.keys("") if "/" not in key]
    if not keys:
        raise InputError(f"Base model {uri!r} holds no files: give the prefix that config.json is below.")
    with TemporaryDirectory(prefix="serin-base-") as folder:
        for key in keys:
            if key.endswith(PICKLED):
                (Path(folder) / key).touch()  # named in the error when there is nothing else
            elif with_weights or not key.endswith(".safetensors"):
                storage.fetch(key, Path(folder) / key)
        yield Path(folder)


def _from_hub(name: str, with_weights: bool) -> Path:
    """The snapshot of a hub id, whose folder is named after its commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")
    wanted = [*SMALL_FILES, *ABOUT, *([INDEX, "model*.safetensors"] if with_weights else [])]
    try:
        found = Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
    except HFValidationError as error:
        raise ConfigError(f"Base model {name!r} is neither a folder nor a Hugging Face id (org/name).") from error
    except LocalEntryNotFoundError as error:
        raise UnavailableError(
            f"Base model {name!r} is not on this machine and the hub cannot be reached: give a folder, or {TINY}."
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"Hugging Face has {repository!r} without the revision {revision!r}: check it.") from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise InputError(f"Hugging Face gives no access to {name!r}: check the name, or set HF_TOKEN.") from error
    except (HfHubHTTPError, OSError) as error:
        raise UnavailableError(f"Base model {name!r} cannot be downloaded: {str(error).splitlines()[0]}") from error
    if not revision:
        logger.warning("Base model %r names no revision; today it is %s@%s.", name, repository, found.name)
    return found


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
