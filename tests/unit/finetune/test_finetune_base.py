"""Bases that are found, and ones that are refused in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from serin.core.errors import ConfigError, InputError, StorageError, UnavailableError
from serin.core.storage import storage_for
from serin.finetune.base import resolved

FILES = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
}


@pytest.fixture
def base(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "base"))


def set_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_folder_is_copied_without_what_does_not_belong_to_it(base: Path, tmp_path: Path) -> None:
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    (base / "modeling_own.py").write_text("raise SystemExit")
    target = tmp_path / "target"
    target.mkdir()
    with resolved(str(base)) as found:
        found.copy_to(target)
    assert {path.name for path in target.iterdir()} == FILES


def test_a_file_uri_is_the_same_base(base: Path) -> None:
    with resolved(base.as_uri()) as by_uri, resolved(str(base)) as by_path:
        assert by_uri.digest() == by_path.digest()


def test_a_prefix_on_s3_is_the_same_base(base: Path, s3_bucket: str) -> None:
    storage = storage_for(f"s3://{s3_bucket}/models/base")
    for path in base.iterdir():
        storage.upload(path, path.name)
    with resolved(f"s3://{s3_bucket}/models/base") as remote, resolved(str(base)) as local:
        assert remote.digest() == local.digest()


def test_an_empty_prefix_on_s3_is_refused(s3_bucket: str) -> None:
    with pytest.raises(InputError, match="holds no files"), resolved(f"s3://{s3_bucket}/nothing"):
        pass


def test_a_missing_bucket_is_named(s3_bucket: str) -> None:
    with pytest.raises(StorageError, match="does not exist"), resolved(f"s3://{s3_bucket}-not/base"):
        pass


def without_weights(base: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(b"pickle")


def without_config(base: Path) -> None:
    (base / "config.json").unlink()


def without_template(base: Path) -> None:
    (base / "chat_template.jinja").unlink()


def without_tokenizer(base: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()


def with_own_code(base: Path) -> None:
    set_config(base, model_type="own", auto_map={"AutoConfig": "modeling_own.OwnConfig"})
    (base / "modeling_own.py").write_text("raise SystemExit('the code of a model was run')")


def with_broken_config(base: Path) -> None:
    (base / "config.json").write_text("{")


def with_missing_shard(base: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))


def as_encoder(base: Path) -> None:
    set_config(base, model_type="t5")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_weights, r"has no model.safetensors \(found pytorch_model.bin\): convert it"),
        (without_config, r"has no config.json \(found chat_template.jinja, .*tokenizer_config.json\)"),
        (without_template, "has no chat template: use its instruction-tuned sibling"),
        (without_tokenizer, "has no tokenizer that can be loaded"),
        (with_own_code, "has a config.json that cannot be used"),
        (with_broken_config, "config.json is not JSON"),
        (with_missing_shard, r"lacks weight files that its index names \(found model-1.safetensors\)"),
        (as_encoder, "is a t5, not a causal language model"),
    ],
)
def test_a_spoilt_base_is_refused_by_name(spoil: Callable[[Path], None], message: str, base: Path) -> None:
    spoil(base)
    with pytest.raises(InputError, match=message) as caught, resolved(str(base)):
        pass
    assert str(base) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"), resolved(str(tmp_path / "nothing")):
        pass


@pytest.mark.parametrize("name", ["gs://bucket/base", "serin://huge", "", "not a name!/x y"])
def test_a_name_of_no_known_kind_is_refused(name: str) -> None:
    with pytest.raises(ConfigError), resolved(name):
        pass


def test_a_hub_model_without_hub_or_copy_says_so() -> None:
    with pytest.raises(UnavailableError, match="not on this machine"), resolved("example-org/no-such-model"):
        pass
