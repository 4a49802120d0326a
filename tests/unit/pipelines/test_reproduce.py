"""A release made again from its records: equal digests, and what stands in their way."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from serin.core.artifacts import ArtifactStore
from serin.core.context import stage_context
from serin.core.errors import InputError
from serin.core.prompts import Prompt
from serin.core.release import Release
from serin.data_prep.config import DataPrepConfig
from serin.data_prep.prepare import prepare
from serin.finetune.config import FinetuneConfig
from serin.finetune.tiny import TinyConfig
from serin.finetune.train import finetune
from serin.index.build import build_index
from serin.index.config import IndexConfig
from serin.release.config import ReleaseConfig
from serin.release.create import create_release
from serin_pipelines.cli import app
from serin_pipelines.configs import RunConfig
from serin_pipelines.reproduce import reproduce

# PEFT 0.21 asks transformers 5.23 for an attribute that the latter renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SMALL = FinetuneConfig(
    max_steps=3, max_length=256, tokens_per_batch=512, precision="fp32", num_workers=0, cpus_per_worker=1,
    validation_interval=3,
    tiny=TinyConfig(
        max_steps=3, vocab_size=400, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64,
        max_positions=256, tokens_per_batch=512,
    ),
)  # fmt: skip
SETTINGS = RunConfig()


def write_source(folder: Path, price: int = 10) -> Path:
    folder.mkdir(parents=True)
    (folder / "lamps.md").write_text(
        f"# Lamps\n\nEvery lamp has a price. Lamp 3 costs {price} EUR.\n", encoding="utf-8"
    )
    rows = [
        {
            "id": f"chat-{i}",
            "group": f"g{i}",
            "messages": [
                {"role": "user", "content": f"What does lamp number {i} cost in our shop {i * 7}?"},
                {"role": "assistant", "content": f"Lamp number {i} costs {i + price} EUR with its shade {i * 3}."},
            ],
        }
        for i in range(40)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "chats.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture
def made(tmp_path: Path) -> tuple[ArtifactStore, Release, Path]:
    """A release of the real stages, and its source."""
    source, uri = write_source(tmp_path / "source"), str(tmp_path / "store")

    def stage(name: str) -> Any:
        return stage_context(name, store_uri=uri, lineage_id="run-1")

    with stage("data_prep") as context:
        prepared = prepare(DataPrepConfig(), str(source), context)
    with stage("finetune") as context:
        tuned = finetune(SMALL, "serin://tiny", Prompt(), prepared.dataset, prepared.documents, context)
    with stage("index") as context:
        index = build_index(IndexConfig(), prepared.documents, context)
    with stage("release") as context:
        release = create_release(ReleaseConfig(), tuned.model, index, prepared.dataset, Prompt(), context)
    return ArtifactStore(uri), release, source


def test_every_digest_comes_out_equal_and_the_release_with_them(
    made: tuple[ArtifactStore, Release, Path], own_home: Path
) -> None:
    store, release, _ = made
    told: list[str] = []
    result = reproduce(release.short_id, store.uri, SETTINGS, tell=told.append)
    assert {one.kind: one.equal for one in result.artifacts} == dict.fromkeys(
        ("dataset", "documents", "base", "model", "index"), True
    )
    assert (result.found, result.equal) == (release.id, True)
    assert told == ["the dataset and the documents", "the model", "the index"]
    assert not (own_home / "reproduce" / release.short_id).exists()


def test_the_command_says_which_digests_are_equal(made: tuple[ArtifactStore, Release, Path]) -> None:
    store, release, _ = made
    done = CliRunner().invoke(app, ["run", "--reproduce", release.id, "--store", store.uri, "--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert (values["equal"], values["found"]) == (True, release.id)
    assert all(one["equal"] and one["same_code"] for one in values["artifacts"])


def test_a_source_that_has_changed_is_refused_before_anything_is_made(
    made: tuple[ArtifactStore, Release, Path], tmp_path: Path, own_home: Path
) -> None:
    store, release, source = made
    (source / "lamps.md").write_text("# Lamps\n\nSold out.\n", encoding="utf-8")
    with pytest.raises(InputError, match="has changed since this release was made"):
        reproduce(release.id, store.uri, SETTINGS)
    assert not (own_home / "reproduce").exists()
    elsewhere = write_source(tmp_path / "elsewhere")
    assert reproduce(release.id, store.uri, SETTINGS, source=str(elsewhere)).equal


def test_a_record_that_is_gone_is_named(made: tuple[ArtifactStore, Release, Path]) -> None:
    store, release, _ = made
    (Path(release.data.uri.removeprefix("file://")) / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"dataset/\w+ is behind release .* and is gone"):
        reproduce(release.id, store.uri, SETTINGS)
