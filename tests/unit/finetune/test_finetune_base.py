"""Bases that are found, and ones that are refused in one sentence."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serin.core.errors import ConfigError, InputError, StorageError, UnavailableError
from serin.core.storage import storage_for
from serin.finetune.base import require_positions, resolved
from serin.finetune.data import SampleFile, encode_texts, save_samples

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


def with_bigger_tokenizer(base: Path) -> None:
    set_config(base, vocab_size=100)


def with_unknown_end(base: Path) -> None:
    set_config(base, eos_token_id=[1, 399_999])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            with_bigger_tokenizer,
            r"has embeddings for 100 tokens and a tokenizer that knows number \d+: use the tokenizer",
        ),
        (with_unknown_end, "has eos_token_id 399999 in its config.json and a tokenizer without that token"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(spoil: Callable[[Path], None], message: str, base: Path) -> None:
    spoil(base)
    with pytest.raises(InputError, match=message), resolved(str(base)):
        pass


def test_a_spare_token_without_an_embedding_is_refused_only_where_it_is_used(base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|picture|>"], special_tokens=True)
    tokenizer.save_pretrained(base)
    with resolved(str(base)):
        pass
    size = json.loads((base / "config.json").read_text())["vocab_size"]
    for text in ("A lamp.", "A lamp <|picture|>."):
        save_samples(tmp_path / "samples", encode_texts(tokenizer, [text], 64))
        if "picture" in text:
            with pytest.raises(InputError, match=rf"holds token number {size} and the base has embeddings for {size}"):
                SampleFile(tmp_path / "samples").require_embeddings(size)
        else:
            SampleFile(tmp_path / "samples").require_embeddings(size)


def test_samples_longer_than_its_positions_are_refused(base: Path) -> None:
    with resolved(str(base)) as found:
        assert found.max_positions == 256
        require_positions(found, 256)
        with pytest.raises(ConfigError, match="takes 256 tokens at most: set max_length to 256 or less"):
            require_positions(found, 257)


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        (None, "not stated"),
        ("# No front matter\nlicense: mit\n", "not stated"),
        ("---\nlicense: apache-2.0\ntags:\n- chat\n---\n# A model", "apache-2.0"),
        ("---\nlicense: 'other'\nlicense_name: house-terms\n---\n", "other (house-terms)"),
    ],
)
def test_the_licence_is_what_the_readme_states(readme: str | None, licence: str, base: Path) -> None:
    if readme is not None:
        (base / "README.md").write_text(readme)
    with resolved(str(base)) as found:
        assert found.licence == licence


def test_without_weights_a_base_on_s3_is_fetched_small(base: Path, s3_bucket: str) -> None:
    storage = storage_for(f"s3://{s3_bucket}/models/base")
    for path in base.iterdir():
        storage.upload(path, path.name)
    with resolved(f"s3://{s3_bucket}/models/base", with_weights=False) as found:
        assert {path.name for path in found.path.iterdir()} == FILES - {"model.safetensors"}


def cached_hub_model(cache: Path, base: Path, revisions: dict[str, str]) -> None:
    """A hub cache as a download leaves it: snapshots by commit, and branches or tags that point at them."""
    repository = cache / "models--example-org--lamps"
    (repository / "refs").mkdir(parents=True)
    for name, commit in revisions.items():
        shutil.copytree(base, repository / "snapshots" / commit, dirs_exist_ok=True)
        (repository / "refs" / name).write_text(commit)


RESOLVE = """
import json, logging, sys
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from serin.finetune.base import resolved
for name in sys.argv[1:]:
    with resolved(name) as found:
        print(json.dumps([name, found.revision, found.licence]))
"""


def test_a_hub_model_is_resolved_to_its_commit(base: Path, tmp_path: Path) -> None:
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    main, tagged = "a" * 40, "b" * 40
    cached_hub_model(tmp_path / "hub", base, {"main": main, "v1": tagged})
    name = "example-org/lamps"
    commits = {name: main, f"{name}@v1": tagged, f"{name}@{tagged}": tagged}
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", RESOLVE, *commits]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [[asked, commit, "mit"] for asked, commit in commits.items()]
    unnamed = [line for line in done.stderr.splitlines() if "names no revision" in line]
    assert len(unnamed) == 1
    assert f"{name!r} names no revision; today it is {name}@{main}" in unnamed[0]
