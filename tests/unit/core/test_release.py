import json
from pathlib import Path

import pytest

from serin.core.errors import InputError, IntegrityError
from serin.core.prompts import Prompt
from serin.core.release import Part, Release, list_releases, load_release, save_release
from serin.core.storage import storage_for


def release(**changes: object) -> Release:
    def part(kind: str) -> Part:
        return Part(kind=kind, digest=kind * 3, uri=f"file:///{kind}")

    values = {
        "model": part("model"),
        "index": part("index"),
        "data": part("dataset"),
        "prompt": Prompt(),
        "guardrails": {"rails": []},
        "serving": {"max_new_tokens": 64},
        "code_version": "abc",
    }
    return Release(**{**values, **changes})


def test_the_id_follows_every_part_and_no_location() -> None:
    base = release()
    moved = release(model=Part(kind="model", digest="model" * 3, uri="s3://elsewhere"))
    assert moved.id == base.id
    changed = [
        release(model=Part(kind="model", digest="other", uri="file:///model")),
        release(prompt=Prompt(system="other")),
        release(guardrails={"rails": ["pii"]}),
        release(serving={"max_new_tokens": 65}),
        release(code_version="abd"),
    ]
    assert len({base.id, *(other.id for other in changed)}) == 1 + len(changed)


def test_a_release_is_found_by_id_and_by_prefix(tmp_path: Path) -> None:
    storage = storage_for(str(tmp_path))
    made = release()
    save_release(storage, made)
    save_release(storage, made)
    assert list_releases(storage) == [made.id]
    assert load_release(storage, made.id[:8]) == made
    with pytest.raises(InputError, match="serin release list"):
        load_release(storage, "0" * 64)


def test_a_changed_release_is_refused(tmp_path: Path) -> None:
    storage = storage_for(str(tmp_path))
    made = release()
    save_release(storage, made)
    path = tmp_path / "releases" / made.id / "release.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "code_version": "evil"}))
    with pytest.raises(IntegrityError, match="was changed"):
        load_release(storage, made.id)
